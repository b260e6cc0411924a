# Everything needs only git, make and Python >= 3.10 beforehand; `make help` lists the targets.
# Each target that needs it runs the set-up first, which takes well under a second when all is in place.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The system's own Python where it is new enough: a pyenv shim on PATH costs 0.2 s a call.
PYTHON ?= $(firstword $(foreach p,/usr/bin/python3 python3,\
	$(shell $p -c 'import sys; sys.version_info < (3, 10) or print("$p")' 2>/dev/null)) python3)
VENV := .venv/bin
HOSTS ?= 3
# What to give pytest, e.g. make test PYTEST_ARGS='-k vxlan -x'
PYTEST_ARGS ?=
# The pure tiers share nothing, so they run on all cores. The others make network namespaces and connections on this one
# machine; how many at a time is a matter of its cores.
PURE_WORKERS ?= auto
HOST_WORKERS ?= 3

PURE_TIERS := $(wildcard tests/unit tests/cases tests/components)
HOST_TIERS := $(wildcard tests/netns tests/e2e tests/vm)
SOURCES := $(wildcard __main__.py overlay_components overlay_agent lab bench tests tools examples)

.PHONY: help
help: ## What can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: setup
setup: ## Debian packages, Python packages, Pulumi; does only what is missing
	@$(PYTHON) tools/setup.py

.PHONY: demo
demo: setup ## Three lab hosts and an overlay network between them, from nothing to ping
	@. tools/env.sh; python tools/demo.py up

.PHONY: demo-shell
demo-shell: setup ## A shell in the demo: pulumi up, overlay plan, ssh h1
	@. tools/env.sh; python tools/demo.py shell

.PHONY: demo-down
demo-down: setup ## Take down what demo made
	@. tools/env.sh; python tools/demo.py down

.PHONY: test
test: check ## All that this machine can run, in VMs what its kernel cannot; says at the end what it skipped and why
	@. tools/env.sh; python -m pytest $(HOST_TIERS) -rs -n $(HOST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: test-vm
test-vm: setup ## The tests of hosts once more, all of them in VMs with Debian's stock kernel (an hour or more)
	@. tools/env.sh; OVERLAY_VM=1 python -m pytest $(HOST_TIERS) -rs -n $(HOST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: check
check: setup lint ## Lint, types and the tests that need neither root nor network
	@. tools/env.sh; python -m pytest $(PURE_TIERS) -n $(PURE_WORKERS) $(PYTEST_ARGS)
	@if [ -x .venv-py39/bin/python ]; then \
		.venv-py39/bin/python -m pytest tests/unit/agent -n $(PURE_WORKERS) $(PYTEST_ARGS); \
	else \
		echo "check: no Python 3.9 on this machine: the agent's tests did not run on it"; \
	fi

.PHONY: lint
lint: setup ## ruff and mypy
	@$(VENV)/ruff check $(SOURCES)
	@$(VENV)/mypy
	@$(VENV)/mypy tools/setup.py
	@$(VENV)/mypy tools/vm_image.py
	@$(VENV)/mypy tools/demo.py
	@$(VENV)/mypy tools/command_plugin

# Not a part of check: without PyPI's list of advisories, as behind a mirror, nothing can be told, and that is an error.
.PHONY: audit
audit: ## Known vulnerabilities of the locked packages (needs PyPI's list of advisories)
	@$(PYTHON) tools/setup.py --audit
	@.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.txt -r requirements-py39.txt

.PHONY: bench
bench: ## Times on 50 lab hosts, beside pyinfra and a loop over ssh
	@$(PYTHON) tools/setup.py --bench
	@. tools/env.sh; python -m bench

.PHONY: bench-peers
bench-peers: ## Times on 50 lab hosts beside ssh scripts, Ansible and pyinfra, as ratios of one run
	@$(PYTHON) tools/setup.py --bench
	@. tools/env.sh; python -m bench.peers

.PHONY: bench-scale
bench-scale: setup ## What grows how with the number of hosts: 10 to 200 in the lab, 5,000 on paper
	@. tools/env.sh; python -m bench.scale

.PHONY: lab-up
lab-up: setup ## Lab hosts as network namespaces: make lab-up HOSTS=5
	@. tools/env.sh; python -m lab up --hosts $(HOSTS)

.PHONY: lab-down
lab-down: setup ## Take the lab hosts down
	@. tools/env.sh; python -m lab down

.PHONY: vm-shell
vm-shell: setup ## A shell in a VM with Debian's stock kernel, with this checkout in it
	@. tools/env.sh; python -m lab vm

.PHONY: build
build: setup ## The wheel, into dist/
	@$(VENV)/python -m build --no-isolation --wheel --outdir dist .

.PHONY: lock
lock: setup ## Renew the lock files from requirements*.in (needs the package registry)
	@bash tools/lock.sh

.PHONY: clean
clean: ## Remove all that was made here; take the lab down before
	rm -rf .venv .venv-* .tools .lab dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
