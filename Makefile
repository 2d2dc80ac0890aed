# make demo: install into .venv and run the main job.  make test: install and run the tests.
# PYTHON=python3.12 chooses an interpreter; PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" takes the
# small CPU build of torch on a machine without GPU. All paths are relative: the clone may lie below a name with spaces.

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
DEBIAN_PACKAGES := chromium dataset-fashion-mnist

.PHONY: demo test test-services check bench clean debian-packages

demo: .venv/installed
	$(BIN)/unlearn run demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -m "not services and not gpu"

test-services: .venv/installed-dev debian-packages
	$(BIN)/python -m pytest -m services

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	git ls-files -z | xargs -0 $(BIN)/codespell

bench: .venv/installed
	set -e; for file in benchmarks/*.py; do $(BIN)/python "$$file"; done

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are newer than what they were installed from, so that nothing is installed twice.
.venv/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv || { echo "on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	touch $@

.venv/installed: .venv/python pyproject.toml .ci/constraints.txt
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c .ci/constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c .ci/constraints.txt -e '.[dev]'
	touch $@

# Only root can install; others are told what is missing, and the tests that need it say that they were skipped.
debian-packages:
	@missing=""; for name in $(DEBIAN_PACKAGES); do \
	    dpkg-query -W -f '$${Status}' "$$name" 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$name"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" -ne 0 ]; then echo "not installed, and only root can install them:$$missing" >&2; exit 0; fi; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing </dev/null
