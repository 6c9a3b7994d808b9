# The four commands that people repeat; `make venv` once, before them.
PYTHON ?= python

.PHONY: venv toy test lint page

venv:  ## everything that the commands below need
	$(PYTHON) -m pip install -r requirements-dev.txt

toy:  ## the whole method on the invented world, about two minutes
	$(PYTHON) calunc.py

test:  ## all tests, on a CPU
	$(PYTHON) -m pytest

lint:
	$(PYTHON) -m ruff check .

page:  ## docs/walkthrough.md again, from its numbers
	$(PYTHON) scripts/walkthrough.py write
