# `make demo` and `make test` do everything on a fresh clone: they make .venv and install what they need.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
S3_SERVER := .venv/s3-server/.installed

.PHONY: demo test test-slow check docs install clean

install: $(INSTALLED)

# torch first and pinned, so that no other package chooses it. A machine whose pip knows a CPU build takes that one;
# PyPI's own for Linux is a CUDA build (PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu avoids it).
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	touch $@

# The S3 server of the tests, in an environment of its own: it takes an older python-dateutil than constraints.txt has.
$(S3_SERVER): tests/s3-server.txt $(INSTALLED)
	test -x .venv/s3-server/bin/python || $(PYTHON) -m venv .venv/s3-server
	.venv/s3-server/bin/python -m pip install --quiet --disable-pip-version-check -r tests/s3-server.txt
	touch $@

demo: $(INSTALLED)
	$(BIN)/dualsd demo --out demo-output

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes of one thread each: torch's threads in both of them would wait for each other. Tests that take two
# threads by themselves let the one that waits sleep: spinning, it would keep the others from their work. Each process
# begins with half of the files and takes from the other's when it is done: what a file's tests share is made once.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist worksteal

test: check $(S3_SERVER)
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED) $(S3_SERVER)
	$(PYTEST) -m slow

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build dist demo-output site
