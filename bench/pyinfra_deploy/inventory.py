"""The lab's hosts, from the environment; their keys must be known."""

import os
from pathlib import Path

_KEYS = Path.home() / ".ssh"

hosts = [
    (
        name,
        {
            "ssh_hostname": address,
            "ssh_user": "root",
            "ssh_key": str(_KEYS / "id_ed25519"),
            "ssh_known_hosts_file": str(_KEYS / "known_hosts"),
            "ssh_strict_host_key_checking": "yes",
        },
    )
    for name, _, address in (row.partition("=") for row in os.environ["BENCH_HOSTS"].split(","))
]
