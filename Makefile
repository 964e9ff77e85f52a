# Works with GNU make 3.81 (macOS). Everything goes into this folder; nothing else on the machine is changed.
# All that is needed is Python: PostgreSQL and Node.js are fetched where they are missing or too old.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := uv==0.13.9
CDK    := cdk_example

# Each process would compile all that it imports again: pip has not done it (tests/harness/environment.py).
unexport PYTHONDONTWRITEBYTECODE

# Installs what is locked, which takes a moment only if that has changed (tests/prepare.py).
PREPARE := $(PYTHON) tests/prepare.py

# Test processes; each starts its own PostgreSQL. A server given by TEST_DATABASE_URL is only one.
ifdef TEST_DATABASE_URL
WORKERS := 0
else
WORKERS ?= 4
endif

WITH_DATABASE = $(shell grep -lE ': (World|Server)\b' tests/test_*.py tests/attacks/*.py)

# A folder of one's own, checked before anything is installed.
OWN = $(if $(MIGRATIONS),--migrations "$(MIGRATIONS)")

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: dev-and-server  ## run the tests on a real PostgreSQL (ARGS="-k lock", ARGS=--cov, WORKERS=0)
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) $(ARGS)

slow: dev-and-server  ## the tests that `make test` leaves out, since they take seconds each
	$(BIN)/python -m pytest -m slow -n $(WORKERS) $(ARGS)

attacks: dev-and-server  ## attack the boundary between the limited users and the admin
	$(BIN)/python -m pytest tests/attacks -n $(WORKERS) $(ARGS)

schema: dev-and-server  ## run the tests that use a database in another schema than public (ARGS="-k lock")
	TEST_SCHEMA=app $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) $(WITH_DATABASE) $(ARGS)

demo: python  ## migrate a throw-away database, step by step (MIGRATIONS=folder takes yours)
	@$(PREPARE) demo --server $(OWN) -- python tests/demo.py $(OWN)

compare: python  ## the same result through psql? (MIGRATIONS=folder)
	@$(PREPARE) dev --server $(OWN) -- python tests/harness/compare.py "$(if $(MIGRATIONS),$(MIGRATIONS),migrations)"

example: python  ## check, test and synthesise the CDK example and the pages of docs/frameworks
	@$(PREPARE) dev --node -- $(MAKE) --no-print-directory example-with-node

example-with-node: $(CDK)/node_modules/.package-lock.json
	rm -rf $(CDK)/cdk.out
	cd $(CDK) && npm run -s build
	cd $(CDK) && PYTHON="$(CURDIR)/$(BIN)/python" npm test
	cd $(CDK) && for database in instance aurora managed iam; do \
	  PYTHON="$(CURDIR)/$(BIN)/python" npm run -s synth -- -c database=$$database -o cdk.out/$$database || exit 1; done
	$(BIN)/cfn-lint --ignore-checks W3005 W3691 -- $(CDK)/cdk.out/*/*.template.json
	$(BIN)/python -m pytest tests/frameworks

chain: python  ## deployments from end to end, without an account (Linux)
	@$(PREPARE) dev --server --node -- $(MAKE) --no-print-directory chain-with-node

chain-with-node: $(CDK)/node_modules/.package-lock.json
	$(BIN)/python -m pytest tests/chain -n $(WORKERS) $(ARGS)

fleet: python  ## 1,000 databases in the construct's state machine (FLEET_DATABASES=30 FLEET_CONCURRENCY=16)
	@$(PREPARE) dev --server --node -- $(MAKE) --no-print-directory fleet-with-node

fleet-with-node: $(CDK)/node_modules/.package-lock.json
	FLEET_DATABASES=$${FLEET_DATABASES:-1000} $(BIN)/python -m pytest tests/fleet -s $(ARGS)

chaos: dev-and-server  ## kill it everywhere (CHAOS_SECONDS=480 takes a sample; root and Linux for the network's part)
	$(BIN)/python -m pytest tests/chaos
	$(BIN)/python tests/chaos/kill_matrix.py $(ARGS)

mutants: dev-and-server  ## does a test notice when a promise breaks? (MUTANTS_SECONDS=150 takes a sample)
	PYTHONPATH=tests $(BIN)/python -m mutants.run $(ARGS)

load: dev-and-server  ## how long the guide's recipes keep an application waiting (ARGS="--rows 100000")
	$(BIN)/python tests/guide_under_load.py $(ARGS)

versions: dev  ## the tests on PostgreSQL 13 to 18 and the Pythons that are here, pairwise (ARGS=tests/test_users.py)
	$(BIN)/python tests/versions.py $(ARGS)

bench: python  ## how fast it is, compared with a floor and other tools (ARGS="cold --repeats 9"; ARGS=scale)
	@$(PREPARE) dev --server --node -- python -m benchmarks $(ARGS)

lint: dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff check --line-length 100 db_setup
	$(BIN)/ruff format --check tests benchmarks
	$(BIN)/ruff format --check --line-length 100 db_setup
	$(BIN)/mypy

format: dev  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format tests benchmarks
	$(BIN)/ruff format --line-length 100 db_setup

pips: dev  ## install what is locked with each pip that Python 3.9 to 3.14 brought, and the newest
	$(BIN)/python tests/pips.py $(ARGS)

roots: python  ## write Amazon's root certificates (db_setup/rds_roots/) again, out of the locked npm package
	@$(PREPARE) dev --node -- python tests/rds_roots.py

lock: python  ## resolve the locked dependencies again (Python's and npm's)
	@$(PREPARE) dev --node -- $(MAKE) --no-print-directory lock-with-node

COMPILE := .uv/bin/uv pip compile -q --universal --python-version 3.9 --generate-hashes --upgrade \
	--custom-compile-command "make lock"

lock-with-node:
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target .uv $(UV)
	$(COMPILE) --extra dev -o requirements-dev.txt pyproject.toml
	$(COMPILE) --extra demo -c requirements-dev.txt -o requirements-demo.txt pyproject.toml
	$(COMPILE) -o tests/harness/node/requirements.txt tests/harness/node/requirements.in
	$(COMPILE) --resolution lowest-direct -o tests/chain/python/lowest.txt tests/chain/python/lowest.in
	$(COMPILE) -o tests/chain/python/newest.txt tests/chain/python/newest.in
	$(COMPILE) -o benchmarks/peers/requirements.txt benchmarks/peers/requirements.in
	$(COMPILE) -o tests/frameworks/python/requirements.txt tests/frameworks/python/requirements.in
	$(COMPILE) -o tests/fleet/requirements.txt tests/fleet/requirements.in
	$(COMPILE) -o tests/mutants/requirements.txt tests/mutants/requirements.in
	for project in benchmarks/peers tests/frameworks/node tests/chain/node tests/harness/npm tests/harness/roots $(CDK); do \
	  (cd $$project && npm install --package-lock-only --omit-lockfile-registry-resolved) || exit 1; done

clean:  ## remove everything that make made
	rm -rf $(CDK)/node_modules $(CDK)/cdk.out $(CDK)/layer/wheels
	rm -rf $(VENV) .venv-demo .mutants .versions .postgres .bench .uv .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(CDK)/node_modules/.package-lock.json: $(CDK)/package-lock.json
	@echo "Installing the example's packages by npm, once ..."
	cd $(CDK) && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

dev: python
	@$(PREPARE) dev

dev-and-server: python
	@$(PREPARE) dev --server

python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: '$(PYTHON)' was not found. Install Python 3.9 or newer, or say PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' || { \
	  echo "make: $$($(PYTHON) --version 2>&1) is too old, 3.9 is needed. Say PYTHON=/path/to/a/newer/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: this Python cannot make a virtual environment. Debian, Ubuntu: apt-get install python3-venv" >&2; exit 1; }

.PHONY: help test slow attacks schema demo compare example example-with-node chain chain-with-node fleet fleet-with-node chaos mutants load versions bench lint format \
	pips roots lock lock-with-node clean dev dev-and-server python
