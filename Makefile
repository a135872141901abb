# make train: environment, data, a private generator of MNIST in runs/.   make test: environment, the suite.
PYTHON ?= $(shell command -v python3.11 || command -v python3.10 || command -v python3 || echo python3)
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: train test
train: $(VENV)/installed
	$(RUN) train.py --epsilon 1

test: $(VENV)/installed
	$(RUN) -m pytest -n 2 --dist worksteal

$(VENV)/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; (3, 10) <= sys.version_info < (3, 12) or sys.exit("Python 3.10 or 3.11 is needed, because tensorflow-privacy 0.9.0 supports no newer one; this is Python %d.%d (make PYTHON=/path/to/python3.11 chooses another)." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -r requirements.txt
	@touch $@
