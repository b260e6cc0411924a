#!/usr/bin/env python3
"""Set this checkout up: Debian packages, Python packages, Pulumi, the VM lab's image. `make setup` calls it.

Runs before anything is installed, hence on the system's Python with its standard library alone. Whatever it makes
lives in the checkout: `.venv` (Python packages, from the hashed locks) and `.tools` (Pulumi; it is PULUMI_HOME; and
`vm`, the image). Each part has a stamp with a hash of all that decides its content, so that a run with nothing to do
only compares hashes.

Not every machine can reach every site, so Pulumi is taken from the first source that works; `.tools/provenance.json`
says which. docs/adr/0005-pulumi-without-its-download-site.md has the reasons.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"

PULUMI_VERSION = "3.259.0"
PLUGIN_VERSION = "1.2.1"
PLUGIN_FILE = Path("plugins") / f"resource-command-v{PLUGIN_VERSION}" / "pulumi-resource-command"
CLI_FILES = ("pulumi", "pulumi-language-python", "pulumi-language-python-exec")
DOWNLOAD_SITE = "https://get.pulumi.com/releases"
DOWNLOAD_PATIENCE = 8.0  # seconds; without a way out some networks drop packets instead of refusing
OLDEST_GO = (1, 21)  # from here on Go fetches the version that a go.mod asks for by itself

# Command that must be there -> Debian package that brings it. For the tests, the lab and the demo.
SYSTEM_COMMANDS = {
    "chromium-headless-shell": "chromium-headless-shell",
    "curl": "curl",
    "dhclient": "isc-dhcp-client",
    "dnsmasq": "dnsmasq-base",
    "dockerd": "docker.io",
    "ip": "iproute2",
    "iperf3": "iperf3",
    "iptables": "iptables",
    "keepalived": "keepalived",
    "lxc-start": "lxc",
    "lxd": "lxd",
    "mke2fs": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "nsenter": "util-linux",
    "ping": "iputils-ping",
    "ps": "procps",
    "qemu-system-x86_64": "qemu-system-x86",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "sudo": "sudo",
    "tcpdump": "tcpdump",
    "udhcpc": "udhcpc",
    "vtysh": "frr",
    "wg": "wireguard-tools",
}
UNITS = Path("/etc/systemd/system")
BUSYBOX = Path("/usr/share/doc/busybox-static")  # `busybox` may also be the one that needs the machine's libraries
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])  # not on every user's PATH


class SetupError(Exception):
    """Something that only a person can put right; the message says how."""


class UnavailableError(Exception):
    """A source cannot be used here, and why; the next one is tried."""


def say(message: str) -> None:
    """One line of progress."""
    print(f"setup: {message}", flush=True)


def run(what: str, command: Sequence[str | Path], **environment: str) -> str:
    """Run a command that may take long: its output as text, a sign of life every 10 s, the output's end on failure."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment
        )
        code: int | None = None
        while code is None:
            try:
                code = process.wait(timeout=10)
            except subprocess.TimeoutExpired:  # noqa: PERF203 - one turn each 10 s
                say(f"  ... {what}: {time.monotonic() - started:.0f} s")
            except BaseException:
                process.terminate()
                process.wait()
                raise
        output.seek(0)
        text = output.read()
    if code != 0:
        end = "\n".join("    " + line for line in text.splitlines()[-15:])
        raise SetupError(f"{what} failed: {' '.join(map(str, command))} ended with {code}\n{end}")
    return text


def digest(*parts: str | Path) -> str:
    """Hash of texts and of files' contents, in order."""
    total = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode()
        total.update(hashlib.sha256(data).digest())
    return total.hexdigest()


def read_stamp(path: Path) -> str:
    """The stamp's hash; empty when there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


# Debian packages


def system_packages() -> None:
    """Install what is missing where we may, else name it in one line to copy. What needs them then says so itself."""
    missing = sorted({p for c, p in SYSTEM_COMMANDS.items() if shutil.which(c, path=SYSTEM_PATH) is None})
    if importlib.util.find_spec("ensurepip") is None:  # Debian ships Python without it
        missing.append("python3-venv")
    if not BUSYBOX.exists():
        missing.append("busybox-static")
    if not missing:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        say(f"missing: {', '.join(missing)}; the lab and the tests that need them will not run until you install them:")
        print("    sudo " + " ".join(command), flush=True)
        return
    say(f"Debian packages: {' '.join(missing)}")
    with services_not_started(), services_not_enabled():
        try:
            run("apt-get install", command, DEBIAN_FRONTEND="noninteractive")
        except SetupError:  # package lists are old, or a fresh container has none
            run("apt-get update", ["apt-get", "update"])
            run("apt-get install", command, DEBIAN_FRONTEND="noninteractive")


@contextlib.contextmanager
def services_not_started() -> Iterator[None]:
    """Keep apt from starting services (an sshd for the whole machine), by Debian's policy hook, unless one is there."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


@contextlib.contextmanager
def services_not_enabled() -> Iterator[None]:
    """Disable what apt has enabled meanwhile: we need the programs, not an sshd, a dockerd and a keepalived that were
    not there before and would come with the machine's next boot."""
    before = enabled_units()
    try:
        yield
    finally:
        if (new := sorted(enabled_units() - before)) and shutil.which("systemctl"):
            run("systemctl disable", ["systemctl", "disable", *new])


def enabled_units() -> set[str]:
    """The units that something on this machine wants at boot: systemctl(1), enable."""
    return {link.name for folder in ("wants", "requires") for link in UNITS.glob(f"*.{folder}/*")}


# Python packages


def virtualenv(directory: Path, lock: Path, python: str, *, project: bool = False) -> None:
    """Make `directory` a virtual environment with exactly the lock's packages (and this project, editable)."""
    stamp = directory / ".stamp"
    parts: list[str | Path] = [str(directory), python, platform.python_version(), lock]  # paths: scripts hold them
    if project:
        parts.append(ROOT / "pyproject.toml")
    wanted = digest(*parts)
    if read_stamp(stamp) == wanted and (directory / "bin" / "python").exists():
        return
    say(f"Python packages of {lock.name} into {directory.name} (about half a minute)")
    stamp.unlink(missing_ok=True)
    try:
        run("making the virtual environment", [python, "-m", "venv", *venv_options(directory), directory])
    except SetupError as error:
        if importlib.util.find_spec("ensurepip") is None:
            advice = "this Python cannot make virtual environments; do: apt-get install python3-venv"
            raise SetupError(advice) from error
        raise
    pip = [str(directory / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    run("pip install", [*pip, "--require-hashes", "-r", lock])
    if project:
        run("pip install of the project", [*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT])
    stamp.write_text(wanted)


def venv_options(directory: Path) -> list[str]:
    """Start anew unless what is there runs: a moved checkout or an upgraded Python leaves a broken one."""
    try:
        subprocess.run([directory / "bin" / "python", "-m", "pip", "--version"], check=True, capture_output=True)
        shebang = (directory / "bin" / "pip").read_text().startswith(f"#!{directory}/")
    except (OSError, subprocess.CalledProcessError):
        shebang = False
    return [] if shebang else ["--clear"]


def old_python() -> str | None:
    """A Python 3.9, if there is one: the agent's tests run on it too. Found without running it, to be quick."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [shutil.which("python3.9"), *map(str, sorted(pyenv.glob("versions/3.9.*/bin/python3.9")))]
    # pyenv's shims stand on PATH for every version, also where pyenv would refuse to run it.
    return next((python for python in found if python and "/shims/" not in python), None)


# Pulumi


@dataclass(frozen=True)
class Origin:
    """Where a part came from, for provenance.json."""

    source: str
    version: str


def from_path(stage: Path) -> Origin:
    """Copy the Pulumi that the caller has on PATH. Copied: ours must not change or vanish when theirs does."""
    path = os.pathsep.join(p for p in os.get_exec_path() if Path(p) != TOOLS / "bin")
    pulumi = shutil.which("pulumi", path=path)
    if pulumi is None:
        raise UnavailableError("no pulumi on PATH")
    version = pulumi_version(Path(pulumi))
    if not tuple(map(int, PULUMI_VERSION.split("."))) <= version < (4,):
        found = ".".join(map(str, version))
        raise UnavailableError(f"{pulumi} is version {found}; {PULUMI_VERSION} or a later 3.x is needed")
    beside = os.pathsep.join([str(Path(pulumi).resolve().parent), path])
    for name in CLI_FILES:
        file = shutil.which(name, path=beside)
        if file is None:
            raise UnavailableError(f"{pulumi} has no {name} beside it")
        put(Path(file).resolve(), stage / "bin" / name)
    return Origin(f"PATH ({pulumi})", ".".join(map(str, version)))


def pulumi_version(pulumi: Path) -> tuple[int, ...]:
    """What `pulumi version` says."""
    try:
        quiet = os.environ | {"PULUMI_SKIP_UPDATE_CHECK": "true"}
        done = subprocess.run([pulumi, "version"], check=True, capture_output=True, text=True, timeout=30, env=quiet)
        return tuple(int(number) for number in done.stdout.strip().lstrip("v").split("-")[0].split("."))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UnavailableError(f"{pulumi} does not run: {error}") from error


def put(source: Path, target: Path) -> None:
    """Copy a program."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)


def bundle() -> Path | None:
    """The archive that PULUMI_BUNDLE names."""
    named = os.environ.get("PULUMI_BUNDLE")
    if not named:
        return None
    if not Path(named).is_file():
        raise SetupError(f"PULUMI_BUNDLE: {named} is not a file; correct the path or unset the variable")
    return Path(named).resolve()


def unpack_bundle(stage: Path) -> Path:
    """The bundle's files in `stage`, each compared with its SHA256SUMS."""
    archive = bundle()
    if archive is None:
        raise UnavailableError("PULUMI_BUNDLE is not set")
    directory = stage / "bundle"
    if directory.is_dir():
        return directory
    say(f"unpacking {archive.name}")
    sums: dict[str, str] = {}
    found: dict[str, str] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            data = tar.extractfile(member)  # None for all but plain files; names are checked below, never joined
            if data is None:
                continue
            name = member.name.removeprefix("./")
            if name == "SHA256SUMS":
                rows = data.read().decode().splitlines()
                sums = {row.split()[1].removeprefix("./"): row.split()[0] for row in rows}
            elif name in {*(f"bin/{program}" for program in CLI_FILES), "plugins/pulumi-resource-command"}:
                target = directory / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(data, file)
                found[name] = digest_file(target)
    for name, value in found.items():
        if sums.get(name) != value:
            raise SetupError(f"{archive}: {name} is not what the bundle's SHA256SUMS says; get the bundle anew")
    return directory


def digest_file(path: Path) -> str:
    """SHA-256 of a large file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def cli_from_bundle(stage: Path) -> Origin:
    """CLI and language host out of PULUMI_BUNDLE."""
    directory = unpack_bundle(stage)
    for name in CLI_FILES:
        put(directory / "bin" / name, stage / "bin" / name)
    return Origin(f"bundle ({bundle()})", ".".join(map(str, pulumi_version(stage / "bin" / "pulumi"))))


def cli_from_download(stage: Path) -> Origin:
    """CLI and language host from Pulumi's own site."""
    system, machine = machine_names({"amd64": "x64"})
    name = f"sdk/pulumi-v{PULUMI_VERSION}-{system}-{machine}.tar.gz"
    download(name, {f"pulumi/{program}": stage / "bin" / program for program in CLI_FILES}, stage)
    return Origin(f"download ({DOWNLOAD_SITE}/{name})", PULUMI_VERSION)


def machine_names(special: Mapping[str, str]) -> tuple[str, str]:
    """System and architecture as Pulumi's archives are named."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return platform.system().lower(), special.get(machine, machine)


def download(name: str, wanted: Mapping[str, Path], stage: Path) -> None:
    """Take the wanted members out of one archive of Pulumi's site."""
    archive = stage / Path(name).name
    url = f"{DOWNLOAD_SITE}/{name}"
    within(DOWNLOAD_PATIENCE, lambda: open_url(url, DOWNLOAD_PATIENCE).close())
    say(f"downloading {url}")
    try:
        with open_url(url, 60) as answer, archive.open("wb") as file:
            shutil.copyfileobj(answer, file)
        with tarfile.open(archive) as tar:
            for member, target in wanted.items():
                data = tar.extractfile(member)
                if data is None:
                    raise UnavailableError(f"{url} holds no file {member}")
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as program:
                    shutil.copyfileobj(data, program)
                target.chmod(0o755)
    except (OSError, KeyError, tarfile.TarError) as error:
        raise UnavailableError(f"{url}: {error}") from error


def open_url(url: str, timeout: float) -> HTTPResponse:
    """GET below the download site, which is a constant of this file."""
    answer: HTTPResponse = urllib.request.urlopen(url, timeout=timeout)  # noqa: S310 - see above
    return answer


def within(seconds: float, action: Callable[[], None]) -> None:
    """Do something that opens a connection, or give up: looking a name up knows no time-out of its own."""
    failure: list[Exception | None] = []

    def attempt() -> None:
        try:
            action()
            failure.append(None)
        except Exception as error:  # noqa: BLE001 - it is reported by the thread that waits
            failure.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if not failure:
        raise UnavailableError(f"{DOWNLOAD_SITE}: no answer within {seconds:.0f} s")
    if failure[0] is not None:
        raise UnavailableError(f"{DOWNLOAD_SITE}: {failure[0]}")


def cli_from_go(stage: Path) -> Origin:
    """Build CLI and language host from the Go module registry, pinned by tools/pulumi/*/go.sum."""
    go = shutil.which("go")
    needed = f"Go {'.'.join(map(str, OLDEST_GO))} or newer, which itself gets the 1.26 that the build needs"
    if go is None:
        raise UnavailableError(f"no go on PATH; install {needed}")
    version = subprocess.run([go, "env", "GOVERSION"], check=True, capture_output=True, text=True).stdout.strip()
    if tuple(map(int, version.removeprefix("go").split(".")[:2])) < OLDEST_GO:
        raise UnavailableError(f"{go} is {version}; install {needed}")
    work = stage / "go"
    shutil.copytree(ROOT / "tools" / "pulumi", work / "src")  # go may complete go.mod: not in the checkout
    environment = {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=mod -trimpath -buildvcs=false",
        "GOWORK": "off",
        # Several gigabytes that only this build needs: not into the caller's own caches.
        "GOMODCACHE": str(work / "mod"),
        "GOCACHE": str(work / "cache"),
    }
    stamped = f"-s -w -X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version={PULUMI_VERSION}"
    programs = {
        "cli": ("pulumi", "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi", stamped),
        "language-host": (
            "pulumi-language-python",
            "github.com/pulumi/pulumi/sdk/python/cmd/pulumi-language-python/v3",
            "-s -w",
        ),
    }
    say("building Pulumi from the Go module registry (about 5 minutes on 2 cores, 5 GB of disk while it runs)")
    try:
        for module, (program, package, flags) in programs.items():
            out = str(stage / "bin" / program)
            build = [go, "build", "-C", f"{work}/src/{module}", "-ldflags", flags, "-o", out, package]
            run(f"building {program}", build, **environment)
        # The script that starts the user's program belongs to the language host, but lies in another module.
        sdk = "github.com/pulumi/pulumi/sdk/v3"
        listing = [go, "list", "-C", f"{work}/src/language-host", "-m", "-f", "{{.Dir}}", sdk]
        directory = Path(run("go list", listing, **environment).strip().splitlines()[-1])
        put(directory / "python" / "cmd" / CLI_FILES[2], stage / "bin" / CLI_FILES[2])
    except SetupError as error:
        raise UnavailableError(str(error)) from error
    finally:
        # Go makes its module cache read-only.
        subprocess.run(["chmod", "-R", "u+w", work], check=False)
        shutil.rmtree(work, ignore_errors=True)
    return Origin("built from the Go module registry (tools/pulumi)", PULUMI_VERSION)


def plugin_from_home(stage: Path) -> Origin:
    """Copy the command plugin that the caller's own Pulumi has."""
    home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    file = home / PLUGIN_FILE
    if home == TOOLS or not is_program(file):
        raise UnavailableError(f"no {file}")
    put(file, stage / PLUGIN_FILE)
    return Origin(f"Pulumi home ({file})", PLUGIN_VERSION)


def is_program(file: Path) -> bool:
    """Whether the file is a compiled program, as the real plugin is and the stand-in is not."""
    try:
        with file.open("rb") as opened:
            return opened.read(2) != b"#!"
    except OSError:
        return False


def plugin_from_bundle(stage: Path) -> Origin:
    """The command plugin out of PULUMI_BUNDLE."""
    put(unpack_bundle(stage) / "plugins" / "pulumi-resource-command", stage / PLUGIN_FILE)
    return Origin(f"bundle ({bundle()})", PLUGIN_VERSION)


def plugin_from_download(stage: Path) -> Origin:
    """The command plugin from Pulumi's own site."""
    system, machine = machine_names({})
    name = f"plugins/pulumi-resource-command-v{PLUGIN_VERSION}-{system}-{machine}.tar.gz"
    download(name, {PLUGIN_FILE.name: stage / PLUGIN_FILE}, stage)
    return Origin(f"download ({DOWNLOAD_SITE}/{name})", PLUGIN_VERSION)


def install_stand_in(home: Path) -> None:
    """Install our own plugin of the same protocol (tools/command_plugin) below a PULUMI_HOME."""
    target = home / PLUGIN_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    python, program = ROOT / ".venv" / "bin" / "python", ROOT / "tools" / "command_plugin"
    # -I: the caller's PYTHONPATH and working directory must not change what the plugin imports.
    target.write_text(f"#!/bin/sh\n# stand-in for pulumi-resource-command\nexec '{python}' -I '{program}' \"$@\"\n")
    target.chmod(0o755)


def plugin_stand_in(stage: Path) -> Origin:
    """The last resort, always there."""
    install_stand_in(stage)
    return Origin("stand-in (tools/command_plugin)", PLUGIN_VERSION)


def first_that_works(what: str, sources: Sequence[Callable[[Path], Origin]], stage: Path) -> Origin:
    """Try the sources in order; the error names every one and why it was of no use."""
    reasons = []
    for source in sources:
        try:
            origin = source(stage)
        except UnavailableError as reason:  # noqa: PERF203 - five turns, each of seconds
            reasons.append(str(reason))
        else:
            say(f"{what} {origin.version}: {origin.source}")
            return origin
    raise SetupError(f"{what} cannot be had on this machine:\n" + "\n".join(f"    - {reason}" for reason in reasons))


def pulumi() -> None:
    """Fill `.tools` with CLI, language host and command plugin, all of it or nothing."""
    provenance = TOOLS / "provenance.json"
    archive = bundle()
    mark = None if archive is None else f"{archive} {archive.stat().st_size} {archive.stat().st_mtime_ns}"
    # The path, because the stand-in holds it.
    wanted = digest(str(ROOT), PULUMI_VERSION, PLUGIN_VERSION, *sorted((ROOT / "tools" / "pulumi").glob("*/go.*")))
    files = [*(TOOLS / "bin" / name for name in CLI_FILES), TOOLS / PLUGIN_FILE]
    with contextlib.suppress(OSError, ValueError, KeyError):
        record = json.loads(provenance.read_text())
        # A bundle that is no longer named is no reason to build for five minutes what is there; a new one is looked at.
        if record["inputs"] == wanted and mark in {None, record["bundle"]} and all(file.exists() for file in files):
            return
    with tempfile.TemporaryDirectory(dir=TOOLS, prefix="stage-") as name:
        stage = Path(name)
        cli = first_that_works("Pulumi", [from_path, cli_from_bundle, cli_from_download, cli_from_go], stage)
        sources = [plugin_from_home, plugin_from_bundle, plugin_from_download, plugin_stand_in]
        plugin = first_that_works("command plugin", sources, stage)
        provenance.unlink(missing_ok=True)
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            (stage / file.relative_to(TOOLS)).replace(file)
    kind = "real" if is_program(TOOLS / PLUGIN_FILE) else "stand-in"
    record = {
        "inputs": wanted,
        "bundle": mark,
        "pulumi": {**vars(cli), "sha256": digest_file(TOOLS / "bin" / "pulumi")},
        "command_plugin": {"kind": kind, **vars(plugin), "sha256": digest_file(TOOLS / PLUGIN_FILE)},
    }
    provenance.write_text(json.dumps(record, indent=2) + "\n")


# The VM lab's image


@contextlib.contextmanager
def vm_image() -> Iterator[None]:
    """Make the image beside all else that is to be done: it needs a minute, most of it waiting for packages. Without
    it only the tests that need it fail, so a failure is said and no more; they say it again (lab/_vm.py)."""
    maker = ROOT / "tools" / "vm_image.py"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        yield  # those tests name what is missing
        return
    process = subprocess.Popen(
        [sys.executable, maker, os.environ.get("OVERLAY_VM_DIR") or TOOLS / "vm"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PATH": SYSTEM_PATH},
    )  # fmt: skip
    try:
        yield
        started, text = time.monotonic(), None
        while text is None:
            try:
                text, _ = process.communicate(timeout=10)
            except subprocess.TimeoutExpired:  # noqa: PERF203 - one turn each 10 s
                say(f"  ... making the VM lab's image: {time.monotonic() - started:.0f} s more than all the rest")
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.returncode != 0:
        lines = "\n".join("    " + line for line in text.splitlines()[-15:])
        say(f"the VM lab's image could not be made; the tests that need it will fail:\n{lines}")
    elif text:
        say(text.strip())


def summary() -> str:
    """One line: what this checkout works with."""
    record = json.loads((TOOLS / "provenance.json").read_text())
    plugin = record["command_plugin"]
    note = (
        ""
        if plugin["kind"] == "real"
        else (
            " - the stand-in of tools/command_plugin, because Pulumi's own could not be had here; it does the same,"
            " and `make test` proves it"
        )
    )
    return f"Pulumi {record['pulumi']['version']}, command plugin {plugin['version']} ({plugin['kind']}){note}"


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two terminals may both type make."""
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / ".setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this checkout is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Do what is missing."""
    parser = argparse.ArgumentParser(description="Set this checkout up; does only what is missing.")
    parser.add_argument("--bench", action="store_true", help="also what `make bench` compares with")
    parser.add_argument("--audit", action="store_true", help="also what `make audit` runs")
    parser.add_argument("--force", action="store_true", help="look for Pulumi again, although it is in place")
    options = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036 - here is where it is made sure
        print(f"setup: error: Python 3.10 or newer is needed; {sys.executable} is {platform.python_version()}")
        return 1
    started = time.monotonic()
    try:
        with one_at_a_time():
            if options.force:
                (TOOLS / "provenance.json").unlink(missing_ok=True)
            system_packages()
            with vm_image():
                virtualenv(ROOT / ".venv", ROOT / "requirements.txt", sys.executable, project=True)
                if (python := old_python()) is not None:
                    virtualenv(ROOT / ".venv-py39", ROOT / "requirements-py39.txt", python)
                if options.bench:
                    virtualenv(ROOT / ".venv-bench", ROOT / "requirements-bench.txt", sys.executable)
                if options.audit:
                    virtualenv(ROOT / ".venv-audit", ROOT / "requirements-audit.txt", sys.executable)
                pulumi()
    except SetupError as error:
        print(f"setup: error: {error}", file=sys.stderr)
        return 1
    say(f"ready in {time.monotonic() - started:.1f} s: {summary()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
