# Plain `make` lists the targets. Everything is set up in folders of this checkout: .venv (nextslice
# and its tools) and .nextslice (Label Studio in an environment of its own, demo data).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
export NEXTSLICE_HOME := $(CURDIR)/.nextslice

.DEFAULT_GOAL := help
TARGETS := $(shell sed -n 's/^\([a-z]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)))
FOLDERS := $(filter-out $(TARGETS),$(patsubst %/,%,$(wildcard */)))
.PHONY: help install studio demo test faults fuzz check lint format types safety bench docs distributions package constraints clean

help: ## List the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

define no_target
@echo "make: there is no target $@. Those that there are:" >&2
@$(MAKE) --no-print-directory help >&2
@exit 2
endef

# Of a folder make says that it is up to date; of all else it says no more than that it knows no rule.
.PHONY: $(FOLDERS)
$(FOLDERS):
	$(no_target)
.DEFAULT:
	$(no_target)

install: $(VENV)/installed ## Create .venv with nextslice, its extras and its tools

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "==> creating $(VENV): nextslice, PyTorch and the development tools (a few minutes)"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[embedded,dev]'
	@touch $@

studio: install ## Install Label Studio into .nextslice (demo and tests do it themselves, too)
	@echo "==> Label Studio in .nextslice, an environment of its own (the first time a few minutes)"
	@$(BIN)/python -c "from ml_backend.embedded.label_studio import install_label_studio; \
		from ml_backend.settings import default_home; install_label_studio(default_home())"

demo: install ## Run the whole loop on this machine; ARGS="--headless --rounds 2" without a person
	@echo "==> nextslice demo $(ARGS)"
	@$(BIN)/nextslice demo $(ARGS)

# Files in the order they are collected, the live stack's first: those mostly wait and take longest.
test: install ## Run every test (Label Studio is installed into .nextslice the first time)
	@echo "==> pytest, two files at a time $(ARGS)"
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE \
		$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 25 $(ARGS)

# Most of a cell's time is pauses, so that more of them than there are cores run side by side.
faults: install ## Run the whole fault matrix in real time, and write docs/reliability.md (half an hour)
	@rm -f docs/results/faults/cells.jsonl
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE NEXTSLICE_FAULTS=1 \
		$(BIN)/python -m pytest -m "nightly or not nightly" -n 4 tests/faults --timeout 3000 \
		--deselect tests/faults/test_report.py $(ARGS)
	@$(BIN)/python -m tests.faults.report

fuzz: install ## Send a million damaged inputs to everything that reads foreign bytes (an hour or two)
	@echo "==> fuzzing $(ARGS)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --inputs 1000000 --examples 1000 $(ARGS)

lint: install ## Look for style errors
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: install ## Check the types of both packages
	@$(BIN)/mypy

safety: install ## Look for what is known to be unsafe; exceptions are explained where they are
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive al_strategies ml_backend docker

check: lint types safety test ## lint + types + safety + test

format: install ## Rewrite the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Without what measures quality (benchmarks/learning.py takes days: python -m benchmarks.learning), and what
# others import.
bench: install ## Measure speed against the peers, one benchmark after the other
	@for b in $(filter-out $(addprefix benchmarks/,advice.py corrections.py flags.py foreign_volumes.py learning.py),$(wildcard benchmarks/*.py)); do echo "==> $$b"; $(BIN)/python $$b || exit 1; done

docs: install ## Build the documentation as a site into .site; a link that leads nowhere fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "==> .site/index.html"

# The wheel's demo takes some minutes: PyTorch and Label Studio are installed anew.
distributions: ## Build the distributions into dist, and check them
	@rm -rf dist .nextslice/package
	@$(PYTHON) -m venv .nextslice/package
	@.nextslice/package/bin/python -m pip install --quiet --disable-pip-version-check build twine
	@.nextslice/package/bin/python -m build
	@.nextslice/package/bin/twine check --strict dist/*

package: distributions ## Run the demo of the built wheel in an empty environment
	@rm -rf .nextslice/wheel
	@$(PYTHON) -m venv .nextslice/wheel
	@.nextslice/wheel/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt "$$(ls dist/*.whl)[embedded]"
	@cd .nextslice && wheel/bin/nextslice --version && wheel/bin/nextslice demo --headless --rounds 1

constraints: install ## Renew constraints.txt from what .venv holds
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | grep -v ' @ '; } > constraints.new
	@mv constraints.new constraints.txt

# What `nextslice up` keeps in .nextslice (store, Redis, logs, cache) is of real projects.
clean: ## Delete the environments, every demo with its labels, phantoms and caches; not store and Redis
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
	rm -rf $(addprefix .nextslice/,label-studio-* demo demo-* demo.lock phantom-* learning install.lock)
