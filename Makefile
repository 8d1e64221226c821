# make demo: pretrain on the bundled images, probe, report.    make test: the default tests.
# Needs Python 3.11 or newer; everything else is installed into .venv. Another Python: make demo PYTHON=python3.12

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: help demo test test-all abuse cases lint types docs clean
help:
	@echo "make demo    pretrain on the bundled images, probe, write runs/nepa_demo/report.html (about 10 minutes)"
	@echo "make test    run the tests (about ten minutes on two cores)"
	@echo "make test-all  also those with kills, ranks and browsers (about twenty)"
	@echo "make abuse   try to break it: kills, damage, odd input (half an hour)"
	@echo "make cases   what people reported about such tools (fifteen minutes)"
	@echo "make lint    check style         make types   check types"
	@echo "make docs    build the site      make clean   remove what was built (not runs/)"

demo: $(VENV)/.installed
	$(BIN)/nextembed train nepa_demo

# One worker per core, at most eight, because each loads its own torch.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal -m "not slow"

# With the slow tests: processes that are killed and restarted, several ranks, the studio in a browser.
test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

# One campaign, or one case of it: see `python -m tests.abuse.campaigns --help`.
abuse: $(VENV)/.installed
	$(BIN)/python -m tests.abuse.campaigns

# Problems that people reported about similar tools: see tests/cases/README.md.
cases: $(VENV)/.installed
	tests/cases/all.sh

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamps are written last, so an installation that was cut short is done again.
$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer (with venv and pip) is needed, but none was found." \
		"Install it, or name it: make demo PYTHON=/path/to/python" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "$(PYTHON) -m venv $(VENV)"; $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[docs]"
	@touch $@
