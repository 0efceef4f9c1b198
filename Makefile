# Two commands for a newcomer: `make demo` and `make test`. PIP_ARGS, PYTEST_ARGS, URL, USERS and LOAD_ARGS pass through.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
    $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
PIP = $(BIN)/python -m pip install --disable-pip-version-check --no-compile $(PIP_ARGS) -c $(VENV)/constraints.txt
URL ?= http://localhost:8998
USERS ?= 16
SHAPES := steady ramp spike churn overload soak
WORKERS ?= 2

.PHONY: demo test check load $(SHAPES:%=load-%) load-wall live chaos clean

demo: $(VENV)/.demo
	$(BIN)/serve_app up configs/demo.yaml

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Need a server: `make demo` in another terminal. load_tests/README.md lists the options that LOAD_ARGS may hold.
load: load-steady

$(SHAPES:%=load-%): load-%: $(VENV)/.dev
	$(BIN)/python -m load_tests.run $* --url $(URL) $(if $(filter overload,$*),--sessions 0,--sessions $(USERS)) $(LOAD_ARGS)

# Starts its own server.
load-wall: $(VENV)/.dev
	$(BIN)/python -m load_tests.wall $(LOAD_ARGS)

# Long suites: not part of `make test`. `make live` has what takes many starts of Ray (roll-outs, engines that come and go), or minutes.
live: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow tests --ignore tests/chaos $(PYTEST_ARGS)

chaos: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow tests/chaos $(PYTEST_ARGS)

clean:
	rm -rf $(VENV)

# Keeps a torch >= 2.11 of the invoking Python (a CUDA image has the right one); else the pinned one is installed.
$(VENV)/constraints.txt: constraints-dev.txt
	@test -n "$(PYTHON)" || { echo "make: Chorus needs Python 3.11, 3.12 or 3.13 (set PYTHON=)" >&2; exit 1; }
	@present=$$($(PYTHON) -c "$$PRESENT_TORCH"); \
	test -x $(BIN)/python || $(PYTHON) -m venv $${present:+--system-site-packages} $(VENV); \
	if [ -n "$$present" ]; then { grep -v '^torch==' $<; echo "torch==$$present"; } > $@.new; else cp $< $@.new; fi; \
	mv $@.new $@

$(VENV)/.demo: pyproject.toml $(VENV)/constraints.txt
	$(PIP) -e .
	@touch $@

# moshi is the tests' oracle; it pins an older torch and numpy, hence a step of its own without its dependencies.
$(VENV)/.dev: pyproject.toml $(VENV)/constraints.txt
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps moshi==0.2.13 rustymimi==0.4.1
	@touch $(VENV)/.demo $@

define PRESENT_TORCH
import importlib.metadata, sys
try:
    version = importlib.metadata.version("torch")
except importlib.metadata.PackageNotFoundError:
    version = "0.0"
if sys.prefix == sys.base_prefix and tuple(int(part) for part in version.split(".")[:2]) >= (2, 11):
    print(version)
endef
export PRESENT_TORCH
