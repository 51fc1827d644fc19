# `make check` runs what continuous integration runs, in the environment that is active.
PYTHON ?= python
BUILD ?= build/native
JOBS ?= 2

.PHONY: check lint types test native ctest sanitize

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
	cmake --build $(BUILD) -j $(JOBS) --target _native
	cp $(BUILD)/_native*.so src/roadworthy/

# The C++ tests, then the engine under the sanitizers: damaged plans (FUZZ of them) on every kernel path this CPU has, eight
# threads that share four models; and without sanitizers, allocations. ROADWORTHY_ASSETS adds the real networks.
FUZZ ?= 10000
PLANS := build/plans
CONFIGURE := cmake -S . -G Ninja -DROADWORTHY_TESTS=ON
sanitize: native ctest
	PYTHONPATH=src $(PYTHON) native/tests/make_plans.py $(PLANS) 40
	$(CONFIGURE) -B build/sanitize-address -DROADWORTHY_SANITIZE=address,undefined > /dev/null
	cmake --build build/sanitize-address -j $(JOBS) --target fuzz_plan
	UBSAN_OPTIONS=print_stacktrace=1 build/sanitize-address/native/tests/fuzz_plan $(FUZZ) 1 $(PLANS)/*.rwp
	$(CONFIGURE) -B build/sanitize-thread -DROADWORTHY_SANITIZE=thread > /dev/null
	cmake --build build/sanitize-thread -j $(JOBS) --target threads
	TSAN_OPTIONS=halt_on_error=1 build/sanitize-thread/native/tests/threads 3 $(PLANS)/*.rwp
	$(BUILD)/native/tests/allocations $(PLANS)/*.rwp

# The C++ tests in Release: every kernel path against plain code. In the same build as the module.
ctest:
	@mkdir -p $(BUILD)
	$(CONFIGURE) -B $(BUILD) > /dev/null
	cmake --build $(BUILD) -j $(JOBS)
	ctest --test-dir $(BUILD) --output-on-failure
