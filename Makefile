# `make study` and `make test` need Python >= 3.11, pip and make; they set up .venv on their own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export SITOUT_DATA ?= $(abspath $(wildcard ../shared/data))

.PHONY: study test lint types docs unit reports same-mask same-run bench bench-thinning gpu time-to-error uci averaging clean

study: $(VENV)/.study ## train on handwritten digits with and without dropout, and report
	$(BIN)/sitout study digits --train-size 400 --trials 4 --epochs 20 --out sitout-study-digits

test: $(VENV)/.test lint types docs unit ## everything that CI runs

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

docs: $(VENV)/.test
	$(BIN)/sphinx-build --quiet --fail-on-warning --nitpicky --fresh-env docs docs/_build

unit: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -q -rs

$(VENV)/.study: pyproject.toml constraints.txt | $(VENV)
	$(PIP_INSTALL) --editable '.[study]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)
	$(PIP_INSTALL) --editable '.[test]'
	@touch $@ $(VENV)/.study

$(VENV):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sitout needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

reports: $(VENV)/.study ## the studies whose figures stand in the documentation (about half an hour)
	$(BIN)/sitout study digits --train-size 400 --trials 4 --epochs 20 --out build/digits-400
	$(BIN)/sitout study fashion-mnist --train-size 5000 --net mlp:512x2 --trials 4 --epochs 20 --out build/fashion-mnist-5000
	cp build/digits-400/report.json docs/results/digits-400.json
	cp build/fashion-mnist-5000/report.json docs/results/fashion-mnist-5000.json

same-mask: $(VENV)/.test ## the table of equal and different masks that stands in the documentation
	$(BIN)/python benchmarks/same_mask.py

same-run: $(VENV)/.test ## one training run in six ways: are its masks and losses the same? (a minute)
	$(BIN)/python benchmarks/same_run.py --save

bench: | $(VENV) ## how fast it is: a page, its rows and the plot (a few minutes; leave the machine alone)
	$(PIP_INSTALL) --editable '.[bench]'
	$(BIN)/python benchmarks/run.py --save

bench-thinning: | $(VENV) ## the same for units that are not computed (a quarter of an hour)
	$(PIP_INSTALL) --editable '.[bench]'
	$(BIN)/python benchmarks/thinning.py --save

gpu: $(if $(PY),,$(VENV)/.test) ## on a machine with a GPU: are the kernels right, then how fast are they (8 minutes; PY=python takes what is there)
	$(or $(PY),$(BIN)/python) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu needs a GPU, and a torch that sees it.")'
	env -u TRITON_INTERPRET CUBLAS_WORKSPACE_CONFIG=:4096:8 timeout 300 $(or $(PY),$(BIN)/python) -m pytest -q -n 12 --dist loadfile tests/gpu; \
	  tests=$$?; env -u TRITON_INTERPRET $(or $(PY),$(BIN)/python) benchmarks/gpu.py --save --seconds 180 && exit $$tests

time-to-error: $(VENV)/.test ## thinned layers against dropout, until both are as good (two hours; it resumes)
	$(BIN)/python benchmarks/time_to_error.py run

uci: $(VENV)/.test ## nine sets of the paper on Monte-Carlo dropout (an hour and a half to three; it resumes)
	$(BIN)/python benchmarks/uci.py run --splits 20

averaging: | $(VENV) ## test error of means over dropped-out networks, on MNIST (twenty minutes)
	$(PIP_INSTALL) --editable '.[bench,study]'
	$(BIN)/python benchmarks/averaging.py

clean: ## forget the environment and everything built
	rm -rf $(VENV) docs/_build .mypy_cache .pytest_cache .ruff_cache
