# make demo   see it work: makes an environment, a small dataset, and runs the app on it
# make test   run the tests
# make lint   style, types, spelling, import contracts
# make docs   build the documentation
# make bench  measure against the tools a user would pick instead; writes docs/benchmarks.md
# make setup  only make the environment for development (.venv)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= demo_data
RESULTS ?= demo_results
ATLAS := $(DATA)/derivatives/atlas/tpl-fsaverage/tpl-fsaverage_hemi-L_atlas-demo_den-10k_dseg.label.gii

.PHONY: demo test lint docs bench setup clean

demo: $(VENV)/.demo
	$(BIN)/python demo/make_dataset.py $(DATA)
	$(BIN)/dnnbrain $(DATA) $(RESULTS) participant --network efficientnet_lite0 --atlas $(ATLAS) --work-dir work
	@echo
	@echo "The report: $(abspath $(RESULTS))/sub-01.html"

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadscope $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy dnnbrain_app
	$(BIN)/codespell
	$(BIN)/lint-imports

docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py

setup: $(VENV)/.dev

# One stamp a set of extras, so that `make demo` does not wait for what only developers need.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

clean:
	rm -rf $(DATA) $(RESULTS) work docs/_build
