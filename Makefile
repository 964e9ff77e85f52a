# Works with GNU make 3.81 (macOS). Everything goes into .venv; nothing else on the machine is changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/requirements-installed
UV     := uv==0.13.9
CDK    := cdk_example

# Test processes; each starts its own PostgreSQL. A server given by TEST_DATABASE_URL is only one.
ifdef TEST_DATABASE_URL
WORKERS := 0
else
WORKERS ?= 4
endif

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: $(READY)  ## run the tests on a real PostgreSQL (ARGS="-k lock", ARGS=--cov, WORKERS=0)
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

demo: $(READY)  ## migrate a throw-away database, step by step (MIGRATIONS=folder takes yours)
	$(BIN)/python tests/demo.py $(if $(MIGRATIONS),--migrations "$(MIGRATIONS)")

compare: $(READY)  ## the same result through psql? (MIGRATIONS=folder)
	$(BIN)/python tests/harness/compare.py "$(if $(MIGRATIONS),$(MIGRATIONS),migrations)"

example: $(READY) $(CDK)/node_modules/.package-lock.json  ## check, test and synthesise the CDK example, and the pages of docs/frameworks (Node 20.12 or newer)
	cd $(CDK) && npm run -s build
	cd $(CDK) && PYTHON="$(CURDIR)/$(BIN)/python" npm test
	rm -rf $(CDK)/cdk.out
	cd $(CDK) && for database in instance aurora managed; do \
	  PYTHON="$(CURDIR)/$(BIN)/python" npm run -s synth -- -c database=$$database -o cdk.out/$$database || exit 1; done
	$(BIN)/cfn-lint --ignore-checks W3005 W3691 -- $(CDK)/cdk.out/*/*.template.json
	$(BIN)/python -m pytest tests/frameworks

chain: $(READY) $(CDK)/node_modules/.package-lock.json  ## deployments from end to end, without an account (Linux; Node 20.12 or newer)
	$(BIN)/python -m pytest tests/chain -n $(WORKERS) $(ARGS)

chaos: $(READY)  ## kill it everywhere (CHAOS_SECONDS=480 takes a sample; root and Linux for the network's part)
	$(BIN)/python -m pytest tests/chaos
	$(BIN)/python tests/chaos/kill_matrix.py $(ARGS)

load: $(READY)  ## how long the guide's recipes keep an application waiting (ARGS="--rows 100000")
	$(BIN)/python tests/guide_under_load.py $(ARGS)

versions: $(READY)  ## the tests on PostgreSQL 13 to 18 and the Pythons that are here, pairwise (ARGS=tests/test_users.py)
	$(BIN)/python tests/versions.py $(ARGS)

bench: $(READY)  ## how fast it is, beside a floor and other tools (ARGS="cold --repeats 9"; ARGS=scale; Node.js 20.11 or newer)
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff check --line-length 100 db_setup
	$(BIN)/ruff format --check tests benchmarks
	$(BIN)/ruff format --check --line-length 100 db_setup
	$(BIN)/mypy

format: $(READY)  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format tests benchmarks
	$(BIN)/ruff format --line-length 100 db_setup

lock: $(BIN)/python  ## resolve the locked dependencies anew (Python's and npm's)
	$(BIN)/python -m pip install -q $(UV)
	$(BIN)/uv pip compile -q --universal --python-version 3.9 --extra dev --generate-hashes --upgrade \
	  --custom-compile-command "make lock" -o requirements-dev.txt pyproject.toml
	$(BIN)/uv pip compile -q --universal --python-version 3.9 --resolution lowest-direct --generate-hashes --upgrade \
	  --custom-compile-command "make lock" -o tests/chain/python/lowest.txt tests/chain/python/lowest.in
	$(BIN)/uv pip compile -q --universal --python-version 3.9 --generate-hashes --upgrade \
	  --custom-compile-command "make lock" -o tests/chain/python/newest.txt tests/chain/python/newest.in
	$(BIN)/uv pip compile -q --universal --python-version 3.9 --generate-hashes --upgrade \
	  --custom-compile-command "make lock" -o benchmarks/peers/requirements.txt benchmarks/peers/requirements.in
	$(BIN)/uv pip compile -q --universal --python-version 3.9 --generate-hashes --upgrade \
	  --custom-compile-command "make lock" -o tests/frameworks/python/requirements.txt tests/frameworks/python/requirements.in
	cd tests/frameworks/node && npm install --package-lock-only --omit-lockfile-registry-resolved
	cd benchmarks/peers && npm install --package-lock-only --omit-lockfile-registry-resolved
	cd tests/chain/node && npm install --package-lock-only --omit-lockfile-registry-resolved
	cd tests/harness/npm && npm install --package-lock-only --omit-lockfile-registry-resolved
	cd $(CDK) && npm install --package-lock-only --omit-lockfile-registry-resolved

clean:  ## remove everything that make made
	rm -rf $(CDK)/node_modules $(CDK)/cdk.out $(CDK)/layer/wheels
	rm -rf $(VENV) .versions .postgres .bench .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# After an upgrade of the system the Python behind .venv may be gone: then it is made anew.
$(shell $(BIN)/python -c '' 2>/dev/null || rm -f $(READY))

$(CDK)/node_modules/.package-lock.json: $(CDK)/package-lock.json
	cd $(CDK) && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

$(READY): requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: '$(PYTHON)' was not found. Install Python 3.9 or newer, or say PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' || { \
	  echo "make: $$($(PYTHON) --version 2>&1) is too old, 3.9 is needed. Say PYTHON=/path/to/a/newer/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: this Python cannot make a virtual environment. Debian, Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

.PHONY: help test demo compare example chain chaos load versions bench lint format lock clean
