# Two commands do all: `make serve` and `make test`. Everything lands in .venv; nothing else is touched.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# What is not given here is left to the settings, so that TUILI_PORT and its like count too. HOST is taken from make's
# command line alone: some shells export one that means another thing.
HOST   =
PORT   ?=
MODEL  ?=
ARGS   ?=

.PHONY: help serve test lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make serve [PORT=8000] [MODEL=smollm2-135m] [ARGS=...]   install, fetch the model, serve it"
	@echo "make test                                                install what tests need, run them all"
	@echo "make lint                                                ruff, mypy, import-linter"

# A stamp a set of extras, so that a second run starts at once and a changed pyproject.toml installs again.
$(VENV)/.serve: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tuili needs Python 3.11 or newer; try make PYTHON=python3.12")'
	@echo "installing tuili into $(VENV) (a minute or so, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: $(VENV)/.serve
	@echo "installing what tests and linters need into $(VENV) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,lint]'
	@touch $@

serve: $(VENV)/.serve
	@exec $(BIN)/tuili serve $(if $(HOST),--host "$(HOST)") $(if $(PORT),--port "$(PORT)") $(if $(MODEL),--model "$(MODEL)") $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
