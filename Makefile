# make quickstart | test | slow | parity | lint | mutants | docs | lock | lowest: each installs what it needs
# first, this package as an editable installation included.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

# uv makes an environment even where Python lacks ensurepip; such an environment has no pip.
ifdef UV
CREATE = $(UV) venv --quiet --python $(PYTHON) $(VENV)
INSTALL = $(UV) pip install --quiet --python $(BIN)/python
else
CREATE = $(PYTHON) -m venv $(VENV)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.PHONY: quickstart test slow parity lint mutants docs lock lowest clean

quickstart: $(VENV)/run.stamp
	$(BIN)/finetune-jax quickstart --config=quickstart --workdir=runs/quickstart

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2

slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow

parity: $(VENV)-ref/ref.stamp
	$(VENV)-ref/bin/python -m pytest tests/parity tests/test_vgg16_story.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

mutants: $(VENV)/dev.stamp
	$(BIN)/python tests/mutation.py

docs: $(VENV)/dev.stamp
	$(BIN)/python docs/build.py

# The newest versions of everything, for the tests. Needs uv.
lock:
	uv pip compile --quiet --universal --upgrade --extra dev --no-emit-index-url \
	    --custom-compile-command "make lock" pyproject.toml -o requirements.lock

# The oldest versions that requirements.txt allows, in an environment of their own. Needs uv.
lowest:
	uv venv --quiet --clear --python 3.11 $(VENV)-lowest
	uv pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct -e .[dev]
	$(VENV)-lowest/bin/python -m pytest tests/test_run.py tests/artifact tests/pretrained tests/data

$(BIN)/python:
	$(CREATE)

$(VENV)/run.stamp: requirements.txt pyproject.toml setup.py | $(BIN)/python
	$(INSTALL) -e .
	touch $@

$(VENV)/dev.stamp: requirements.lock pyproject.toml setup.py | $(BIN)/python
	$(INSTALL) -r requirements.lock
	$(INSTALL) --no-deps -e .
	touch $@

$(VENV)-ref/ref.stamp: requirements-reference.txt requirements.lock
	$(MAKE) VENV=$(VENV)-ref $(VENV)-ref/dev.stamp
	$(subst $(BIN),$(VENV)-ref/bin,$(INSTALL)) -r requirements-reference.txt
	$(subst $(BIN),$(VENV)-ref/bin,$(INSTALL)) --no-deps imagecorruptions==1.1.2
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-ref $(VENV)-lowest runs site build
