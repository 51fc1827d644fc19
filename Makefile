# `make check` runs what continuous integration runs, in the environment that is active.
PYTHON ?= python
BUILD ?= build/native
JOBS ?= 2

.PHONY: check lint types test native sanitize

check: lint types test

lint:
	ruff check .
	ruff format --check .

types:
	mypy

test:
	python -m pytest

# The compiled engine for a source tree: src/roadworthy/_native*.so, for the Python that is active. Incremental.
native:
	@mkdir -p $(BUILD)
	@cmake -S . -B $(BUILD) -G Ninja -DROADWORTHY_PYTHON=ON -DPython_EXECUTABLE="$$($(PYTHON) -c 'import sys; print(sys.executable)')" \
	  -Dnanobind_DIR="$$($(PYTHON) -m nanobind --cmake_dir)" > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }
	cmake --build $(BUILD) -j $(JOBS)
	cp $(BUILD)/_native*.so src/roadworthy/
