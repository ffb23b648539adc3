# Everything a person or CI does. `make` alone lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

UV_VERSION := 0.13.8
# The interpreter itself, not a version manager's shim, which may stand on the PATH for a Python that is not installed.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; (3, 11) <= sys.version_info < (3, 13) or sys.exit(1); print(sys.executable)' 2>/dev/null && break; done)
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo .tools/bin/uv)
# Python keeps what it has compiled; where it may not, each process would spend seconds on its imports.
COMPILE := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)
PACKAGES := $(patsubst %/pyproject.toml,%,$(wildcard libs/*/pyproject.toml services/*/pyproject.toml))
BIN := .venv/bin

define need-python
@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: neither python3.12, python3.11 nor python3 on the PATH is one." >&2; exit 1; }
endef

export UV_PYTHON_DOWNLOADS := never

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: .venv/.synced ## create .venv from the pinned, hashed lock

.tools/bin/uv:
	$(need-python)
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.synced: requirements.lock $(PACKAGES:=/pyproject.toml) | $(filter .tools/%,$(UV))
	$(need-python)
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip sync --quiet $(COMPILE) --require-hashes --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation $(PACKAGES:%=-e %)
	$(if $(COMPILE),$(BIN)/python -m compileall -q $(PACKAGES))
	$(BIN)/python -m homeostat.common.windows.warm_up
	@touch $@

.PHONY: lock
lock: | $(filter .tools/%,$(UV)) ## resolve requirements.lock anew
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet \
		$(foreach p,$(PACKAGES),--no-emit-package homeostat-$(notdir $p)) \
		pyproject.toml $(PACKAGES:=/pyproject.toml) --group dev --output-file requirements.lock

.PHONY: demo
demo: setup ## watch a fraud model break under drift and heal; KEEP=1 leaves the stack up
	$(BIN)/python -m pipelines.fraud.demo

.PHONY: up
up: setup ## start the embedded stack and every service
	$(BIN)/homeostat up

.PHONY: down
down: setup ## stop them
	$(BIN)/homeostat down

.PHONY: test
test: setup ## unit to short end-to-end tests, on the real servers
	$(BIN)/python -m pytest -m "not chaos and not compose and not real and not soak and not wire"

.PHONY: chaos
chaos: setup ## the long forms: a hundred kills of workers, twenty of writers, a million events
	$(BIN)/python -m pytest -m chaos

.PHONY: compose
compose: setup ## build the images and close the loop in containers; needs a container engine
	$(BIN)/python -m pytest tests/compose -m compose -s

.PHONY: real
real: setup ## replay published data sets through the running services (HOMEOSTAT_DATASETS=folder)
	$(BIN)/python -m pytest tests/real -m real -s

.PHONY: bench-features
bench-features: setup bench/.venv/.synced ## window features beside peers, from Kafka to Redis and Kafka
	$(BIN)/python -m bench.features --peers-python $(CURDIR)/bench/.venv/bin/python

.PHONY: bench-online
bench-online: setup bench/.venv/.synced ## features read online beside Feast's server
	$(BIN)/python -m bench.online --peers-python $(CURDIR)/bench/.venv/bin/python

.PHONY: bench-freshness
bench-freshness: setup ## how soon an event can be read, at 5,000 a second
	$(BIN)/python -m bench.freshness

.PHONY: bench-pit
bench-pit: setup ## point-in-time joins beside DuckDB's; QUICK=1 on smaller histories
	$(BIN)/python -m bench.pit $(if $(QUICK),--quick)

bench/.venv/.synced: bench/peers/requirements.txt | $(filter .tools/%,$(UV))
	$(UV) venv --quiet --clear --python $(BIN)/python bench/.venv
	$(UV) pip install --quiet --python bench/.venv/bin/python --requirement bench/peers/requirements.txt
	@touch $@

.PHONY: wire
wire: setup ## foreign clients against the running services, each in an environment of its own
	$(BIN)/python -m pytest services -m wire -s

.PHONY: fmt
fmt: setup ## format, and repair what the linter can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: lint
lint: setup ## rules and format, without changing anything
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: types
types: setup ## mypy --strict over everything, tests included
	$(BIN)/mypy

.PHONY: arch
arch: setup ## who may import whom
	$(BIN)/lint-imports

.PHONY: check
check: ## what CI runs: lint, arch, types, test
	.ci/run
