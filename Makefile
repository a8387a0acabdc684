# Every target works alone on a fresh clone: it creates .venv, installs and runs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format docs wheels clean

# One thread: its numbers do not depend on how many cores there are.
demo: .venv/installed
	$(BIN)/saiopt compare gpt-stdlib --optimizers sgdsai-orthogonal sgdsai adamw --seeds 0 --threads 1

# A process per core; a file's tests stay together, for they share their fixtures.
test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist loadfile --durations 20

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/codespell

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Into site/, to be read without a network. Warnings are errors, which --quiet would hide.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# A source archive, a wheel for any machine, and one with kernels for this kind of it.
wheels: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[release]'
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	SAIOPT_PREBUILT=1 $(BIN)/python -m hatchling build -t wheel -d dist/linux
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist dist/linux/*.whl
	rm -r dist/linux

clean:
	rm -rf .venv site

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[lab,plot,published,jax,frameworks,dev]'
	touch $@

.venv/installed-docs: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@
