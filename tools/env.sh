# Puts this checkout's Pulumi, Python and state into the current shell:   . tools/env.sh
#
# Works in bash, zsh and dash, from any directory. Nothing outside the checkout is written, and nothing of the caller's
# own Pulumi set-up (~/.pulumi, its login, its passphrase) is used or changed. Sourcing it twice changes nothing.

# A sourced file does not know its own path in POSIX; each shell has its own way.
if [ -n "${BASH_VERSION:-}" ]; then
    _overlay_env=${BASH_SOURCE[0]}
elif [ -n "${ZSH_VERSION:-}" ]; then
    eval '_overlay_env=${(%):-%x}'      # in eval, because other shells cannot even parse it
else
    _overlay_env=tools/env.sh
    for _overlay_fd in "/proc/$$/fd"/*; do      # dash and busybox keep the file open while they read it
        case $(readlink "$_overlay_fd" 2>/dev/null) in
            */tools/env.sh) _overlay_env=$(readlink "$_overlay_fd") ;;
        esac
    done
    unset _overlay_fd
fi
_overlay_root=$(CDPATH='' cd -- "$(dirname -- "$_overlay_env")/.." 2>/dev/null && pwd -P)

if [ ! -x "$_overlay_root/.tools/bin/pulumi" ] || [ ! -x "$_overlay_root/.venv/bin/python" ]; then
    echo "tools/env.sh: ${_overlay_root:-this directory} is not set up; run: make -C ${_overlay_root:-CHECKOUT} setup" >&2
    unset _overlay_env _overlay_root
    return 1
fi

# Ours first, so that a Pulumi installed elsewhere is never mixed in.
case ":$PATH:" in
    ":$_overlay_root/.venv/bin:$_overlay_root/.tools/bin:"*) ;;
    *) PATH=$_overlay_root/.venv/bin:$_overlay_root/.tools/bin:$PATH ;;
esac
export PATH

# A passphrase encrypts the secrets in the state. It is made once and stays in the checkout, readable by its owner only.
if [ ! -s "$_overlay_root/.lab/passphrase" ]; then
    mkdir -p "$_overlay_root/.lab"
    (umask 077 && od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "$_overlay_root/.lab/passphrase.$$" &&
        # ln fails where another shell was faster: both then use that one's.
        ln "$_overlay_root/.lab/passphrase.$$" "$_overlay_root/.lab/passphrase" 2>/dev/null
        rm -f "$_overlay_root/.lab/passphrase.$$")
fi
unset PULUMI_CONFIG_PASSPHRASE          # would win over the file
export PULUMI_CONFIG_PASSPHRASE_FILE="$_overlay_root/.lab/passphrase"

mkdir -p "$_overlay_root/.lab/state"
export PULUMI_BACKEND_URL="file://$_overlay_root/.lab/state"
export PULUMI_HOME="$_overlay_root/.tools"
# Some machines set it; the program would then be compiled anew at every run.
unset PYTHONDONTWRITEBYTECODE
export PULUMI_PYTHON_CMD="$_overlay_root/.venv/bin/python"

# Neither looks for a newer Pulumi nor fetches plugins: `make setup` installed the ones that are needed, and on a machine
# without a way out each such look-up would wait for its time-out.
export PULUMI_SKIP_UPDATE_CHECK=true
export PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION=true

# Pulumi writes a debug log of every run into this folder, a fifth of the processor time of a no-op with 50 hosts. It has
# no switch for that; where it cannot make the folder it goes without. The state is not concerned.
if [ ! -f "$PULUMI_HOME/logs" ]; then
    rm -rf "$PULUMI_HOME/logs"
    echo "Remove this file to have Pulumi's debug logs here (see tools/env.sh)." > "$PULUMI_HOME/logs"
fi

# After an error on one host the others are still brought to what is wanted (the engine otherwise starts no new step).
export PULUMI_CONTINUE_ON_ERROR=true

unset _overlay_env _overlay_root
