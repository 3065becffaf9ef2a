# Daily commands. The first of them makes .venv and installs everything, pinned; nothing else is needed.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed
SOURCES := compose shared kernels services demo tests docs

.PHONY: install check fix test test-again soak audit clients-test compose-test lock bench docs site up

install: $(STAMP)

# torch alone first and by exact version: asked for as a range, pip would take the newest CUDA build. Without an NVIDIA GPU it is
# the build for CPUs, 15 times smaller, which torch's own index has; where that is out of reach, pip takes what it finds.
TORCH = $(shell grep '^torch==' constraints.txt)
CPU_INDEX := https://download.pytorch.org/whl/cpu
$(STAMP): pyproject.toml constraints.txt
	@echo "install: Python environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	@echo "install: $(TORCH), the largest part"
	@index=; if ! command -v nvidia-smi >/dev/null && ! test -e /proc/driver/nvidia \
		&& $(BIN)/python -c "import urllib.request as web; web.urlopen('$(CPU_INDEX)/torch/', timeout=5)" 2>/dev/null; \
		then echo "install: the build for CPUs, as there is no NVIDIA GPU"; index="--extra-index-url $(CPU_INDEX)"; fi; \
		$(BIN)/python -m pip install --quiet $$index "$(TORCH)" --constraint constraints.txt
	@echo "install: Baton, Redis, and what tests and tools need"
	@$(BIN)/python -m pip install --quiet --editable '.[redis,worker,dev]' --constraint constraints.txt
	@echo "install: done; the command is $(BIN)/baton"
	@touch $(STAMP)

check: install
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: install
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# Tests start hundreds of processes, which need not compile the sources anew where the environment forbids to write bytecode.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# COVERAGE=1 counts branches beside, and fails below `fail_under` in pyproject.toml.
test: install
	$(PYTEST) -n 2 $(if $(COVERAGE),--cov --cov-report=term:skip-covered)

# What failed in the run before, alone: at most 3 tests, as more are no accident. What passes now has found a race, of its own
# or of Baton.
FAILED = .pytest_cache/v/cache/lastfailed
test-again: install
	@$(BIN)/python -c "import json; failed = json.load(open('$(FAILED)')); \
		print('test-again:', *failed, sep='\n  '); exit(len(failed) > 3 or not all('::' in each for each in failed))"
	$(PYTEST) -n 0 --last-failed --last-failed-no-failures none

# A stack of its own under faults, and what draws its cases: half an hour, or SOAK=8h, or SOAK=3m to see that it works.
soak: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak $(or $(SOAK),30m)

# Builds the images, starts the stack of compose/compose.yaml, breaks it, takes it down. Needs Docker.
compose-test: install
	$(PYTEST) -m compose -vv -s tests/compose/test_stack.py

# Real clients (OpenAI's and Anthropic's SDKs, LangChain, LiteLLM and others) against the demo model and one that pools. They
# are installed in an environment of their own, as they want other versions than Baton. CLIENTS=test_openai.py runs one.
clients-test: install $(VENV)-clients/.installed
	LITELLM_LOCAL_MODEL_COST_MAP=True $(BIN)/python -m tests.clients $(CURDIR)/$(VENV)-clients/bin/python $(CLIENTS)

$(VENV)-clients/.installed: tests/clients/requirements.txt
	$(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --quiet --requirement tests/clients/requirements.txt
	@touch $@

# Rules over the source (a test too), known mistakes, and packages with advisories, where their list can be reached.
audit: $(VENV)/.audit
	$(BIN)/python -m tests.security.rules
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml -ll compose/baton compose/batonllm shared kernels/baton services
	@for file in router worker-cuda; do $(BIN)/pip-audit --disable-pip --no-deps --progress-spinner off \
		--requirement compose/requirements/$$file.txt || { echo "audit: see above for compose/requirements/$$file.txt"; exit 1; }; done

$(VENV)/.audit: $(STAMP)
	@echo "audit: bandit and pip-audit"
	@$(BIN)/python -m pip install --quiet --editable '.[audit]' --constraint constraints.txt
	@touch $(VENV)/.audit

# The images' requirements with their hashes, from constraints.txt.
LOCK = $(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --custom-compile-command "make lock" \
	--python-version 3.11 --python-platform linux --constraint constraints.txt --output-file compose/requirements
lock: install
	echo hatchling | $(LOCK)/build.txt -
	$(LOCK)/router.txt pyproject.toml
	$(LOCK)/worker-cpu.txt pyproject.toml --extra worker --excludes compose/requirements/cuda-only.txt --no-emit-package torch
	$(LOCK)/worker-cuda.txt pyproject.toml --extra worker

bench: install
	$(BIN)/baton bench offline --compare transformers

# Every prompt goes over a prefill worker here, to show the whole path; `baton up` alone decides per request.
up: install
	$(BIN)/baton up --ask --path remote $(if $(ONCE),--once)

# Tables and charts in the pages, the chart's schema, the plain manifests: all made from the code.
docs: install
	$(BIN)/python docs/generate.py

# The pages as a site, in build/site. A link or an anchor that leads nowhere ends it.
site: $(VENV)/.site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo 'site: build/site is made. To look at it: python3 -m http.server --directory build/site 8080'

$(VENV)/.site: $(STAMP)
	@echo "site: what builds the pages"
	@$(BIN)/python -m pip install --quiet --editable '.[docs]' --constraint constraints.txt
	@touch $(VENV)/.site
