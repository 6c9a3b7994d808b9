# The commands that people repeat; `make venv` once, before them.
PYTHON ?= python

.PHONY: venv toy test slow lint

venv:  ## everything that the commands below need
	$(PYTHON) -m pip install -r requirements-dev.txt

toy:  ## the whole method on the invented world, two to six minutes
	$(PYTHON) calunc.py

test:  ## the fast tests, on a CPU, about three minutes
	$(PYTHON) -m pytest

slow:  ## those that kill processes, open a browser, compare with other libraries, or fuzz
	$(PYTHON) -m pytest tests/slow

lint:
	$(PYTHON) -m ruff check .
