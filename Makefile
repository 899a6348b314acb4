# Everything a fresh machine needs is Python 3.11, pip and make: each target sets up .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-long bench lint clean

demo: $(VENV)/ready
	$(BIN)/python -m demo

test: $(VENV)/ready
	$(BIN)/python -m pytest -m "not long" --numprocesses 2 --dist loadgroup --no-loadscope-reorder

test-long: $(VENV)/ready
	$(BIN)/python -m pytest -m long

bench: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# uv installs in a minute what takes pip five; it is itself installed by pip. Ray starts many Python processes, each of
# which would compile all that it imports where bytecode is not written on the way.
$(VENV)/ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV): some 200 packages, a minute or two"
	@$(PYTHON) --version
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[jobs,dev]"
	touch $@
	@echo "$(VENV) is ready; to call its python by that name in this shell: . $(BIN)/activate"

clean:
	rm -rf $(VENV) demo-output
