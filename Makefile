.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup run test prove prove-mutants check protos lint types bench attack lock compose-check

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# What the services need, and nothing else: the first start is not to wait for linters.
$(VENV)/.runtime: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Gateway Zero needs Python 3.11 to 3.14; this is %s. Set PYTHON=python3.x" % sys.version.split()[0] if not (3, 11) <= sys.version_info[:2] <= (3, 14) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --only-binary :all: -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	$(PIP) --require-hashes --only-binary :all: -r requirements-dev.lock
	@touch $@

setup: $(VENV)/.dev ## make .venv with everything in it

run: $(VENV)/.runtime ## start all services on this machine, with SQLite in data/
	@exec $(BIN)/gateway up

test: setup ## run the tests
	$(BIN)/python -m pytest -n 2 -q

prove: setup ## run every row of docs/proof.md in full, on both databases, and report (80 minutes)
	$(BIN)/python -m tests.prove --report prove.md $(PROVE)

prove-mutants: setup ## break each guard once, in a copy, and have the tests notice (5 to 10 minutes)
	$(BIN)/python -m tests.prove.mutants --report mutants.md $(MUTANTS)

check: lint types ## what CI runs beside the tests
	$(BIN)/buf lint
	$(MAKE) --no-print-directory protos
	@git diff --exit-code -- gateway/stubs || (echo "the stubs differ from the protos: commit what 'make protos' wrote" && exit 1)
	@test -z "$$(git ls-files --others --exclude-standard gateway/stubs)" || (echo "new stubs are not committed" && exit 1)

PROTOS := $(patsubst protos/gateway/%,gateway/stubs/%,$(wildcard protos/gateway/*/v1/*.proto))

protos: setup ## write the stubs anew from protos/
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -Igateway/stubs=protos/gateway \
	  --python_out=. --mypy_out=. --grpc_python_out=. --mypy_grpc_out=. $(PROTOS)

lint: setup ## ruff: format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## mypy, strict
	$(BIN)/mypy

bench: setup ## our CPU a request beside a bare relay's, in one run; AGAINST=FOLDER: beside another checkout's
	$(BIN)/python -m benchmarks.$(if $(AGAINST),against $(AGAINST),load)

attack: setup ## all hostile callers at once beside a calm one, and what the calm one notices (3 minutes)
	$(BIN)/python -m benchmarks.attack $(ATTACK)

compose-check: ## bring the compose stacks up with Docker, ask them, take them down (needs an engine)
	@$(PYTHON) -m tests.deploy.try_compose

COMPILE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet --extra services

lock: ## write the lock files anew from pyproject.toml (needs uv); nothing younger than a week
	$(COMPILE) --group build --exclude-newer "$$(date -u -d '7 days ago' +%F)" --output-file requirements.lock
	$(COMPILE) --group build --group dev --constraints requirements.lock --exclude-newer "$$(date -u -d '7 days ago' +%F)" --output-file requirements-dev.lock
