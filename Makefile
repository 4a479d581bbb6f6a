# Everything installs into .venv, from wheels only, at the versions in constraints.txt.

PYTHON ?= python3
PYTEST_ARGS ?=
# Paths of the system's own servers, to test with those instead of the ones that come as wheels.
ETCD ?=
NATS_SERVER ?=
# `make bench SCALE=--full` goes to a million tasks.
SCALE ?=
# `make pins PINS_ARGS=--upgrade` moves to the newest versions; without it only what must change does.
PINS_ARGS ?=
# Which seeded faults to try; it may have * and ?.
FAULTS ?= *

BIN := .venv/bin
# The build backend is pinned too: newer pips read its pins from the second variable, older ones from the first.
PIP_INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --only-binary :all:
SERVERS := $(if $(ETCD),IFBUS_TEST_ETCD='$(ETCD)') $(if $(NATS_SERVER),IFBUS_TEST_NATS_SERVER='$(NATS_SERVER)')

.DEFAULT_GOAL := help
.PHONY: help install demo test run bench proof soak torture faults guests lint format pins clean

help:  ## List these targets
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "ifbusd needs Python 3.11 or later, $(PYTHON) is none: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# Two stamps, so that who only wants to see the demo need not download the tools of those who change the code.
.venv/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable '.[cli,daemon,tool]'
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable '.[dev]'
	@touch .venv/.runtime $@

install: .venv/.dev  ## Make .venv with everything: daemon, client, test and lint tools

demo: .venv/.runtime  ## Watch a swarm work through a task board (under a minute, leaves nothing running)
	$(BIN)/ifbus demo --full

# Two at a time: most of them wait for a process, a disk or a lease.
test: .venv/.dev  ## Run all tests; PYTEST_ARGS='-k claim', ETCD=/usr/bin/etcd, NATS_SERVER=/usr/sbin/nats-server
	$(SERVERS) $(BIN)/pytest -n 2 --dist worksteal $(PYTEST_ARGS)

run: .venv/.runtime  ## Run the daemon in the foreground, on a store of its own
	$(BIN)/ifbusd --dev

BENCH := rtt claims push execute scale startup where

# Each on a quiet machine by itself; about a quarter of an hour together.
bench: .venv/.dev  ## Measure everything beside its limits; figures to build/bench/*.json, SCALE=--full for the largest sizes
	@mkdir -p build/bench
	for name in $(BENCH); do \
		$(BIN)/python perf/$$name.py --json build/bench/$$name.json $$([ $$name = scale ] && echo '$(SCALE)') || exit 1; \
	done
	$(BIN)/python perf/claims.py --backend etcd --json build/bench/claims_etcd.json
	$(BIN)/python perf/push.py --other-host --json build/bench/push_other_host.json

# The mixed run comes last: what the others left behind would show in its figures. What they found becomes docs/proof.md.
proof soak torture: SIZE = $(@:proof=suite)
proof soak torture: .venv/.dev
	rm -rf build/proof/$(SIZE)
	IFBUS_PROOF=$(SIZE) $(SERVERS) $(BIN)/pytest tests/proof --ignore=tests/proof/test_mixed_run.py $(PYTEST_ARGS)
	IFBUS_PROOF=$(SIZE) $(SERVERS) $(BIN)/pytest tests/proof/test_mixed_run.py $(PYTEST_ARGS)
	$(BIN)/python -m tests.proof.report $(SIZE)

proof:  ## Attack every promise, in the size of the test suite (minutes); figures to build/proof, docs/proof.md
soak:  ## The same for an hour
torture:  ## The same for a night

faults: .venv/.dev  ## Switch off one protection after the other and see that its test notices; FAULTS='token*'
	$(BIN)/python -m tests.faults.run '$(FAULTS)'

guests: .venv/.dev  ## Rebuild the committed test guests (.wasm) from their sources; fetches a C compiler
	$(PIP_INSTALL) --target build/zig ziglang==0.17.1
	PYTHONPATH=build/zig $(BIN)/python tests/guests/build.py

lint: .venv/.dev  ## Check style, format, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: .venv/.dev  ## Format the code and mend what can be mended without thinking
	$(BIN)/ruff check --fix-only --exit-zero .
	$(BIN)/ruff format .

pins:  ## Write constraints.txt anew from pyproject.toml
	$(PYTHON) -m venv build/pins
	build/pins/bin/python -m pip --disable-pip-version-check install --quiet --only-binary :all: uv
	build/pins/bin/uv pip compile --quiet --universal --all-extras --only-binary :all: \
		--no-header --no-emit-index-url --no-emit-find-links $(PINS_ARGS) --output-file constraints.txt pyproject.toml

clean:  ## Remove .venv and everything else that these targets made
	rm -rf .venv .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
