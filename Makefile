# `make demo` and `make test` do everything on a fresh clone: they make .venv and install what they need.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
BESIDE := .venv/s3-server/.installed .venv/readers/.installed

.PHONY: demo test test-slow check docs install clean

install: $(INSTALLED)

# torch first and pinned, so that no other package chooses it. A machine whose pip knows a CPU build takes that one;
# PyPI's own for Linux is a CUDA build (PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu avoids it).
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	touch $@

# In environments of their own: the S3 server of the tests, and what reads stores beside us, with an older zarr.
.venv/%/.installed: tests/%.txt $(INSTALLED)
	test -x .venv/$*/bin/python || $(PYTHON) -m venv .venv/$*
	.venv/$*/bin/python -m pip install --quiet --disable-pip-version-check -r tests/$*.txt
	touch $@

demo: $(INSTALLED)
	$(BIN)/dualsd demo --out demo-output

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes of one thread each: torch's threads in both of them would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test: check $(BESIDE)
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED) $(BESIDE)
	$(PYTEST) -m slow

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build dist demo-output site
