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

# The C++ tests, then the engine under the sanitizers: damaged plans (FUZZ of them), threads that share models, allocations.
# The sanitized builds take minutes to compile with the vector kernels; PORTABLE=ON leaves those out.
FUZZ ?= 10000
PORTABLE ?= OFF
PLANS := build/plans
sanitize:
	$(PYTHON) native/tests/make_plans.py $(PLANS) 40
	@for kind in address,undefined thread ""; do \
	  dir=build/sanitize-$${kind%%,*}; \
	  cmake -S . -B $$dir -G Ninja -DROADWORTHY_TESTS=ON -DROADWORTHY_SANITIZE=$$kind -DROADWORTHY_PORTABLE=$$(test -n "$$kind" && echo $(PORTABLE) || echo OFF) > /dev/null && cmake --build $$dir -j $(JOBS) || exit 1; \
	done
	cd build/sanitize- && ctest --output-on-failure
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 ASAN_OPTIONS=allocator_may_return_null=0 \
	  build/sanitize-address/native/tests/fuzz_plan $(FUZZ) 1 $(PLANS)/*.rwp
	TSAN_OPTIONS=halt_on_error=1 build/sanitize-thread/native/tests/threads 4 $(PLANS)/random00*.rwp
	build/sanitize-/native/tests/allocations $(PLANS)/random00*.rwp
