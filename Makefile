# Two commands do all the set-up: `make demo` and `make test`. Each first makes .venv and installs what is pinned.
PYTHON ?= python3
BIN := .venv/bin
SETUP = @$(PYTHON) tools/bootstrap.py
CHECKED := agent tests tools benchmarks dashboards

.DEFAULT_GOAL := help
.PHONY: help demo test lint typecheck bench bench-throttle lock clean

help:  ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' Makefile

demo:  ## Generate images and say what each cost in joules
	$(SETUP) demo
	@$(BIN)/joulegate demo

# The tests run also when a lint fails, and last: their closing line ends the output.
test:  ## Lint, check types and run all tests
	$(SETUP) test
	@lint=0; $(MAKE) --no-print-directory -k lint typecheck || lint=1; \
	$(BIN)/pytest -n 2 --dist loadgroup || exit $$?; exit $$lint

lint:  ## Check style, format and the direction of imports
	$(SETUP) lint
	@status=0; for lint in "ruff check" "ruff format --check"; do \
	  $(BIN)/$$lint --quiet $(wildcard $(CHECKED)) || status=1; \
	done; \
	$(BIN)/lint-imports --no-cache --no-logo || status=1; exit $$status

typecheck:  ## Check types with mypy --strict
	$(SETUP) lint
	@$(BIN)/mypy

bench:  ## Run the benchmarks, one after the other; fails at the end if one misses its bar
	$(SETUP) test
	@status=0; for file in benchmarks/*.py; do \
	  echo "== $$file"; PYTHONPATH=. $(BIN)/python "$$file" || status=1; \
	done; exit $$status

bench-throttle:  ## Judge the throttle adviser in a closed loop with simulated GPUs; SEEDS="11 12 13" FAMILIES=tuned|held_out|all
	$(SETUP) test
	@PYTHONPATH=. $(BIN)/python -m benchmarks.throttle --seeds $(or $(SEEDS),11 12 13) --families $(or $(FAMILIES),all)

lock:  ## Pin what is installed in .venv into requirements/
	@$(BIN)/python tools/lock.py

clean:  ## Remove .venv, caches and build output
	rm -rf .venv build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find agent tests tools benchmarks -name __pycache__ -prune -exec rm -rf {} +
