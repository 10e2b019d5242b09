# make quickstart | make test | make lint | make parity: each installs what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

# uv makes an environment even where Python lacks ensurepip; it then holds no pip, nor needs one.
ifdef UV
CREATE = $(UV) venv --quiet --python $(PYTHON) $(VENV)
INSTALL = $(UV) pip install --quiet --python $(BIN)/python
else
CREATE = $(PYTHON) -m venv $(VENV)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.PHONY: quickstart test slow parity lint clean

quickstart: $(VENV)/run.stamp
	$(BIN)/python -m finetune_jax.quickstart --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2

slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow

parity: $(VENV)-ref/ref.stamp
	$(VENV)-ref/bin/python -m pytest tests/parity tests/test_vgg16_story.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

$(BIN)/python:
	$(CREATE)

$(VENV)/run.stamp: requirements.txt | $(BIN)/python
	$(INSTALL) -r requirements.txt
	touch $@

$(VENV)/dev.stamp: requirements-dev.txt requirements.txt | $(BIN)/python
	$(INSTALL) -r requirements-dev.txt
	touch $@

$(VENV)-ref/ref.stamp: requirements-reference.txt requirements-dev.txt requirements.txt
	$(MAKE) VENV=$(VENV)-ref $(VENV)-ref/dev.stamp
	$(subst $(BIN),$(VENV)-ref/bin,$(INSTALL)) -r requirements-reference.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-ref runs
