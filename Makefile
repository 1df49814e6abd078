# What people type without reading. VENV and PYTHON may be set: make test VENV=/path PYTHON=python3.12
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO ?= demo
# The extras of the environment, and the file of constraints that covers them.
EXTRAS ?= dev
PINS ?= constraints/dev.txt

.PHONY: demo test lint types report smoke gpu soak wheel clean

$(BIN)/efftx: pyproject.toml $(wildcard constraints/*.txt)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(PINS) -e '.[$(EXTRAS)]'
	@touch $@

# Two models that copy numbers, three seeds each, trained here and now and judged; the Reformer's figure 1, and the page.
demo: $(BIN)/efftx
	$(PYTHON) -c "import shutil; shutil.rmtree('$(DEMO)', ignore_errors=True)"
	@echo "Training two rows of scaling/table4, three seeds, two at a time: about three minutes on two cores."
	EFFTX_RESULTS=$(DEMO)/results EFFTX_RUNS=$(DEMO)/runs $(BIN)/efftx reproduce reformer/figure1 > /dev/null
	EFFTX_RESULTS=$(DEMO)/results EFFTX_RUNS=$(DEMO)/runs $(BIN)/efftx reproduce scaling/table4 \
		--row 'Transformer, copy' --row 'Terraformer, copy' jobs=2
	EFFTX_RESULTS=$(DEMO)/results EFFTX_RUNS=$(DEMO)/runs $(BIN)/efftx report

test: $(BIN)/efftx
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(BIN)/efftx
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/efftx
	$(BIN)/mypy

# Every item at the size that only proves the path, in roots of its own, two papers at a time.
smoke: $(BIN)/efftx
	$(PYTHON) -c "import shutil; [shutil.rmtree('$(DEMO)/smoke-' + part, ignore_errors=True) for part in ('results', 'runs')]"
	$(MAKE) --no-print-directory --jobs 2 $(patsubst experiments/%/,smoke-%,$(wildcard experiments/*/))

smoke-%: $(BIN)/efftx
	OMP_NUM_THREADS=1 EFFTX_RESULTS=$(DEMO)/smoke-results EFFTX_RUNS=$(DEMO)/smoke-runs \
		$(BIN)/efftx reproduce $* size=smoke

# What one H100-class card gives in nine minutes, into results/; the same again goes on from there. See .ci/gpu.
gpu: $(BIN)/efftx
	EFFTX=$(abspath $(BIN))/efftx .ci/gpu

# Flips one bit in every kind of file that efftx reads back, FLIPS times each, and kills KILLS commands at random moments:
# half an hour. Fails where anything was silently wrong, lost, left behind or ended in a traceback. The README has what it
# counted: INTO=results/soak.json.
FLIPS ?= 500
KILLS ?= 200
soak: $(BIN)/efftx
	$(BIN)/python -m tests.soak --flips $(FLIPS) --kills $(KILLS) $(if $(INTO),--into $(INTO))

report: $(BIN)/efftx
	$(BIN)/efftx report

wheel: $(BIN)/efftx
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) $(DEMO) dist build runs
