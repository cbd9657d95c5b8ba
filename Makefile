# Two commands from a clean clone: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-full lint types bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[train,dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/offaxis demo --out demo-report --overwrite

lint: $(VENV)/.installed
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

types: $(VENV)/.installed
	$(BIN)/mypy

test: lint types
	$(BIN)/pytest -n 2 --dist loadfile -m 'not slow'

test-full: lint types
	$(BIN)/pytest -n 2 --dist loadfile

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/compare.py
	$(BIN)/python benchmarks/delta.py --out bench-delta
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/masks.py
	$(BIN)/python benchmarks/sparse.py
	$(BIN)/python benchmarks/adapters.py

clean:
	rm -rf $(VENV) demo-report bench-delta .pytest_cache .mypy_cache .ruff_cache
