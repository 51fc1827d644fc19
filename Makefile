# `make check` runs what continuous integration runs, in the environment that is active.
.PHONY: check lint types test

check: lint types test

lint:
	ruff check .
	ruff format --check .

types:
	mypy

test:
	python -m pytest
