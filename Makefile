# Everything a newcomer needs: `make demo` and `make test` set up .venv by themselves.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PYTHONSAFEPATH := 1
# Modules are compiled once, not by each process of a run, also where the environment says so.
export PYTHONDONTWRITEBYTECODE :=
# Threads of torch that wait for each other give their core away soon (worker/process/env.py).
export GOMP_SPINCOUNT ?= 4000

# The first interpreter that is new enough and can make a virtual environment.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)

.PHONY: demo check site test test-full clients newest-redis chaos lint lint-packages clean

demo: $(STAMP)
	@$(BIN)/tokenbus demo $(DEMO_ARGS)

# One thread a process, and two processes more than cores (tests/conftest.py): many tests wait. Files
# stay together, because they share models.
# Native traces: the pretty ones parse sources, at which CPython 3.11 trips in a worker of xdist.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -rsfE -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder --tb=native

# An answer in about a minute: lint, types of the packages, and the tests that start no process.
check: $(STAMP)
	@$(BIN)/python tests/check.py

test: $(STAMP)
	@$(PYTEST) -m "not slow and not clients" $(TEST_ARGS)

test-full: $(STAMP)
	@$(PYTEST) -m "not clients" $(TEST_ARGS)

# Clients of others against the gateway, each in an environment of its own beside ours.
CLIENTS := $(VENV)/clients
CLIENTS_PYTHON := openai langchain-openai openai-agents litellm django uvicorn
# It wants an earlier client of OpenAI than the others.
CLIENTS_LLAMA := "llama-index-llms-openai-like>=0.5"
# It draws requests from the description of the gateway's API.
CLIENTS_SCHEMA := "schemathesis>=4,<5"
CLIENTS_NODE := ai @ai-sdk/openai @ai-sdk/openai-compatible zod
clients: $(STAMP)
	@for part in python llama schema; do test -x $(CLIENTS)/$$part/bin/python || $(PYTHON) -m venv $(CLIENTS)/$$part; done
	@$(CLIENTS)/python/bin/python -m pip install --disable-pip-version-check -q -e . $(CLIENTS_PYTHON)
	@$(CLIENTS)/llama/bin/python -m pip install --disable-pip-version-check -q $(CLIENTS_LLAMA)
	@$(CLIENTS)/schema/bin/python -m pip install --disable-pip-version-check -q $(CLIENTS_SCHEMA)
	@mkdir -p $(CLIENTS)/node
	@command -v npm >/dev/null && npm install --prefix $(CLIENTS)/node --no-audit --no-fund --silent \
		$(CLIENTS_NODE) || echo "npm is missing: clients for Node are left out" >&2
	@TOKENBUS_CLIENTS_PYTHON=$(CURDIR)/$(CLIENTS)/python/bin/python \
		TOKENBUS_CLIENTS_LLAMA=$(CURDIR)/$(CLIENTS)/llama/bin/python AI_SDK=$(CURDIR)/$(CLIENTS)/node \
		SCHEMATHESIS=$(CURDIR)/$(CLIENTS)/schema/bin/schemathesis \
		$(BIN)/pytest -q -rs -m clients --tb=short tests/clients $(TEST_ARGS)

# The base with the newest redis-py that it takes; with arq beside it only an earlier one goes.
NEWEST := $(VENV)/newest-redis
newest-redis: $(STAMP)
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --upgrade \
		--target $(NEWEST) "$$(sed -n 's/^    "redis\[hiredis\]\(.*\)",$$/redis\1/p' pyproject.toml | head -1)"
	@PYTHONPATH=$(CURDIR)/$(NEWEST) TOKENBUS_TEST_REDIS_PY=7 $(PYTEST) -m "not slow" \
		tests/producer/server/test_redis_py.py tests/producer/server/test_connection.py \
		tests/producer/client/test_client.py tests/integration/test_job_lifecycle.py \
		tests/integration/test_cluster.py tests/integration/test_sentinel.py $(TEST_ARGS)

# The kill matrix at full size: CHAOS_JOBS jobs per case, on every kind of server there is.
chaos: export CHAOS_JOBS ?= 200
chaos: $(STAMP)
	@$(BIN)/pytest -q -rs tests/chaos $(TEST_ARGS)

# The pages as a site, in build/site.
site: $(STAMP)
	@$(BIN)/mkdocs build --strict --quiet

lint: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/vulture
	@PYTHONPATH=tests/support $(BIN)/python -m lua.lint
	@$(BIN)/python tests/typecheck.py

# What continuous integration asks before the tests: the types of these take as long again.
lint-packages: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/vulture
	@PYTHONPATH=tests/support $(BIN)/python -m lua.lint
	@$(BIN)/python tests/typecheck.py packages

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The stamp is written last, so that an interrupted installation starts over. Packages are compiled on
# every core, where pip has one for it; among them are sources for other Pythons, which do not compile.
$(STAMP): pyproject.toml setup.py
	@test -n "$(PYTHON)" || { \
		echo "tokenbus needs Python 3.11 or newer with the venv module; set PYTHON=..." >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON): about 1 GB, a minute or two on the first run"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-compile -e ".[dev]"
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@
