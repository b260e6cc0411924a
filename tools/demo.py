"""The demo: three hosts, an overlay network between them, containers that talk over it.

Everything is in this checkout's .lab and in network namespaces; `make demo-down` removes it. Each
run begins afresh, so that a run cut short or a restarted machine leaves nothing to be mended.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import Lab, LabError

ROOT = Path(__file__).resolve().parent.parent
#: Another name makes another demo beside it: the tests must not end the one that somebody looks at.
NAME = os.environ.get("OVERLAY_DEMO", "demo")
HOSTS = 3
PROJECT = ROOT / ".lab" / f"{NAME}-project"
KEPT = ROOT / ".lab" / f"{NAME}-project.old"
STACK = "demo"
STACK_FILE = f"stacks/Pulumi.{STACK}.yaml"
#: As the stack file has it, and as the demo would have it: free on all hosts.
OLD_VNI, NEW_VNI = "vni: 42", "vni: 142"
#: Pages in the demo's project.
TOPOLOGY, VERIFIED = "topology.html", "verify.html"
LAB = f"python -m lab {{}} --name {NAME}"


class DemoError(Exception):
    """A step that did not do what it should; its text is for the person who watches."""


# -- the story -------------------------------------------------------------------------------


def up() -> None:
    """From nothing to pings, telling what is done and with which commands."""
    began = time.monotonic()
    clear()
    say("Three hosts. Each has its own network, files and sshd; to Pulumi they are machines like any other.")
    run(f"{LAB.format('up')} --hosts {HOSTS}")
    project()

    say("The whole network is one stack file. What it comes to, without asking any host:")
    run(f"overlay plan --stack {STACK}")

    say("Make it so. Pulumi shows what it would do, then does it; each host gets one document.")
    run(f"pulumi stack init {STACK}", quiet=True)
    pulumi("up --yes --suppress-outputs", keep=readable_progress())

    say("What the kernel of h1 now has: a VXLAN device, and where it sends what everybody shall get.")
    run(f"{LAB.format('ssh')} h1 ip -d link show vx-app", keep=lambda line: bool(re.search(r"^\d+:|vxlan id", line)))
    run(f"{LAB.format('ssh')} h1 bridge fdb show dev vx-app", keep=lambda line: "00:00:00:00:00:00" in line)

    say("Containers: LXC's, made with what `overlay snippet` prints. DHCP on h1 tells them their name server.")
    plan = json.loads(output(f"pulumi stack output containers --json --stack {STACK}"))
    rows = [row for segment in plan.values() for row in segment.values()]
    real = [row for row in rows if row["runtime"] == "lxc"]
    for row in real:
        start_lxc(row)

    say("They talk by name, across hosts.")
    for row in real:
        wait_for_lease(row)
    for a, b in neighbours(real):
        ping_by_name(a, b)

    say("The others are stand-ins (network namespaces) with the addresses, MACs and MTU of the plan.")
    for row in rows:
        if row not in real:
            words = f"{row['host']} {row['name']} --bridge {row['bridge']} --mac {row['mac']}"
            run(f"python -m lab container add --name {NAME} {words} --address {row['address']} --mtu {row['mtu']}")

    say("They reach everybody in their segment, with full packets too (the MTU is what the tunnel carries).")
    for segment in plan.values():
        pings(list(segment.values()))

    say("A change is first shown, as a difference of the network. Let us give segment app another VNI:")
    change(OLD_VNI, NEW_VNI)
    try:
        pulumi("preview --diff --suppress-outputs", excerpt=True)
    finally:
        change(NEW_VNI, OLD_VNI)

    say("A picture of it, and the proof: each host tries every other with full packets, and asks for DHCP and DNS.")
    overlay(f"graph --output {TOPOLOGY}")
    overlay(f"verify --html {VERIFIED}")

    say(f"Done in {time.monotonic() - began:.0f} s. It stays up until `make demo-down`. To look around and change it:")
    print(NEXT)


NEXT = f"""\
  make demo-shell                       a shell in the demo: `pulumi up`, `overlay plan`, `ssh h1` work there
    $EDITOR {STACK_FILE}     change a vni, an address, add a segment; then:
    pulumi preview --diff                 what would change
    pulumi up                             change it
    {TOPOLOGY}, {VERIFIED}          the pages, for a browser; in {PROJECT.relative_to(ROOT)}
    overlay explain h2                    the commands that do by hand what the stack does on h2
  . tools/env.sh                        or, from your own shell:
    python -m lab ssh --name {NAME} h1 bridge fdb show
    python -m lab container exec --name {NAME} h1 cache -- ping 10.10.0.12
  make demo-down                        removes all of it
"""


def down() -> None:
    """Removes what `up` made. The hosts end with their network, so there is nothing to undo on them."""
    run(LAB.format("down"))
    if PROJECT.exists():
        print(f"Removing {PROJECT.relative_to(ROOT)}")
        keep_edits()
        shutil.rmtree(PROJECT, ignore_errors=True)


def shell() -> None:
    """A shell as the lab's operator, in the demo's project."""
    if not PROJECT.exists():
        raise DemoError("no demo is up; run: make demo")
    os.chdir(PROJECT)
    words = shlex.split(f"{LAB.format('shell')} --home")
    os.execvpe(words[0], words, environment())  # noqa: S606 - what a shell is started with


# -- steps -----------------------------------------------------------------------------------


def clear() -> None:
    """Nothing of an earlier run is left."""
    if NAME in Lab.names() or PROJECT.exists():
        say("An earlier demo is there; it goes first.")
        down()


def keep_edits() -> None:
    """A stack file that somebody has changed is not thrown away."""
    ours, theirs = stack_text(), PROJECT / STACK_FILE
    if theirs.exists() and without_salt(theirs.read_text()) != without_salt(ours):
        KEPT.mkdir(exist_ok=True)
        shutil.copy2(theirs, KEPT / theirs.name)
        print(f"Your changed stack file is kept: {(KEPT / theirs.name).relative_to(ROOT)}")


def without_salt(text: str) -> str:
    """The stack file without what Pulumi adds to it."""
    return re.sub(r"(?m)^encryptionsalt:.*\n?", "", text).strip()


def stack_text() -> str:
    """The stack `demo`, naming the key that lets us into the lab's hosts (below HOME, which is the lab's)."""
    text = without_salt((ROOT / STACK_FILE).read_text()) + "\n"
    if text.count("    user: root\n") != 1 or text.count(OLD_VNI) != 1:
        raise DemoError(f"{STACK_FILE}: has no `user: root` or no `{OLD_VNI}`, which the demo wants; mend one of them")
    return text.replace("    user: root\n", "    user: root\n    identityFile: ~/.ssh/id_ed25519\n")


def project() -> None:
    """A copy of the project with a state of its own: whatever is done in it, the checkout stays as it was."""
    print(f"Copying Pulumi.yaml, __main__.py and {STACK_FILE} to {PROJECT.relative_to(ROOT)}, with a state of its own")
    for folder in ("stacks", "schema", "state"):
        (PROJECT / folder).mkdir(parents=True, exist_ok=True)
    for name in ("Pulumi.yaml", "__main__.py", "schema/overlay-stack.schema.json"):
        shutil.copy2(ROOT / name, PROJECT / name)
    (PROJECT / STACK_FILE).write_text(stack_text())


def change(old: str, new: str) -> None:
    """Edits the demo's stack file."""
    path = PROJECT / STACK_FILE
    print(f"$ sed -i 's/{old}/{new}/' {STACK_FILE}")
    path.write_text(path.read_text().replace(old, new))


def neighbours(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each row with the next, the last with the first."""
    return zip(rows, [*rows[1:], rows[0]], strict=True)


def start_lxc(row: Mapping[str, Any]) -> None:
    """A real container of the plan, with its network as the snippet says it and a DHCP client in it."""
    snippet = f"overlay snippet {row['name']} --stack {STACK}"
    make = f"python -m lab lxc --name {NAME} {row['host']} {row['name']} --start 'udhcpc -i eth0 &'"
    run(f"{snippet} | {make}", argv=["bash", "-euo", "pipefail", "-c", f"{snippet} | {make}"])


def inside_lxc(row: Mapping[str, Any]) -> str:
    """What comes before a command that runs in that container."""
    return f"{LAB.format('ssh')} {row['host']} lxc-attach --name {row['name']} --"


def wait_for_lease(row: Mapping[str, Any]) -> None:
    """Its DHCP client was started in the background."""
    wait = "i=0; until grep -q nameserver /etc/resolv.conf || test $i -ge 300; do i=$((i+1)); sleep 0.1; done"
    run(wait, argv=[*shlex.split(inside_lxc(row)), f"sh -c {shlex.quote(wait)}"], quiet=True)


def ping_by_name(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """One LXC container pings another by its name. Raises DemoError when that does not answer."""
    run(
        f"{inside_lxc(a)} ping -c 2 {b['name']}.{b['segment']}.example",
        keep=lambda line: line.startswith("PING") or "packets transmitted" in line,
        wrong=f"{a['name']} on {a['host']} does not reach {b['name']} on {b['host']} by its name",
    )


def pings(rows: Sequence[Mapping[str, Any]]) -> None:
    """The stand-ins of a segment ping everybody in it. Raises DemoError when one does not answer."""
    for a, b in ((a, b) for a in rows for b in rows if a["runtime"] == "none" and b is not a):
        address, size = b["address"].partition("/")[0], b["mtu"] - 28  # IPv4 and ICMP headers
        target = f"ping -c 2 -i 0.2 -W 2 -M do -s {size} {address}"
        run(
            f"python -m lab container exec --name {NAME} {a['host']} {a['name']} -- {target}",
            keep=lambda line: "packets transmitted" in line or "rror" in line,
            wrong=f"{a['name']} on {a['host']} does not reach {b['name']} on {b['host']} ({address})",
        )


def pulumi(words: str, *, keep: Callable[[str], bool] | None = None, excerpt: bool = False) -> None:
    """Pulumi as the lab's operator: with its network, and its ssh files, as in `make demo-shell`."""
    command = f"pulumi {words} --stack {STACK}"
    through = [*shlex.split(f"{LAB.format('exec')} --home --"), *shlex.split(command)]
    # A terminal shows the tree that fills in; without one Pulumi writes a line an event.
    plain = excerpt or not sys.stdout.isatty()
    if not plain:
        run(command, argv=through)
    elif excerpt:
        print(f"$ {command}")
        text = output(shlex.join([*through, "--color", "never"]), command=command)
        lines = text.splitlines()
        shown = list(changes(lines))
        print(*shown, sep="\n")
        print(f"  ({len(shown)} of {len(lines)} lines: those that change, and what they are in)")
    else:
        run(command, argv=[*through, "--color", "never"], keep=keep)


def overlay(words: str) -> None:
    """The command `overlay` where Pulumi runs, too."""
    command = f"overlay {words} --stack {STACK}"
    run(command, argv=[*shlex.split(f"{LAB.format('exec')} --home --"), *shlex.split(command)])


def readable_progress() -> Callable[[str], bool]:
    """Of Pulumi's line an event: each resource once (also when it made a remark), and what the agents say."""
    noise = re.compile(r"ing \(\d+s\)\s*$|^@ |^\s*$|created \([\d.]+s\) \S|index:\w+ \S+ created|pulumi:pulumi:Stack")
    return lambda line: not noise.search(line) or "warning" in line or "error" in line


def changes(lines: Sequence[str]) -> Iterator[str]:
    """The lines of a Pulumi diff that change a value, each below the lines that it is in."""
    above: list[tuple[int, int, str]] = []  # depth, line number, text
    said: set[int] = set()
    for number, line in enumerate(lines):
        text = line.lstrip(" ~+-")
        depth = len(line) - len(text)
        if text.startswith("[urn=") and above:
            # The resource's name belongs to the line that says its type.
            at, where, kind = above[-1]
            above[-1] = (at, where, f"{kind}  {text.rpartition('::')[2].rstrip(']')}")
        elif text and not text.startswith(("[id=", "[provider=")):
            while above and above[-1][0] >= depth:
                above.pop()
            above.append((depth, number, line))
        if " => " in line:
            yield from (parent for _, where, parent in above if where not in said)
            said.update(where for _, where, _ in above)


# -- telling and running ---------------------------------------------------------------------


def say(text: str) -> None:
    """What comes next."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}== {text}{plain}", flush=True)


def environment() -> dict[str, str]:
    """tools/env.sh's, with the demo's own state; only the lab's key is offered to the hosts."""
    env = {**os.environ, "PULUMI_BACKEND_URL": f"file://{PROJECT / 'state'}"}
    env.pop("SSH_AUTH_SOCK", None)
    env.pop("PULUMI_STACK", None)
    return env


def run(
    command: str,
    *,
    argv: Sequence[str] = (),
    keep: Callable[[str], bool] | None = None,
    quiet: bool = False,
    wrong: str = "",
) -> None:
    """Shows the command, runs it in the demo's project and lets its output through as it comes (of it only
    the lines to `keep`). Raises DemoError."""
    if not quiet:
        print(f"$ {command}", flush=True)
    everything: list[str] = []
    with subprocess.Popen(
        list(argv) or shlex.split(command),
        cwd=PROJECT if PROJECT.exists() else ROOT,
        env=environment(),
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if keep or quiet else None,
        stderr=subprocess.STDOUT if keep or quiet else None,
    ) as process:
        for line in process.stdout or ():
            everything.append(line)
            if not quiet and keep and keep(line):
                print(line, end="", flush=True)
    if process.returncode:
        if quiet:
            print(f"$ {command}")
        if keep or quiet:
            print("".join(everything), end="")
        raise DemoError(wrong or f"`{command}` failed with exit code {process.returncode}; what it said stands above")


def output(argv: str, *, command: str = "") -> str:
    """What a command prints. Raises DemoError with what it said."""
    words = shlex.split(argv)
    cwd, env = PROJECT, environment()
    done = subprocess.run(
        words, cwd=cwd, env=env, text=True, errors="replace", capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        print(done.stdout + done.stderr, end="")
        said = command or argv
        raise DemoError(f"`{said}` failed with exit code {done.returncode}; what it said stands above")
    return done.stdout


@contextmanager
def alone() -> Iterator[None]:
    """One demo at a time in a checkout. Raises DemoError."""
    path = ROOT / ".lab" / f"{NAME}.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError("another `make demo` of this checkout is at work; wait for its end") from None
        yield


def main(arguments: Sequence[str]) -> int:
    """`demo.py up|down|shell`."""
    verbs = {"up": up, "down": down, "shell": shell}
    if len(arguments) != 1 or arguments[0] not in verbs:
        print(f"usage: demo.py {'|'.join(verbs)}", file=sys.stderr)
        return 2
    try:
        if arguments[0] == "shell":
            shell()
        with alone():
            verbs[arguments[0]]()
    except (DemoError, LabError, OSError) as error:
        sys.stdout.flush()
        print(f"\ndemo: {error}", file=sys.stderr)
        if arguments[0] == "up":
            print("demo: what is up stays, to be looked at; `make demo` begins afresh", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: stopped; `make demo` begins afresh, `make demo-down` removes what is up", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
