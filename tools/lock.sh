#!/usr/bin/env bash
# Renews the lock files: every package with its hashes, for all Pythons that we support, without any registry's address.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.lab/lock-venv
.venv/bin/python -m venv "$venv"
"$venv/bin/pip" install --quiet uv

lock() {    # lock OLDEST_PYTHON NAME
    "$venv/bin/uv" pip compile --quiet --universal --python-version "$1" --generate-hashes --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links "$2.in" --output-file "$2.txt"
}
lock 3.10 requirements
lock 3.10 requirements-bench
lock 3.10 requirements-audit
lock 3.9 requirements-py39
rm -r "$venv"
