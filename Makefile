# Everything works on a fresh machine: each target makes the virtual environment that it needs.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench docs picture screenshots clean

demo: $(READY)  ## learn several products in sequence, then inspect mixed images
	$(BIN)/continuad demo --out demo

test: lint  ## the whole suite, but for what is marked slow
	tests/servers.sh
	$(BIN)/pytest -n 2 --dist worksteal

lint: $(READY)  ## style, types, and the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## the documentation, readable from the disk: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

picture: demo  ## the README's picture
	$(BIN)/python -c "from PIL import Image; sheet = Image.open('demo/contact_sheet.png').convert('RGB'); \
	    sheet.reduce(2).save('docs/demo.jpg', quality=88)"

screenshots: $(READY)  ## the pictures of the station's page
	$(BIN)/python docs/screenshots.py docs/station

bench: $(READY)  ## L/M/S on real products: make bench DATA=folder
	$(BIN)/python benchmarks/adapts.py $(DATA)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
