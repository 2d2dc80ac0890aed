# make demo: install into .venv and run the main job.  make test: install and run the tests.
# PYTHON=python3.12 chooses an interpreter; PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" takes the
# small CPU build of torch on a machine without GPU. All paths are relative: the clone may lie below a name with spaces.

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
AZURITE := 3.35.0
DEBIAN_PACKAGES := ceph-common ceph-mgr ceph-mon ceph-osd chromium dataset-fashion-mnist munge openclipart-png postgresql radosgw \
    slurm-client slurm-wlm slurmctld slurmd

.PHONY: demo test test-services test-chaos check bench clean debian-packages azurite

demo: .venv/installed
	$(BIN)/unlearn run demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not services and not gpu and not chaos"

test-services: .venv/installed-dev debian-packages azurite
	$(BIN)/python -m pytest -m services

# Fifty random kills, compared with a run left in peace: six minutes and more.
test-chaos: .venv/installed-dev
	$(BIN)/python -m pytest -s -m chaos

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	git ls-files -z | xargs -0 $(BIN)/codespell

# The tables of benchmarks/results, from the quickest to the slowest: more than an hour in all.
bench: .venv/installed-bench
	set -e; for file in shard_reading resolve saves kernels steps stream retraining forgetting; do $(BIN)/python benchmarks/$$file.py; done
	set -e; for file in zero memory; do OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 benchmarks/$$file.py; done

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
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c .ci/constraints.txt -e '.[dev,metrics]'
	touch $@

# Another loader to compare with. Its dependencies would bring a torchvision that does not fit torch, and it works without.
.venv/installed-bench: .venv/installed
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c .ci/constraints.txt boto3 filelock requests
	$(BIN)/python -m pip install --quiet --no-deps litdata==0.2.76 lightning-utilities==0.15.3 obstore==0.12.1 tifffile==2026.3.3
	touch $@

# Only root can install; others are told what is missing, and the tests that need it say that they were skipped.
debian-packages:
	@missing=""; for name in $(DEBIAN_PACKAGES); do \
	    dpkg-query -W -f '$${Status}' "$$name" 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$name"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" -ne 0 ]; then echo "not installed, and only root can install them:$$missing" >&2; exit 0; fi; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing </dev/null

# Azure's storage for tests, a program of Node.js: inside .venv, so that git ignores it and `make clean` removes it.
azurite: .venv/installed-dev
	@if [ -e .venv/azurite/$(AZURITE) ]; then exit 0; fi; \
	if ! command -v npm >/dev/null; then echo "npm is not installed: the tests of az:// are skipped" >&2; exit 0; fi; \
	rm -rf .venv/azurite && npm install --silent --no-save --no-audit --no-fund --prefix .venv/azurite azurite@$(AZURITE) && \
	touch .venv/azurite/$(AZURITE)
