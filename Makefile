# `make` lists what there is. Another interpreter: make PYTHON=python3.12 test   Some tests: make test ARGS="-k coda -x"
# One process for all tests: make test JOBS=0

PYTHON ?= python3.11
VENV ?= .venv
ARGS ?=
JOBS ?= logical
BIN := $(VENV)/bin
DEMO := .demo

# The demo, as a user would type it. Variables, because make would split these lines at their commas.
DEMO_TRAIN   = cdl train --data digits --tasks 5 --train-teacher --seed 0 --out $(DEMO)/run
DEMO_EXPORT  = cdl export $(DEMO)/run --onnx
DEMO_BENCH   = cdl bench-latency $(DEMO)/run --batch 1,8 --time-limit 30 --save $(DEMO)/latency.json
DEMO_SUMMARY = cdl runs $(DEMO)/run --latency $(DEMO)/latency.json

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast slow-tests test-install test-foreign examples example-apps targets evidence lint types check format build release-check constraints clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 15

demo: $(VENV)/.installed-all  ## install, then train, export and benchmark a small model
	@rm -rf $(DEMO) && mkdir $(DEMO) && date +%s > $(DEMO)/.started
	$(call show,$(DEMO_TRAIN))
	$(call show,$(DEMO_EXPORT))
	$(call show,$(DEMO_BENCH))
	$(if $(DEMO_SUMMARY),$(call show,$(DEMO_SUMMARY)))
	@echo; echo "Done in $$(($$(date +%s) - $$(cat $(DEMO)/.started))) s. To type such commands: source $(BIN)/activate"

# What is imported is compiled then, once and not by every worker and child process, whatever the environment says.
export PYTHONDONTWRITEBYTECODE =

# One thread a process: two processes with two threads each wait for one another on two cores.
PYTEST = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --maxprocesses 4 --dist worksteal

test: $(VENV)/.installed-dev  ## run the whole test suite: 5 to 10 minutes on two cores
	$(PYTEST) $(ARGS)

test-fast: $(VENV)/.installed-dev  ## the tests that fit a budget of processor time: under a minute
	$(PYTEST) -m "not slow and not network and not examples and not foreign" $(ARGS)

slow-tests: $(VENV)/.installed-dev  ## measure every test, and write tests/slow.txt: what test-fast's budget leaves out
	rm -f .test-times.jsonl
	CDL_TEST_TIMES=$(CURDIR)/.test-times.jsonl $(PYTEST)
	CDL_TEST_TIMES=.test-times.jsonl $(BIN)/python -m tests.speed && rm .test-times.jsonl

test-install: $(VENV)/.installed-dev  ## the wheel alone, with dependencies fetched into an empty environment
	$(BIN)/pytest -m network tests/packaging

test-foreign: $(VENV)/.installed-foreign  ## weights files, against the libraries that write them
	PYTHONPATH=$(VENV)/foreign $(BIN)/pytest -m foreign tests/foreign

examples: example-apps  ## build and run every app of examples/ (Debian, Ubuntu: fetches what they need)
	$(BIN)/pytest -m examples tests/examples

example-apps: $(VENV)/.installed-dev
	examples/prepare.sh $(BIN)/python

# Some of them only: make targets TARGETS="mnn openvino" ARGS="-k 'mnn or openvino'"
RUNTIMES ?= .runtimes
TARGETS ?=

targets: $(VENV)/.installed-dev  ## other runtimes, each in an environment of its own: its tests, and the table of docs/runtimes.md
	$(BIN)/python tools/runtime_environments.py $(RUNTIMES) $(TARGETS)
	CDL_RUNTIMES=$(abspath $(RUNTIMES)) $(PYTEST) -m runtimes $(ARGS)
	$(BIN)/python tools/runtimes_doc.py --environments $(RUNTIMES) --print

BUDGET ?= short
MINUTES ?=
DATA ?= data/cifar100

evidence: $(VENV)/.installed-all  ## the table of docs/results.md, in the background: make evidence BUDGET=full MINUTES=15 DATA=…
	PYTHONPATH=. $(BIN)/python -m benchmarks.evidence start --budget $(BUDGET) --data $(DATA) $(if $(MINUTES),--minutes $(MINUTES))

lint: $(VENV)/.installed-dev  ## ruff: lint, and whether `make format` would change anything
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev  ## mypy, strict
	$(BIN)/mypy

check: lint types test test-install test-foreign examples  ## exactly what CI runs

format: $(VENV)/.installed-dev  ## reformat, and mend what the linter can
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

build: $(VENV)/.installed-dev  ## sdist and wheel into dist/
	$(BIN)/python -m build --no-isolation

release-check: $(VENV)/.installed-dev  ## whether version, citation and changelog agree: make release-check TAG=v0.1.0
	$(BIN)/python tools/release_check.py $(TAG)

constraints: | $(BIN)/python  ## upgrade everything here and write constraints.txt and constraints-device.txt anew
	$(INSTALL) --upgrade --upgrade-strategy eager -e '.[dev,pretrain]'
	@{ grep '^#' constraints.txt; $(BIN)/pip freeze --all --exclude-editable | grep -Ev '^(pip=|nvidia-|cuda-|triton=)'; } \
	  > constraints.new && mv constraints.new constraints.txt
	$(BIN)/python tools/device_constraints.py

clean:  ## remove what was made here, except the environment
	rm -rf build dist $(DEMO) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# ---- how things are run and installed --------------------------------------------------------------------------------

# Print a command, then run it with the environment's programs first on the path.
define show
@printf '\n$$ %s\n' "$(1)"
@export PATH="$(abspath $(BIN)):$$PATH"; $(1)
endef

# -qq: errors only; pip's warnings about mirrors that are not there would bury everything else. --no-compile: pip
# would compile 19,000 modules, a minute and a half on a slow core, most of which nothing imports.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
INSTALL := $(PIP) install --no-compile

define install
@echo "Installing cdl-deploy[$(1)] into $(VENV). The first time fetches up to 5 GB (PyTorch): 1 to 3 minutes on a fast line."
@$(INSTALL) -c constraints.txt -e '.[$(1)]'
endef

# One stamp a set of extras: installed again when it is older than a file that says what to install.
REQUIREMENTS := pyproject.toml constraints.txt

$(VENV)/.installed-all: $(REQUIREMENTS) | $(BIN)/python
	$(call install,all)
	@touch $@

$(VENV)/.installed-dev: $(REQUIREMENTS) | $(BIN)/python
	$(call install,dev)
	@touch $@ $(VENV)/.installed-all

# Beside the environment, not in it: what it has must be what a user gets.
$(VENV)/.installed-foreign: tests/foreign/requirements.txt $(VENV)/.installed-dev
	rm -rf $(VENV)/foreign
	$(INSTALL) --target $(VENV)/foreign --no-deps -r tests/foreign/requirements.txt
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { echo "No $(PYTHON) here. Install it, or: make PYTHON=python3.12 …"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 2; }
