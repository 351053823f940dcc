# Needs Python 3.11 or newer and pip; everything else goes into .venv.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := setup

.PHONY: help setup demo quick test test-shared test-slow test-export test-all tutorial lint clean

help:
	@echo "make setup        virtual environment in .venv, pinned by constraints.txt"
	@echo "make demo         trains, measures and draws on made-up pictures"
	@echo "make lint         ruff, mypy, import layers"
	@echo "make quick        lint, and the tests without processes, training, exports and long computing"
	@echo "make test         lint, and every test but the slow ones and those on real data"
	@echo "make test-shared  the tests on real data in ../shared/data"
	@echo "make test-slow    the tests that take minutes each"
	@echo "make test-export  the tests of exports to ncnn and LiteRT, with the packages that write them"
	@echo "make test-all     all of them"
	@echo "make tutorial     runs docs/tutorial.md on real data, and updates it"

setup: $(VENV)/.ready

$(VENV)/.ready: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mnv2det needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[test]'
	@touch $@

demo: setup
	@rm -rf runs/demo
	$(BIN)/python tools/train.py configs/ssdlite_shapes.yaml --out runs/demo
	$(BIN)/python tools/eval.py runs/demo --json runs/demo/metrics.json
	$(BIN)/python tools/grid.py runs/demo

# Files of tests side by side, with one thread each: most tests wait for one core. When a worker dies, the run ends and
# fails: with a new worker in its place, xdist's loadfile waits for ever.
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --max-worker-restart 0

quick: setup lint
	$(TEST) -m "not process and not training and not export and not heavy and not slow and not shared"

test: setup lint
	$(TEST) -m "not slow and not shared"

# on the real data beside the checkout (../shared/data); they skip, and say so, without it
test-shared: setup
	$(TEST) -m "shared and not slow"

test-slow: setup
	$(BIN)/python -m pytest -m slow

# What writes files for phones is large, and litert-torch needs older typing_extensions and pydantic than the versions of
# constraints.txt: an environment of its own.
EXPORT_VENV := .venv-export
test-export:
	$(PYTHON) -m venv $(EXPORT_VENV)
	grep -v '^typing\|^pydantic' constraints.txt > $(EXPORT_VENV)/constraints.txt
	$(EXPORT_VENV)/bin/python -m pip install --quiet $(PIP_ARGS) -c $(EXPORT_VENV)/constraints.txt -e '.[test,ncnn,litert]'
	OMP_NUM_THREADS=1 $(EXPORT_VENV)/bin/python -m pytest -m export_heavy

test-all: test test-shared test-slow

# the commands of docs/tutorial.md on real data, as they are printed; writes output and pictures into the page.
# After an interruption it goes on where it was; `rm -r runs/tutorial` begins anew.
DATA ?= ../shared/data
WORK := runs/tutorial
tutorial: setup
	@test -d $(DATA)/bccd -a -d $(DATA)/camvid || { echo "no bccd and camvid in $(DATA); name their folder: make tutorial DATA=..."; exit 2; }
	mkdir -p $(WORK)
	ln -sfn $(abspath $(DATA))/bccd $(WORK)/cells
	ln -sfn $(abspath $(DATA))/camvid $(WORK)/street
	$(BIN)/mnv2det import-weights $(DATA)/weights/tf2_mobilenet_v2_1.0_224_ptq.tflite \
		-o $(WORK)/weights/mobilenet_v2.safetensors --images $(DATA)/coco100/val2017
	$(BIN)/python docs/run_tutorial.py $(WORK) --update

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(EXPORT_VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
