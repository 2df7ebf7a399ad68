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
# Images of Python set it; each of the servers that tests start would then compile all of its modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help serve test test-slow clients lint format fuzz fuzz-quick triton-3.6 race-check clean
.DEFAULT_GOAL := help

help:
	@echo "make serve [PORT=8000] [MODEL=smollm2-135m] [ARGS=...]   install, fetch the model, serve it"
	@echo "make test                                                install what tests need, run them all but the slow ones"
	@echo "make test-slow                                           those: more trained models, minutes each"
	@echo "make clients [MODEL=FILE.gguf]                           tests by the clients of LangChain, LiteLLM and others"
	@echo "make lint                                                ruff, mypy, import-linter"
	@echo "make ops-check                                           Dockerfile, compose, Prometheus and Kubernetes files"
	@echo "make image-check                                         build the image for real and run it (root, buildah)"
	@echo "make fuzz                                                thousands of cases from the OpenAPI document, served live"
	@echo "make triton-3.6                                          the GPU kernels' tests on the oldest Triton that counts"
	@echo "make race-check                                          the native kernels' threads under ThreadSanitizer"
	@echo "make dashboard-check                                     ask a real Prometheus every query of the dashboard"
	@echo "make dashboard-picture                                   draw the dashboard from a real Prometheus"

# A stamp a set of extras, so that a second run starts at once and a changed pyproject.toml installs again.
$(VENV)/.serve: pyproject.toml setup.py $(wildcard app/kernels/*/*.cpp app/kernels/*/*.h)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tuili needs Python 3.11 or newer; try make PYTHON=python3.12")'
	@echo "installing tuili into $(VENV) (a minute or so, once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: $(VENV)/.serve
	@echo "installing what tests and linters need into $(VENV) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,lint]'
	@touch $@

$(VENV)/.ops: deploy/requirements.txt $(VENV)/.test
	@$(BIN)/pip install --quiet --disable-pip-version-check -r deploy/requirements.txt
	@touch $@

serve: $(VENV)/.serve
	@exec $(BIN)/tuili serve $(if $(HOST),--host "$(HOST)") $(if $(PORT),--port "$(PORT)") $(if $(MODEL),--model "$(MODEL)") $(ARGS)

# In the order of names: xdist's own, by number of tests, leaves files of few dear ones to the end, where one core waits.
PARALLEL := --dist loadfile --no-loadscope-reorder

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto $(PARALLEL) -m "not slow and not clients" $(ARGS)

# Two at a time: some take gigabytes.
test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 $(PARALLEL) -m slow -o timeout=900 $(ARGS)

# Apart from the server's own packages; npm's where there is npm.
$(VENV)/clients/.installed: tests/integration/clients.txt $(VENV)/.test
	@echo "installing clients into $(VENV)/clients ..."
	@rm -rf $(VENV)/clients
	@$(BIN)/pip install --quiet --disable-pip-version-check --target $(VENV)/clients -r $<
	@if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(VENV)/clients \
	    ai@6 @ai-sdk/openai-compatible@2 zod@4; \
	 else echo "skipped: npm's clients (no npm here)"; fi
	@touch $@

# Warnings of theirs are no errors of ours. MODEL is another model, under the name that the tests ask for.
clients: $(VENV)/clients/.installed
	NODE_CLIENTS=$(VENV)/clients $(if $(MODEL),TUILI_MODEL="$(MODEL)" TUILI_SERVED_MODEL_NAME=smollm2-135m) \
	    $(BIN)/python -m pytest -m clients -W default -o pythonpath=". $(VENV)/clients" tests/integration $(ARGS)

# Its interpreter uses what newer versions of numpy warn of, or no longer have.
$(VENV)/triton-3.6: $(VENV)/.test
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $@ triton==3.6.0 'numpy<2.4'

triton-3.6: $(VENV)/triton-3.6
	PYTHONPATH=$< $(BIN)/python -m pytest -n auto $(PARALLEL) -W ignore::DeprecationWarning -W ignore::RuntimeWarning \
	    -k "triton or interpreted or aot or expand_rows or tune" tests/kernels tests/integration/test_interpreted.py tests/aot \
	    tests/benchmarks

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ops-check: $(VENV)/.ops
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	@if docker compose version >/dev/null 2>&1; then set -x; docker compose config --quiet; \
	 else echo "skipped: docker compose config (no docker compose here)"; fi
	$(BIN)/kubernetes-validate --strict --quiet deploy/kubernetes/*.yaml
	$(BIN)/mypy -p deploy
	@if command -v promtool >/dev/null; then set -ex; promtool check config --syntax-only deploy/prometheus/prometheus.yml; \
	 promtool check rules deploy/prometheus/alerts.yml; \
	 promtool test rules deploy/prometheus/alerts_test.yml; \
	 else echo "skipped: promtool check config, promtool test rules (no promtool here; it comes with Prometheus)"; fi

# Builds the Dockerfile without a container engine; says what it needs where that is missing.
image-check: $(VENV)/.serve
	$(BIN)/python -m deploy.image_check

# A server under load, a Prometheus that scrapes it; a minute.
dashboard-check: $(VENV)/.serve
	$(BIN)/python -m deploy.dashboard_check

dashboard-picture: $(VENV)/.test
	$(BIN)/python -m deploy.dashboard_picture

# Cases made from the OpenAPI document, against a live server.
fuzz: $(VENV)/.ops
	$(BIN)/python -m deploy.fuzz $(ARGS)

fuzz-quick: $(VENV)/.ops
	$(BIN)/python -m deploy.fuzz --phases fuzzing --examples 10 $(ARGS)

# The engine with 64 streams under ThreadSanitizer; some minutes, needs gcc.
race-check: $(VENV)/.test
	$(BIN)/python -m tests.kernels.native.race_check

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
