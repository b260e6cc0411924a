"""How hosts are found and trusted, as cases: (config, known_hosts, wanted) -> connection | exact messages.

Keys, agent and servers are real; HOME is the test's own folder. `<ed>` in a case is the ed25519 key's public line,
`<ed:fp>` its fingerprint, `<port>` the port of the server that answers.
"""

# ruff: noqa: E501 -- a case, and an exact message, is best read as one line

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hmac import digest
from pathlib import Path

import paramiko
import pytest

from overlay_components import connection, ssh
from overlay_components.connection import Connection, ConnectionProblem, Operator, Wanted, resolve

NEEDS_SSHD = pytest.mark.skipif(
    not Path("/usr/sbin/sshd").exists() or os.geteuid() != 0, reason="needs root and /usr/sbin/sshd"
)
OTHERS = "which another operator may not have"


def keygen(path, *options):
    subprocess.run(["ssh-keygen", "-q", "-C", "", "-N", "", *options, "-f", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Files of one key of each sort, by name; made once, because RSA takes its time."""
    folder = tmp_path_factory.mktemp("keys")
    sorts = {
        "ed": ["-t", "ed25519"],
        "ed2": ["-t", "ed25519"],
        "ec": ["-t", "ecdsa"],
        "rsa": ["-t", "rsa", "-b", "2048"],
        "pem": ["-t", "ecdsa", "-m", "PEM"],
        "pemlocked": ["-t", "ecdsa", "-m", "PEM", "-N", "secret"],
        "locked": ["-t", "ed25519", "-N", "secret"],
    }
    return {name: keygen(folder / name, *options) for name, options in sorts.items()}


def public(path):
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


def fingerprint(line):
    return "SHA256:" + b64encode(hashlib.sha256(b64decode(line.split()[1])).digest()).decode().rstrip("=")


@pytest.fixture
def fill(keys):
    words = {}
    for name, path in keys.items():
        words[f"<{name}>"] = public(path)
        words[f"<{name}:fp>"] = fingerprint(public(path))

    def replace(text, **more):
        for word, value in [*words.items(), *((f"<{k}>", str(v)) for k, v in more.items())]:
            text = text.replace(word, value)
        return text

    return replace


@pytest.fixture
def home(tmp_path):
    (tmp_path / ".ssh").mkdir()
    return tmp_path


@pytest.fixture
def write(home, fill):
    """Writes one file under HOME/.ssh, with the <words> filled in."""

    def put(name, text, **more):
        path = home / ".ssh" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(fill(text, **more))
        return path

    return put


@pytest.fixture
def login(home, keys):
    """A default key, so that a case can be about something else."""
    shutil.copy(keys["ed"], home / ".ssh" / "id")
    return "~/.ssh/id"


@pytest.fixture
def agent(tmp_path):
    """A real ssh-agent: the function adds keys to it and gives the environment to find it by."""
    sock = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(sock)], stdout=subprocess.DEVNULL)
    env = {**os.environ, "SSH_AUTH_SOCK": str(sock)}
    # Its socket is there a moment before it listens; 2: nobody answers.
    wait_for(lambda: subprocess.run(["ssh-add", "-l"], env=env, check=False, capture_output=True).returncode != 2)

    def add(*paths):
        for path in paths:
            subprocess.run(["ssh-add", "-q", str(path)], env=env, check=True, capture_output=True)
        return {"SSH_AUTH_SOCK": str(sock), "LOGNAME": "me"}

    yield add
    os.kill(process.pid, signal.SIGTERM)
    process.wait(5)


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "did not start"
        time.sleep(0.01)


def operator(home, **environ):
    return Operator(home, {"LOGNAME": "me", **environ})


def problems(where, wanted, operator):
    with pytest.raises(ConnectionProblem) as caught:
        resolve(where, wanted, operator)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


# -- what is said where: all offline -----------------------------------------------------------


@dataclass
class Case:
    name: str
    config: str = ""
    known: str = "web <ed>"
    wanted: dict = field(default_factory=dict)
    host: str = "web"
    port: int = 22
    user: str = "root"
    key: str = "<ed>"
    warnings: list = field(default_factory=list)


FOUND = [
    Case("nothing but the address"),
    Case("the stack file's user and port", known="[web]:2222 <ed>", wanted={"user": "ops", "port": 2222}, user="ops", port=2222),
    Case("the stack file comes before the config", "Host web\n User other\n Port 1", wanted={"user": "ops", "port": 22}, user="ops"),
    Case(
        "user, port and name from the config",
        "Host w*\n User ops\n Port 2222\n HostName %h.example.com\n",
        known="[web.example.com]:2222 <ed>",
        host="web.example.com",
        port=2222,
        user="ops",
        warnings=[
            f"hosts.a: address 'web.example.com' comes from ~/.ssh/config (Host w*), {OTHERS}; write overlay:hosts.a.address: web.example.com",
            f"hosts.a: user 'ops' comes from ~/.ssh/config (Host w*), {OTHERS}; write overlay:hosts.a.user: ops",
            f"hosts.a: port 2222 comes from ~/.ssh/config (Host w*), {OTHERS}; write overlay:hosts.a.port: 2222",
        ],
    ),
    Case(
        "the first value wins, also one before any Host",
        "User=first\nHost web\n User second",
        user="first",
        warnings=[f"hosts.a: user 'first' comes from ~/.ssh/config, {OTHERS}; write overlay:hosts.a.user: first"],
    ),
    Case("a negated pattern", "Host * !web\n User other"),
    Case("quotes and a comment", 'Host "web"  # the web server\n  HostName "web"  # same\n'),
    Case(
        "Match host looks at HostName, originalhost at what was written",
        "Host web\n HostName 192.0.2.1\nMatch host 192.0.2.1 originalhost web,db user me\n User ops\nMatch all\n User no",
        known="web <ed>",
        host="192.0.2.1",
        user="ops",
        warnings=[
            f"hosts.a: address '192.0.2.1' comes from ~/.ssh/config (Host web), {OTHERS}; write overlay:hosts.a.address: 192.0.2.1",
            f"hosts.a: user 'ops' comes from ~/.ssh/config (Match host 192.0.2.1 originalhost web,db user me), {OTHERS}; write overlay:hosts.a.user: ops",
        ],
    ),
    Case("Match that is negated", "Match !localuser me\n User other"),
    Case("Match exec that cannot matter", "Match exec true\n ForwardAgent yes\n User x", wanted={"user": "ops"}, user="ops"),
    Case("Match exec of another host", "Match originalhost db exec true\n User x"),
    Case("ProxyJump none before a general one", "Host web\n ProxyJump none\nHost *\n ProxyJump bastion"),
    Case("ProxyCommand after ProxyJump none", "Host web\n ProxyJump none\nHost *\n ProxyCommand nc %h"),
    Case("no bastion, says the stack file", "ProxyJump bastion", wanted={"proxy": "none"}),
    Case("IPv6", known="2001:db8::1 <ed>", wanted={"address": "2001:db8::1"}, host="2001:db8::1"),
    Case("IPv6 in brackets, other spelling, with port", known="[2001:db8::1]:2222 <ed>", wanted={"address": "[2001:DB8:0::1]", "port": 2222}, host="2001:DB8:0::1", port=2222),
    Case("case of names", known="WEB <ed>"),
    Case("a pattern in known_hosts", known="*.example.com,!bad.example.com <ed>", wanted={"address": "web.example.com"}, host="web.example.com"),
    Case("ed25519 before ECDSA and RSA", known="web <rsa>\nweb <ec>\nweb <ed> with a comment\n"),
    Case("ECDSA when there is no ed25519", known="web <rsa>\nweb <ec>", key="<ec>"),
    Case("rubbish in known_hosts", known="# web\n\nweb\nweb ssh-ed25519 !!!\nweb ssh-ed25519 AAAA\n|1|x|y <ed2>\nweb <ed>\n"),
    Case("the same key twice", known="web <ed>\nweb,192.0.2.1 <ed>"),
    Case("another, revoked key", known="web <ed2>\n@revoked * <ed2>\nweb <ed>"),
    Case("an authority beside a key", known="@cert-authority * <ed2>\nweb <ed>"),
    Case("HostKeyAlias, which has no port", "HostKeyAlias cluster", known="cluster <ed>\n[web]:22 <ed2>\nweb <ed2>", wanted={"port": 22}),
    Case("UserKnownHostsFile", "UserKnownHostsFile ~/.ssh/none ~/.ssh/%h_hosts", known="web <ed2>"),
    Case("GlobalKnownHostsFile", "GlobalKnownHostsFile ~/.ssh/web_hosts", known=""),
    Case("the stack file's host key", known="", wanted={"host_key": "<ec> root@web"}, key="<ec>"),
    Case("the stack file's host key, same as known", wanted={"host_key": "<ed>"}),
    Case("the stack file's host key, another type known", known="web <ec>", wanted={"host_key": "<ed>"}),
    Case(
        "the stack file's host key, another known",
        known="\nweb <ed2>",
        wanted={"host_key": "<ed>"},
        warnings=["hosts.a: hostKey <ed:fp> is not the key in ~/.ssh/known_hosts:2 (<ed2:fp>); the stack file's is used: correct the wrong one"],
    ),
    Case("IdentityAgent that is SSH_AUTH_SOCK", "IdentityAgent SSH_AUTH_SOCK"),
    Case("IdentityAgent none, and there is none", "IdentityAgent none"),
    Case(
        "another IdentityAgent",
        "Host web\n IdentityAgent ~/.1password/agent",
        warnings=[
            ("hosts.a: IdentityAgent '~/.1password/agent' in ~/.ssh/config (Host web) is not used, because pulumi-command asks the "
            "agent of SSH_AUTH_SOCK only; export SSH_AUTH_SOCK=<home>/.1password/agent")
        ],
    ),
    Case(
        "RevokedHostKeys",
        "RevokedHostKeys /etc/ssh/krl",
        warnings=["hosts.a: RevokedHostKeys in ~/.ssh/config is not read; mark revoked keys with @revoked in known_hosts"],
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", FOUND, ids=lambda case: case.name)
def test_found(case, home, write, fill, login, monkeypatch):
    monkeypatch.setattr(connection, "_scan", lambda *_: pytest.fail("a known host was contacted"))
    write("config", case.config)
    write("known_hosts", case.known)
    write("web_hosts", "web <ed>")
    said = {k: fill(v) if isinstance(v, str) else v for k, v in case.wanted.items()}
    got = resolve("hosts.a", Wanted(**{"address": "web", "identity_file": login, **said}), operator(home))
    assert list(got.warnings) == [fill(text, home=home) for text in case.warnings]
    private = (home / ".ssh" / "id").read_text()
    assert got == Connection(case.host, case.port, case.user, fill(case.key), private, None, got.warnings)


def test_hashed_names(home, write, fill, login):
    salt = bytes(range(20))
    name = f"|1|{b64encode(salt).decode()}|{b64encode(digest(salt, b'[web]:2222', 'sha1')).decode()}"
    write("known_hosts", f"{name} <ed>")
    assert resolve("hosts.a", Wanted("web", port=2222, identity_file=login), operator(home)).host_key == fill("<ed>")


def test_ssh_keygen_hashes_alike(home, write, fill, login):
    subprocess.run(
        ["ssh-keygen", "-q", "-H", "-f", str(write("known_hosts", "web <ed>\n"))], check=True, capture_output=True
    )
    assert "web" not in (home / ".ssh" / "known_hosts").read_text()
    assert resolve("hosts.a", Wanted("web", identity_file=login), operator(home)).host_key == fill("<ed>")


def test_include(home, write, login):
    write("config", "Include conf.d/* missing\nHost db\n Include other\nHost *\n Port 22\n")
    write("conf.d/1", "Host web\n User ops\n")
    write("other", "Host web\n Port 1\n")  # stands under Host db
    write("known_hosts", "web <ed>")
    got = resolve("hosts.a", Wanted("web", identity_file=login), operator(home))
    assert (got.user, got.port) == ("ops", 22)
    assert got.warnings == (
        f"hosts.a: user 'ops' comes from ~/.ssh/conf.d/1 (Host web), {OTHERS}; write overlay:hosts.a.user: ops",
        f"hosts.a: port 22 comes from ~/.ssh/config (Host *), {OTHERS}; write overlay:hosts.a.port: 22",
    )


def test_config_agrees_with_ssh(home, write, login):
    """The words that we read mean what ssh -G says they mean."""
    path = write(
        "config",
        "Host a* !ab\n User one\nMatch host *.example.com\n Port 2200\nHost ?b\n HostName %h.example.com\n"
        "Match originalhost ab,ac\n User=two\n Port 2201\nHost *\n User three\n HostKeyAlias %n\n",
    )
    write("known_hosts", "*,[*]:* <ed>")
    someone = operator(home)
    for name in ("a", "ab", "ac", "bb", "c"):
        answer = subprocess.run(["ssh", "-G", "-F", str(path), name], check=True, capture_output=True, text=True).stdout
        said = dict(line.split(" ", 1) for line in answer.splitlines())
        got = resolve("hosts.a", Wanted(name, identity_file=login), someone)
        assert (got.host, got.user, str(got.port)) == (said["hostname"], said["user"], said["port"]), name


# -- the key to log in with --------------------------------------------------------------------


def reach(home, environ, **said):
    return resolve("hosts.a", Wanted("web", **said), Operator(home, {"LOGNAME": "me", **environ}))


@pytest.fixture
def known(write):
    return write("known_hosts", "web <ed>")


def test_agent_with_any_key(home, known, agent, keys):
    assert reach(home, agent(keys["rsa"])).private_key is None


@pytest.mark.parametrize("sort", ["ed", "pem"])
@pytest.mark.parametrize("beside", [True, False], ids=["with .pub", "without .pub"])
def test_agent_with_the_wanted_key(home, known, agent, keys, sort, beside):
    file = Path(shutil.copy(keys[sort], home / "key"))
    if beside:
        shutil.copy(f"{keys[sort]}.pub", home / "key.pub")
    assert reach(home, agent(keys["rsa"], keys[sort]), identity_file=str(file)).private_key is None


def test_agent_with_an_encrypted_key_or_its_public_part(home, known, agent, keys):
    locked = Path(shutil.copy(keys["locked"], home / "key"))
    plain = Path(shutil.copy(keys["locked"], home / "plain"))
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "secret", "-N", "", "-f", str(plain)], check=True)
    environ = agent(plain)
    assert reach(home, environ, identity_file="~/key").private_key is None
    assert reach(home, environ, identity_file=f"{keys['locked']}.pub").private_key is None
    locked.unlink()
    shutil.copy(f"{keys['locked']}.pub", home / "key.pub")
    assert reach(home, environ, identity_file="~/key").private_key is None


def test_agent_without_the_wanted_key(home, known, agent, keys):
    got = reach(home, agent(keys["rsa"]), identity_file=str(keys["ed"]))
    assert got.private_key == keys["ed"].read_text()
    assert got.private_key not in repr(got)
    assert "PRIVATE" not in repr(got)


def test_agent_without_keys(home, known, agent, keys):
    shutil.copy(keys["ed"], home / ".ssh" / "id_ed25519")
    assert reach(home, agent()).private_key == keys["ed"].read_text()


def test_agent_with_too_many_keys(home, known, agent, keys, tmp_path):
    many = [keygen(tmp_path / f"k{n}", "-t", "ed25519") for n in range(7)]
    environ = agent(*many)
    text = "hosts.a: the ssh-agent holds 7 keys and sshd allows 6 tries (MaxAuthTries): {}; remove some with ssh-add -d"
    assert reach(home, environ).warnings == (text.format("any after the sixth is not tried"),)
    assert reach(home, environ, identity_file="~/k5").warnings == ()
    assert reach(home, environ, identity_file="~/k6").warnings == (text.format("that of ~/k6 comes as number 7"),)


def test_identity_files_of_the_config(home, known, write, agent, keys):
    write("config", "Host web\n IdentityFile ~/.ssh/absent\nHost *\n IdentityFile %d/.ssh/%u-key\n")
    shutil.copy(keys["ec"], home / ".ssh" / "me-key")
    warning = (
        f"hosts.a: identityFile '~/.ssh/me-key' comes from ~/.ssh/config (Host *), {OTHERS}; "
        "write overlay:hosts.a.identityFile: ~/.ssh/me-key"
    )
    got = reach(home, {})
    assert (got.private_key, got.warnings) == (keys["ec"].read_text(), (warning,))
    got = reach(home, agent(keys["rsa"], keys["ec"]))
    assert (got.private_key, got.warnings) == (None, (warning,))
    (home / ".ssh" / "me-key").unlink()
    assert reach(home, agent()).private_key is None  # any key of the agent, as ssh does


def test_identity_file_of_the_config_is_missing(home, known, write):
    write("config", "IdentityFile ~/.ssh/absent\n")
    assert problems("hosts.a", Wanted("web"), operator(home)) == [
        (
            "hosts.a: no key to log in with: the ssh-agent (SSH_AUTH_SOCK is not set) and ~/.ssh/absent have none; run "
            "ssh-add FILE, or write overlay:hosts.a.identityFile: FILE, or make one with ssh-keygen -t ed25519 and put "
            "its .pub on the host with ssh-copy-id"
        )
    ]


def test_default_keys(home, known, keys):
    shutil.copy(keys["rsa"], home / ".ssh" / "id_rsa")
    shutil.copy(keys["ec"], home / ".ssh" / "id_ecdsa")
    got = reach(home, {})
    assert got.private_key == keys["ec"].read_text()
    assert got.warnings == (
        (
            "hosts.a: no ssh-agent and no identityFile: ~/.ssh/id_ecdsa of this operator is used and enters the state as a "
            "secret; run ssh-add ~/.ssh/id_ecdsa, or write overlay:hosts.a.identityFile: ~/.ssh/id_ecdsa"
        ),
    )


def test_certificate_in_the_agent(home, known, write, agent, keys):
    for suffix in ("", ".pub"):
        shutil.copy(f"{keys['ec']}{suffix}", home / f"key{suffix}")
    sign = ["ssh-keygen", "-q", "-s", str(keys["ed2"]), "-I", "me", "-n", "root", str(home / "key.pub")]
    subprocess.run(sign, check=True, capture_output=True)
    write("config", "CertificateFile ~/key-cert.pub\n")
    assert reach(home, agent(home / "key")).private_key is None
    assert problems("hosts.a", Wanted("web", identity_file="~/key"), operator(home)) == [
        (
            "hosts.a: CertificateFile '~/key-cert.pub' in ~/.ssh/config is not supported by pulumi-command unless the "
            "ssh-agent holds it; run ssh-add with the key that it belongs to, or leave it out for this host"
        )
    ]


SK = (
    "-----BEGIN OPENSSH PRIVATE KEY-----\n"
    + b64encode(
        b"openssh-key-v1\0\0\0\0\x04none\0\0\0\x04none\0\0\0\0\0\0\0\x01\0\0\0\x1e\0\0\0\x1ask-ssh-ed25519@openssh.com"
    ).decode()
    + "\n-----END OPENSSH PRIVATE KEY-----\n"
)
UNUSABLE = {
    "missing": (None, "cannot be read: No such file or directory; write overlay:hosts.a.identityFile with a private key's file, or ssh-add its key"),
    "encrypted": ("locked", "is encrypted and not in the ssh-agent (SSH_AUTH_SOCK is not set); run ssh-add ~/.ssh/k.pub"),
    "encrypted PEM": ("pemlocked", "is encrypted and not in the ssh-agent (SSH_AUTH_SOCK is not set); run ssh-add ~/.ssh/k.pub"),
    "public": ("ed.pub", "is a public key; write overlay:hosts.a.identityFile: ~/.ssh/k"),
    "security key": (SK, "is on a security key, which only an ssh-agent can use (SSH_AUTH_SOCK is not set); run ssh-add ~/.ssh/k.pub"),
    "not a key": ("PuTTY-User-Key-File-3: ssh-ed25519\n", "is not a private key in OpenSSH or PEM form; convert it (puttygen KEY -O private-openssh-new -o FILE) or name another"),
    "cut off": ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "is not a private key in OpenSSH or PEM form; convert it (puttygen KEY -O private-openssh-new -o FILE) or name another"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_identity_file(home, known, keys, content, message):
    path = home / ".ssh" / "k.pub"
    if content is not None:
        source = keys["ed"].with_name(content) if len(content) < 20 else None
        path.write_text(source.read_text() if source else content)
    got = problems("hosts.a", Wanted("web", identity_file="~/.ssh/k.pub"), operator(home))
    assert got == [f"hosts.a: identityFile '~/.ssh/k.pub' {message}"]


def test_public_key_without_the_suffix(home, known, keys):
    shutil.copy(f"{keys['ed']}.pub", home / "k")
    assert problems("hosts.a", Wanted("web", identity_file="~/k"), operator(home)) == [
        "hosts.a: identityFile '~/k' is a public key; write overlay:hosts.a.identityFile with the private key's file"
    ]


def test_no_agent_answers(home, known, login):
    gone = home / "gone"
    assert problems("hosts.a", Wanted("web", identity_file=login), operator(home, SSH_AUTH_SOCK=str(gone))) == [
        (
            f"SSH_AUTH_SOCK: no ssh-agent answers at '{gone}' (No such file or directory); start one there or unset "
            "SSH_AUTH_SOCK: pulumi-command fails on it even when it is given a key"
        )
    ]


# -- what is refused, without asking the host --------------------------------------------------

SHA1 = "with which pulumi-command can ask for SHA-1 signatures only, which OpenSSH no longer gives"
PROXY_FORM = "is not understood; write [user@]host[:port], an IPv6 address with a port as [2001:db8::1]:22, or none"
NOT_A_KEY = (
    "is not a host key; write it as in the host's /etc/ssh/ssh_host_ed25519_key.pub, without the host's name: "
    "ssh-ed25519 AAAA…"
)
ONE_JUMP = "makes more than one jump, and pulumi-command makes one; name the one bastion that reaches the host"
UNEVALUATED = "which is not evaluated here; write overlay:hosts.a"


@dataclass
class Refused:
    name: str
    problems: list
    config: str = ""
    known: str = "web <ed>\nbastion <ed>"
    wanted: dict = field(default_factory=dict)


REFUSED = [
    Refused("port is no number", ["hosts.a: port 'ssh' in ~/.ssh/config (Host web) is not a number; 1 to 65535"], "Host web\n Port ssh"),
    Refused("port out of range", ["hosts.a: port 70000 in the stack file is out of range; 1 to 65535"], wanted={"port": 70000}),
    Refused("ProxyCommand", ["hosts.a: ProxyCommand 'nc %h %p' in ~/.ssh/config is not supported by pulumi-command; write overlay:hosts.a.proxy with one bastion, or write overlay:hosts.a.proxy: none to connect directly"], "ProxyCommand nc %h %p\nProxyJump x"),
    Refused("two jumps", [f"hosts.a: proxy 'x,y' in ~/.ssh/config {ONE_JUMP}"], "ProxyJump x,y"),
    Refused("two jumps in the stack file", [f"hosts.a: proxy 'x,y' in the stack file {ONE_JUMP}"], wanted={"proxy": "x,y"}),
    Refused("a bastion with a bastion", [f"hosts.a.proxy: proxy 'y' in ~/.ssh/config (Host bastion) {ONE_JUMP}, and write overlay:hosts.a.proxy: {{address: bastion, user: me, proxy: none}}"], "Host bastion\n ProxyJump y\n IdentityFile ~/.ssh/id", wanted={"proxy": "me@bastion"}),
    Refused("a bastion object with a bastion", [f"hosts.a.proxy: proxy 'y' in the stack file {ONE_JUMP}, and write overlay:hosts.a.proxy.proxy: none"], wanted={"proxy": Wanted("bastion", identity_file="~/.ssh/id", proxy="y")}),
    Refused("a bastion that is not understood", [f"hosts.a: proxy 'a b' in the stack file {PROXY_FORM}"], wanted={"proxy": "a b"}),
    Refused("a bastion with two ports", [f"hosts.a: proxy 'b:1:2' in the stack file {PROXY_FORM}"], wanted={"proxy": "b:1:2"}),
    Refused("Match exec", [f"hosts.a: User depends on 'Match exec test -f x' in ~/.ssh/config (Match host web exec \"test -f x\"), {UNEVALUATED}.user, or use Host or Match host there", f"hosts.a: ProxyJump depends on 'Match exec test -f x' in ~/.ssh/config (Match host web exec \"test -f x\"), {UNEVALUATED}.proxy, or use Host or Match host there"], 'Match host web exec "test -f x"\n User x\n ProxyJump y\n Port 3', wanted={"port": 22}),
    Refused("Match final", [f"hosts.a: HostName depends on 'Match final' in ~/.ssh/config (Match final), {UNEVALUATED}.address, or use Host or Match host there"], "Match final\n HostName x"),
    Refused("CanonicalizeHostname", ["hosts.a: CanonicalizeHostname in ~/.ssh/config is not supported; write overlay:hosts.a.address with the full name, and leave it out for this host"], "CanonicalizeHostname yes"),
    Refused("keyword without a value", ["~/.ssh/config:2: 'user' has no value; ssh refuses it too: give it one or remove the line"], "\nUser\n"),
    Refused("hostKey with the host's name", [f"hosts.a: hostKey 'web <ed>' {NOT_A_KEY}"], wanted={"host_key": "web <ed>"}),
    Refused("hostKey is a fingerprint", [f"hosts.a: hostKey '<ed:fp>' {NOT_A_KEY}"], wanted={"host_key": "<ed:fp>"}),
    Refused("hostKey is cut off", [f"hosts.a: hostKey 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA==' {NOT_A_KEY}"], wanted={"host_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA=="}),
    Refused("hostKey is empty", [f"hosts.a: hostKey '' {NOT_A_KEY}"], wanted={"host_key": ""}),
    Refused("hostKey is RSA", [f"hosts.a: hostKey 'ssh-rsa…' is an ssh-rsa key, {SHA1}; write overlay:hosts.a.hostKey with the host's /etc/ssh/ssh_host_ed25519_key.pub"], wanted={"host_key": "<rsa>"}),
    Refused("hostKey is revoked", ["hosts.a: hostKey <ed:fp> is marked @revoked (~/.ssh/known_hosts:1); give the host a new key and write overlay:hosts.a.hostKey with that"], known="@revoked * <ed>", wanted={"host_key": "<ed>"}),
    Refused("two keys of a type", ["hosts.a: 2 different ssh-ed25519 keys of web or 192.0.2.1 are known (~/.ssh/known_hosts:1 and ~/.ssh/known_hosts:2); remove the old one, or write overlay:hosts.a.hostKey"], "HostName 192.0.2.1", known="web <ed>\n192.0.2.1 <ed2>"),
    Refused(
        "all at once",
        [
            "hosts.a: port 0 in the stack file is out of range; 1 to 65535",
            f"hosts.a: proxy '@' in the stack file {PROXY_FORM}",
            "hosts.a: identityFile '~/no' cannot be read: No such file or directory; write overlay:hosts.a.identityFile with a private key's file, or ssh-add its key",
            f"hosts.a: hostKey 'x' {NOT_A_KEY}",
        ],
        wanted={"port": 0, "proxy": "@", "identity_file": "~/no", "host_key": "x"},
    ),
    Refused(
        "an unknown host behind a bastion that is not settled",
        [
            f"hosts.a: proxy 'x,y' in the stack file {ONE_JUMP}",
            "hosts.a: the host key of web is not known, and the host cannot be asked for it before its proxy is settled; settle that first, or write overlay:hosts.a.hostKey: ssh-ed25519 AAAA… from the host's /etc/ssh/ssh_host_ed25519_key.pub",
        ],
        known="",
        wanted={"proxy": "x,y"},
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_refused(case, home, write, fill, login, monkeypatch):
    monkeypatch.setattr(connection, "_scan", lambda *_: pytest.fail("the host was contacted"))
    write("config", case.config)
    write("known_hosts", case.known)
    said = {k: fill(v) if isinstance(v, str) else v for k, v in case.wanted.items()}
    got = problems("hosts.a", Wanted(**{"address": "web", "identity_file": login, **said}), operator(home))
    assert got == [fill(text) for text in case.problems]


def test_unreadable_config(home):
    (home / ".ssh" / "config").mkdir()
    assert operator(home).problems == ["~/.ssh/config: cannot be read: Is a directory; make it readable"]


# -- asking an unknown host for its key --------------------------------------------------------


class Server:
    """Speaks enough SSH to show its host keys, on a port of 127.0.0.1."""

    def __init__(self, keys):
        self.keys = [ssh.private_key(path.read_text()) for path in keys]
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.asked = 0
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                channel = self.listener.accept()[0]
            except OSError:
                return
            self.asked += 1
            transport = paramiko.Transport(channel)
            for key in self.keys:
                transport.add_server_key(key)
            transport.start_server(threading.Event(), paramiko.ServerInterface())


@pytest.fixture
def server(keys):
    servers = []

    def start(*names):
        servers.append(Server([keys[name] for name in names]))
        return servers[-1]

    yield start
    for one in servers:
        one.listener.close()


ON_HOST = "the host's /etc/ssh/ssh_host_ed25519_key.pub"


def shows(key="ed", kind="ed25519", accept="ssh-keyscan -t <kind> -p <port> 127.0.0.1 >> ~/.ssh/known_hosts"):
    text = (
        f"; the host shows <{key}:fp>: compare it, on the host, with ssh-keygen -lf /etc/ssh/ssh_host_<kind>_key.pub, "
        f"and when they are equal write overlay:hosts.a.hostKey: <{key}>, or run {accept}"
    )
    return text.replace("<kind>", kind)


NOT_KNOWN = "hosts.a: the host key of [127.0.0.1]:<port> is not known"
ASKED = {
    "unknown": ("rsa ed ec", "", "", NOT_KNOWN + shows()),
    "unknown, no ed25519": ("rsa ec", "", "", NOT_KNOWN + shows("ec", "ecdsa")),
    "unknown, with an alias": ("ed", "HostKeyAlias c", "", "hosts.a: the host key of c is not known" + shows(accept="ssh -p <port> root@127.0.0.1 and answer yes")),
    "unknown, with another file": ("ed", "UserKnownHostsFile /x/hosts", "", NOT_KNOWN + shows(accept="ssh-keyscan -t ed25519 -p <port> 127.0.0.1 >> /x/hosts")),
    "only RSA known": ("ed rsa", "", "[127.0.0.1]:<port> <rsa>", "hosts.a: only the ssh-rsa key of [127.0.0.1]:<port> is known (~/.ssh/known_hosts:1), and with it pulumi-command can ask for SHA-1 signatures only, which OpenSSH no longer gives" + shows()),
    "only an authority": ("ed", "", "@cert-authority * <ed2>", "hosts.a: only a @cert-authority vouches for [127.0.0.1]:<port> (~/.ssh/known_hosts:1), and pulumi-command knows no host certificates" + shows()),
    "revoked, and it has a new one": ("ed", "", "@revoked * <ed2>\n[127.0.0.1]:<port> <ed2>", "hosts.a: the known host key of [127.0.0.1]:<port> is marked @revoked (~/.ssh/known_hosts:1)" + shows()),
    "revoked, and it still shows it": ("ed", "", "@revoked * <ed>\n[127.0.0.1]:<port> <ed>", "hosts.a: the known host key of [127.0.0.1]:<port> is marked @revoked (~/.ssh/known_hosts:1), and the host still shows it (<ed:fp>); give the host a new key with ssh-keygen, after finding out why this one was revoked"),
    "it has RSA only": ("rsa", "", "", NOT_KNOWN + f", and 127.0.0.1 port <port> cannot be asked for it: it offers neither an ed25519 nor an ECDSA host key (run ssh-keygen -A there); make the host reachable, or write overlay:hosts.a.hostKey: ssh-ed25519 AAAA… from {ON_HOST}"),
}  # fmt: skip


@pytest.mark.parametrize(("shown", "config", "known_hosts", "message"), ASKED.values(), ids=ASKED)
def test_asked(home, write, fill, login, server, shown, config, known_hosts, message):
    one = server(*shown.split())
    write("config", config)
    write("known_hosts", known_hosts, port=one.port)
    got = problems("hosts.a", Wanted("127.0.0.1", port=one.port, identity_file=login), operator(home))
    assert got == [fill(message, port=one.port)]


def test_the_advice_works(home, write, login, server):
    """What the message says to write and to run is accepted, and then the host is not asked again."""
    one = server("ed", "ec")
    wanted = Wanted("127.0.0.1", port=one.port, identity_file=login)
    [message] = problems("hosts.a", wanted, operator(home))
    asked = one.asked
    key = re.search(r"hostKey: (ssh-ed25519 \S+), or run (ssh-keyscan .*)", message)
    stated = resolve(
        "hosts.a", Wanted("127.0.0.1", port=one.port, identity_file=login, host_key=key[1]), operator(home)
    )
    assert one.asked == asked
    subprocess.run(key[2], shell=True, check=True, capture_output=True, env={**os.environ, "HOME": str(home)})  # noqa: S602
    asked = one.asked
    assert resolve("hosts.a", wanted, operator(home)) == stated
    assert one.asked == asked


def test_the_advice_runs_nothing_but_itself(home, write, login, server):
    one = server("ed")
    write("config", "HostKeyAlias c")
    wanted = Wanted("127.0.0.1", "$(id)", one.port, login)
    [message] = problems("hosts.a", wanted, operator(home))
    assert message.endswith(f", or run ssh -p {one.port} '$(id)@127.0.0.1' and answer yes")


def unreachable(port, reason):
    return [
        (
            f"hosts.a: the host key of [127.0.0.1]:{port} is not known, and 127.0.0.1 port {port} cannot be asked for it: "
            f"{reason}; make the host reachable, or write overlay:hosts.a.hostKey: ssh-ed25519 AAAA… from {ON_HOST}"
        )
    ]


def test_nobody_listens(home, login):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    got = problems("hosts.a", Wanted("127.0.0.1", port=port, identity_file=login), operator(home))
    assert got == unreachable(port, "Connection refused")


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-x\r\n"], ids=["silent", "stuck"])
def test_host_hangs(home, login, monkeypatch, greeting):
    monkeypatch.setattr(ssh, "STEP_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        kept = []

        def greet():
            kept.append(listener.accept()[0])
            kept[0].sendall(greeting)

        threading.Thread(target=greet, daemon=True).start()
        started = time.monotonic()
        got = problems("hosts.a", Wanted("127.0.0.1", port=port, identity_file=login), operator(home))
        assert time.monotonic() - started < 3
        kept[0].close()
    assert got == unreachable(port, "no SSH answer within 0.3 s")


def test_no_such_name(home, login):
    [got] = problems("hosts.a", Wanted("web.invalid", identity_file=login), operator(home))
    assert got.startswith(
        "hosts.a: the host key of web.invalid is not known, and web.invalid port 22 cannot be asked for it: "
    )


# -- bastions ----------------------------------------------------------------------------------


BASTIONS = {
    "text": ("", "ops@jump:2222", ("jump", 2222, "ops"), []),
    "text with IPv6": ("", "[2001:db8::9]:2222", ("2001:db8::9", 2222, "root"), []),
    "bare IPv6": ("", "ops@2001:db8::9", ("2001:db8::9", 22, "ops"), []),
    "URI": ("", "ssh://ops@jump:2222", ("jump", 2222, "ops"), []),
    "object": ("", Wanted("jump", "ops", 2222, "~/.ssh/id"), ("jump", 2222, "ops"), []),
    "ProxyJump": (
        "Host web\n ProxyJump ops@jump:2222\n",
        None,
        ("jump", 2222, "ops"),
        [f"hosts.a: proxy 'ops@jump:2222' comes from ~/.ssh/config (Host web), {OTHERS}; write overlay:hosts.a.proxy: ops@jump:2222"],
    ),
    "ProxyJump for all, the bastion too": (
        "Host jump\n HostName 192.0.2.9\n User ops\n Port 2222\nHost *\n ProxyJump jump\n",
        None,
        ("192.0.2.9", 2222, "ops"),
        [
            f"hosts.a: proxy 'jump' comes from ~/.ssh/config (Host *), {OTHERS}; write overlay:hosts.a.proxy: jump",
            f"hosts.a.proxy: address '192.0.2.9' comes from ~/.ssh/config (Host jump), {OTHERS}; write overlay:hosts.a.proxy: {{address: 192.0.2.9}}",
            f"hosts.a.proxy: user 'ops' comes from ~/.ssh/config (Host jump), {OTHERS}; write overlay:hosts.a.proxy: {{address: jump, user: ops}}",
            f"hosts.a.proxy: port 2222 comes from ~/.ssh/config (Host jump), {OTHERS}; write overlay:hosts.a.proxy: {{address: jump, port: 2222}}",
        ],
    ),
    "object completed by the config": (
        "Host jump\n User ops\n",
        Wanted("jump", port=2222),
        ("jump", 2222, "ops"),
        [f"hosts.a.proxy: user 'ops' comes from ~/.ssh/config (Host jump), {OTHERS}; write overlay:hosts.a.proxy.user: ops"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("config", "proxy", "end", "warnings"), BASTIONS.values(), ids=BASTIONS)
def test_bastion(home, write, fill, login, agent, keys, config, proxy, end, warnings):
    write("config", config)
    write("known_hosts", "web <ed>\n*,[*]:* <ec>")
    got = reach(home, agent(keys["rsa"]), proxy=proxy)
    key = None if not isinstance(proxy, Wanted) or not proxy.identity_file else got.proxy.private_key
    host, port, user = end
    assert got.proxy == Connection(host, port, user, fill("<ec>"), key, None, ())
    assert list(got.warnings) == warnings


@pytest.fixture
def bastion(tmp_path, keys):
    """A real sshd that lets root in with the key `ec` and forwards; gives its port."""
    Path("/run/sshd").mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shutil.copy(f"{keys['ec']}.pub", tmp_path / "authorized")
    process = subprocess.Popen(
        [
            *("/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", str(keys["ed2"]), "-p", str(port)),
            *("-o", "ListenAddress=127.0.0.1", "-o", f"AuthorizedKeysFile={tmp_path}/authorized"),
            *("-o", "StrictModes=no", "-o", "PidFile=none", "-o", "PermitRootLogin=yes", "-o", "UsePAM=no"),
        ],
        stderr=subprocess.DEVNULL,
    )

    def listens():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens)
    yield port
    os.kill(process.pid, signal.SIGTERM)
    process.wait(5)


@NEEDS_SSHD
@pytest.mark.parametrize("by_agent", [True, False], ids=["agent", "key file"])
def test_asked_through_a_bastion(home, write, fill, login, agent, keys, server, bastion, by_agent):
    one = server("ed", "rsa")
    write("known_hosts", "[127.0.0.1]:<bastion> <ed2>", bastion=bastion)
    proxy = Wanted("127.0.0.1", "root", bastion, str(keys["ec"]))
    environ = agent(keys["rsa"], keys["ec"]) if by_agent else {}
    wanted = Wanted("127.0.0.1", port=one.port, identity_file=login, proxy=proxy)
    got = problems("hosts.a", wanted, operator(home, **environ))
    accept = "ssh -J root@127.0.0.1:<bastion> -p <port> root@127.0.0.1 and answer yes"
    assert got == [fill(NOT_KNOWN + shows(accept=accept), port=one.port, bastion=bastion)]


@NEEDS_SSHD
def test_bastion_that_refuses(home, write, fill, login, agent, keys, bastion):
    def reason(port, known, environ, identity_file):
        write("known_hosts", f"[127.0.0.1]:{bastion} {known}")
        proxy = Wanted("127.0.0.1", "root", bastion, identity_file)
        wanted = Wanted("127.0.0.1", port=port, identity_file=login, proxy=proxy)
        [text] = problems("hosts.a", wanted, operator(home, **environ))
        start = (
            fill(NOT_KNOWN, port=port)
            + f", and 127.0.0.1 port {port} through 127.0.0.1 port {bastion} cannot be asked for it: "
        )
        end = f"; make the host reachable, or write overlay:hosts.a.hostKey: ssh-ed25519 AAAA… from {ON_HOST}"
        assert text.startswith(start)
        assert text.endswith(end)
        return text.removeprefix(start).removesuffix(end)

    ec = str(keys["ec"])
    assert reason(1, "<ed>", {}, ec) == "the bastion shows another host key than the known one"
    assert reason(1, "<ed2>", agent(keys["rsa"]), None) == "the bastion refuses root's keys"
    assert reason(1, "<ed2>", {}, str(keys["ed"])) == "Authentication failed."
    assert reason(1, "<ed2>", {}, ec) == "the bastion says 'Connect failed'"


def test_unknown_bastion_and_host(home, write, fill, login, server):
    one = server("ed")
    wanted = Wanted("web", identity_file=login, proxy=f"127.0.0.1:{one.port}")
    write("config", "Host 127.0.0.1\n IdentityFile ~/.ssh/id\n")
    first = (
        "hosts.a.proxy: the host key of [127.0.0.1]:<port> is not known; the host shows <ed:fp>: compare it, on the host, with "
        "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, and when they are equal write overlay:hosts.a.proxy: {address: 127.0.0.1, "
        "port: <port>, hostKey: <ed>}, or run ssh-keyscan -t ed25519 -p <port> 127.0.0.1 >> ~/.ssh/known_hosts"
    )
    second = (
        "hosts.a: the host key of web is not known, and the host cannot be asked for it before its proxy is settled; settle that "
        f"first, or write overlay:hosts.a.hostKey: ssh-ed25519 AAAA… from {ON_HOST}"
    )
    assert problems("hosts.a", wanted, operator(home)) == [fill(first, port=one.port), second]


@pytest.mark.parametrize(
    "options",
    [
        ["-t", "ed25519"],
        ["-t", "rsa", "-b", "1024"],
        *[["-t", "ecdsa"]] * 8,
        ["-t", "ecdsa", "-m", "PEM"],
        ["-t", "ecdsa", "-m", "PKCS8"],
    ],
)
def test_private_keys_load(tmp_path, options):
    """Eight times ECDSA, because paramiko itself refuses about every second one."""
    path = keygen(tmp_path / "key", *options)
    loaded = ssh.private_key(path.read_text())
    assert f"{loaded.get_name()} {loaded.get_base64()}" == public(path)


# -- many hosts --------------------------------------------------------------------------------


def test_the_operator_is_read_once(home, write, agent, keys, monkeypatch):
    write("config", "Host h*\n User ops\n")
    write("known_hosts", "".join(f"h{n} <ed>\n" for n in range(50)))
    someone = Operator(home, agent(keys["ec"]))
    monkeypatch.setattr(Operator, "_list_agent", lambda _: pytest.fail("the agent was asked again"))
    reads = []
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: (reads.append(self.name), read(self, *a, **k))[1])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: resolve(f"hosts.h{n}", Wanted(f"h{n}"), someone), range(50)))
    assert {(one.user, one.private_key) for one in found} == {("ops", None)}
    assert sorted(reads) == ["known_hosts", "known_hosts2", "ssh_known_hosts", "ssh_known_hosts2"]


def test_the_shape_of_yaml_advice():
    """What we say to write is read back as the same value."""
    yaml = pytest.importorskip("yaml")
    for value in ("ops", "~/.ssh/id", "192.0.2.1", "2001:db8::1", "ops@h:22", "a b", "it's", "#x", "a: b", "10"):
        text = connection._yaml(value)
        assert str(yaml.safe_load(f"{{address: {text}}}")["address"]) == value, text
