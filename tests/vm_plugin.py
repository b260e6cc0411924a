"""Runs tests in a VM with a stock kernel where this machine's kernel cannot run them, and returns their results.

A test (or a module) says what it needs: `@pytest.mark.kinds("gretap")`. Where the running kernel has that, nothing
happens. Where not, the first such test of a file boots one VM, in which one pytest runs all of the file's selected
tests of that sort; each is reported here as if it had run here, with `uname -r` from inside as its property "kernel".
With OVERLAY_VM=1 all tests of the host tiers go that way.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest

INSIDE = "OVERLAY_VM_REPORTS"  # in the guest: the number of the file descriptor that takes the reports
EVERYTHING = "OVERLAY_VM"
HOST_TIERS = ("netns", "e2e")
#: A test in the guest may take this long, s; its own kernel is an emulated one.
PATIENCE = int(os.environ.get("OVERLAY_VM_PATIENCE", "900"))

#: How a device of each kind is made, in a new network namespace: what the kernel does is the only honest answer.
PROBES = {
    "dummy": "ip link add k type dummy",
    "gretap": "ip link add k type gretap local 192.0.2.1 remote 192.0.2.2",
    "ip6gretap": "ip link add k type ip6gretap local 2001:db8::1 remote 2001:db8::2",
    "l2tp": "ip link set lo up && ip l2tp add tunnel tunnel_id 1 peer_tunnel_id 1 encap ip local 127.0.0.1 "
    "remote 127.0.0.1 && ip l2tp add session name k tunnel_id 1 session_id 1 peer_session_id 1",
    "vlan": "ip link add p type bridge && ip link add link p name k type vlan id 5",
    "wireguard": "ip link add k type wireguard",
}


@functools.cache
def lacks(kind: str) -> bool:
    """Whether the running kernel cannot make a device of this kind. Nobody but root can find out: then False, and
    the test says itself that it needs root."""
    if os.geteuid() != 0:
        return False
    probe = ["unshare", "--net", "sh", "-c", PROBES[kind]]
    return subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode != 0


def lacking(item: pytest.Item) -> list[str]:
    """The kinds that the test needs and the running kernel lacks."""
    names = {name for mark in item.iter_markers("kinds") for name in mark.args}
    if unknown := sorted(names - set(PROBES)):
        raise pytest.UsageError(f"{item.nodeid}: kinds: {', '.join(unknown)}: there are {', '.join(PROBES)}")
    return sorted(name for name in names if lacks(name))


def pytest_configure(config: pytest.Config) -> None:
    """One plugin for the outside, one for the inside."""
    config.pluginmanager.register(Inside(config) if INSIDE in os.environ else Outside(config), "vm-lab")


class Inside:
    """In the guest: says what happened, one line of JSON for each thing, as soon as it has."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        descriptor = int(os.environ[INSIDE])
        os.set_inheritable(descriptor, False)
        self.stream = os.fdopen(descriptor, "w")

    def say(self, **what) -> None:
        self.stream.write(json.dumps(what, default=str) + "\n")
        self.stream.flush()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if missing := lacking(item):
            pytest.fail(f"the VM's kernel {os.uname().release} lacks {', '.join(missing)} too", pytrace=False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        report.user_properties.append(("kernel", os.uname().release))
        self.say(report=self.config.hook.pytest_report_to_serializable(config=self.config, report=report))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.say(finished=nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.say(collecting=f"{report.nodeid}: {report.longreprtext}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.say(done=int(exitstatus))


class Outside:
    """Here: sends items into VMs and passes their reports on."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.guest: Guest | None = None
        self.ran: Counter[str] = Counter()  # on the controller: tests by kernel
        self.why: dict[str, set[str]] = {}

    def goes(self, item: pytest.Item) -> bool:
        """Whether the item runs in a VM."""
        if os.environ.get(EVERYTHING) == "1":
            return any(item.path.is_relative_to(item.config.rootpath / "tests" / tier) for tier in HOST_TIERS)
        return bool(lacking(item))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if self.goes(item):
                # The limits of time are those of the guest; ours would count its boot as the first test's.
                item.add_marker(pytest.mark.timeout(0), append=False)
                item.user_properties.append(("lacking", ", ".join(lacking(item))))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if not self.goes(item):
            return None
        if self.guest is None or self.guest.path != item.path:
            self.leave()
            mine = [one.nodeid for one in item.session.items if one.path == item.path and self.goes(one)]
            self.guest = Guest(item.path, mine[mine.index(item.nodeid) :], self.config)
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self.guest.reports(item):
            hook.pytest_runtest_logreport(report=report)
        # What an earlier test of ours left set up for this file or folder goes, as after any other test.
        end = functools.partial(item.session._setupstate.teardown_exact, nextitem)
        teardown = pytest.CallInfo.from_call(end, "teardown", (pytest.exit.Exception, KeyboardInterrupt))
        if teardown.excinfo is not None:
            hook.pytest_runtest_logreport(report=pytest.TestReport.from_item_and_call(item, teardown))
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if nextitem is None or nextitem.path != item.path or item.session.shouldstop or item.session.shouldfail:
            self.leave()
        return True

    def leave(self) -> None:
        """End the guest, if there is one."""
        if self.guest is not None:
            self.guest.close()
            self.guest = None

    def pytest_sessionfinish(self) -> None:
        self.leave()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        kernel = dict(report.user_properties).get("kernel")
        if kernel and (report.when == "call" or report.outcome != "passed"):
            self.ran[kernel] += 1
            self.why.setdefault(kernel, set()).update(
                filter(None, str(dict(report.user_properties).get("lacking", "")).split(", "))
            )

    def pytest_terminal_summary(self, terminalreporter) -> None:
        for kernel, number in sorted(self.ran.items()):
            missing = ", ".join(sorted(self.why[kernel]))
            why = f" ({missing}: not in this machine's {os.uname().release})" if missing else ""
            terminalreporter.write_line(f"VM lab: {number} test{'s' * (number != 1)} ran on Linux {kernel}{why}")


class Guest:
    """One VM with one pytest in it, for the items of one file."""

    def __init__(self, path: Path, nodeids: list[str], config: pytest.Config) -> None:
        from lab import LabError, _vm  # the agent's tests run on Python 3.9 too, which knows less than the lab needs

        self.path, self.config = path, config
        self.found: dict[str, list[pytest.TestReport]] = {}
        self.finished: set[str] = set()
        self.ended = ""  # why there will be no more reports
        self.skip = ""  # why there could be none
        self.news = threading.Condition()
        self.log = tempfile.NamedTemporaryFile("w", suffix=".log")  # noqa: SIM115 - closed, and so removed, by close()
        self.vm = None
        self.process: subprocess.Popen[str] | None = None
        self.reader: threading.Thread | None = None
        reason = _vm.why_not()
        if reason:
            self.ended = reason
            # As everywhere: who may not install what a test needs is told so, and the test is skipped.
            self.skip = reason if os.geteuid() != 0 or not Path("/usr/bin/apt-get").exists() else ""
            return
        try:
            self.vm = _vm.Vm().__enter__()
            self.start(nodeids, _vm.CHECKOUT / ".venv/bin/python")
        except (LabError, OSError, subprocess.SubprocessError) as error:
            self.ended = str(error)
            self.close()

    def start(self, nodeids: list[str], python: Path) -> None:
        """Start pytest in the guest, and a thread that reads what it says."""
        listing = f"/tmp/nodeids-{uuid.uuid4()}"  # noqa: S108 - the guest's, and of this name nobody else's
        self.vm.run(f"cat > {listing}", input="\n".join(nodeids) + "\n")
        # Hypothesis, of which no test of hosts makes use, would be almost half of pytest's start.
        options = [word for name in ("cacheprovider", "xdist", "hypothesispytest") for word in ("-p", f"no:{name}")]
        options += [f"--timeout={PATIENCE}", "--tb", self.tracebacks()]
        if (verbose := self.config.option.verbose) > 0:
            options.append("-" + "v" * verbose)
        words = " ".join([str(python), "-m", "pytest", *options, f"@{listing}"])
        # Reports go to the descriptor, what pytest prints to its log: of interest only if the former end too early.
        self.process = self.vm.popen(
            f"cd {self.config.rootpath} && {INSIDE}=3 PATH={python.parent}:$PATH exec {words} 3>&1 1>&2 </dev/null",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        self.reader = threading.Thread(target=self.read, args=[self.process], daemon=True)
        self.reader.start()

    def tracebacks(self) -> str:
        style = self.config.option.tbstyle
        return "auto" if style in (None, "no") else str(style)

    def read(self, process: subprocess.Popen[str]) -> None:
        """Take reports until there are no more."""
        done = False
        for line in process.stdout:
            with self.news:
                what = json.loads(line)
                if "report" in what:
                    report = self.config.hook.pytest_report_from_serializable(config=self.config, data=what["report"])
                    if isinstance(report.longrepr, list):  # a skip's place and reason, which JSON knows no tuple for
                        report.longrepr = tuple(report.longrepr)
                    self.found.setdefault(report.nodeid, []).append(report)
                self.finished.update([what["finished"]] if "finished" in what else [])
                self.ended += what.get("collecting", "")
                done = done or "done" in what
                self.news.notify_all()
            if done:
                break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)  # then its log is whole
        with self.news:
            ended = "its pytest did not run this test" if done else f"its pytest ended too early ({process.returncode})"
            self.ended = self.ended or ended
            self.ended += self.last_words()
            self.news.notify_all()

    def last_words(self) -> str:
        """What the guest said last."""
        text = "\n".join(Path(self.log.name).read_text(errors="replace").splitlines()[-60:])
        return f"\n---- pytest in the VM said:\n{text}\n---- the VM's console:\n{self.vm.console() if self.vm else ''}"

    def reports(self, item: pytest.Item):
        """The reports of one test as they come; at the worst one that says why there are none."""
        deadline = time.monotonic() + PATIENCE + 120  # pytest in the guest keeps the limit itself, if it can
        given = 0
        while True:
            with self.news:
                found = self.found.setdefault(item.nodeid, [])
                while len(found) == given and item.nodeid not in self.finished and not self.ended:
                    if not self.news.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                        self.ended = f"nothing came for {PATIENCE + 120} s" + self.last_words()
                fresh = found[given:]
            if not fresh:
                break
            for report in fresh:
                report.user_properties.extend(item.user_properties)
                yield report
            given += len(fresh)
        if item.nodeid not in self.finished:
            yield self.failure(item)

    def failure(self, item: pytest.Item) -> pytest.TestReport:
        """The report of a test that has none."""
        if self.skip:
            outcome, text = "skipped", (str(item.path), item.location[1] or 0, f"Skipped: {self.skip}")
        else:
            outcome, text = "failed", f"{item.nodeid} has no result from the VM lab: {self.ended}"
        return pytest.TestReport(
            item.nodeid, item.location, dict.fromkeys(item.keywords, 1), outcome, text, "setup",
            user_properties=[*item.user_properties],
        )  # fmt: skip

    def close(self) -> None:
        """End the VM at once."""
        if self.vm is not None:
            self.vm.close()
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        if self.reader is not None:
            self.reader.join(10)  # it may be about to read the log
        self.log.close()
