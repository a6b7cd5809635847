# make eval   evaluate every pair           make test    run the tests
# make check  run ruff and mypy             make bench   measure wall time and peak memory
# make clean  remove all built files        make nvcc    install nvcc from PyPI into .venv
#
# make passes ARGS on: make eval ARGS="groupnorm --device cpu", make test ARGS="-k settings".
# PYTHON creates .venv: make eval PYTHON=python3.12.

PYTHON ?= python3
# A checkout on a read-only file system has its environment in the user's cache.
VENV := $(shell if [ -x .venv/bin/python ] || [ -w . ]; then echo .venv; \
    else echo "$${XDG_CACHE_HOME:-$$HOME/.cache}/kernel-eval/venv"; fi)
PY := $(VENV)/bin/python
LOCK := requirements.lock
# A copy of the lock file of .venv's packages. make compares contents, not dates.
FILLED := $(VENV)/filled-from.lock

.PHONY: help eval test check bench clean nvcc venv

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

eval: venv
	@$(PY) run_eval.py $(ARGS)

test: venv
	@$(PY) -m pytest $(shell [ -w . ] || echo -p no:cacheprovider) $(ARGS)

check: venv
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

bench: venv
	@$(PY) benchmarks/bench_eval.py $(ARGS)

nvcc: venv
	@$(PY) -m harness.machine.packaged_nvcc --anyway

clean:
	rm -rf $(VENV) .cache results .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@if cmp -s $(LOCK) $(FILLED) && $(PY) -c '' 2>/dev/null; then exit 0; fi; \
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	    echo "make: $(PYTHON) is missing or older than Python 3.10." \
	        "Next: install Python 3.10 or newer, or name one: make eval PYTHON=python3.12" >&2; \
	    exit 1; \
	fi; \
	if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	    echo "Creating $(VENV) with $$($(PYTHON) --version)"; \
	    if ! $(PYTHON) -m venv --clear $(VENV); then \
	        echo "make: $(PYTHON) cannot create a virtual environment." \
	            "Next: install its venv module (Debian: apt-get install python3-venv)" >&2; \
	        exit 1; \
	    fi; \
	fi; \
	echo "Filling $(VENV) from $(LOCK)"; \
	if ! $(PY) -m pip install --quiet --disable-pip-version-check -r $(LOCK); then \
	    echo "make: pip could not install the packages into $(VENV). Next: see its message above" >&2; \
	    exit 1; \
	fi; \
	$(PY) -m harness.machine.packaged_nvcc; \
	cp $(LOCK) $(FILLED)
