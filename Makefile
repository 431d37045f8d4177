# moesaic: `make demo` runs the main job, `make test` the tests; both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test test-ray coverage check format bench-place bench-eplb bench-plan bench-update bench-checksum bench-collect bench-record bench-tracking demo-live docs clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	touch $@

install: .venv/installed  ## moesaic into .venv

install-dev: .venv/installed-dev  ## … with what tests and checks need

demo: install  ## the main job on real loads: 2 nodes × 4 GPUs as 8 ranks on this machine's CPU
	$(BIN)/moesaic run

demo-live: install  ## a small MoE that is trained here: its real loads, its real weights moved, its logits the same
	$(PIP) --editable '.[transformers]'
	test -f outputs/small_moe/model.safetensors || $(BIN)/python -m examples.train_small_moe outputs/small_moe
	$(BIN)/moesaic run experiment=live hydra.run.dir=outputs/live
	$(BIN)/python -m examples.logits_through_placement outputs/small_moe outputs/live

test: install-dev  ## all tests that need no GPU
	$(BIN)/pytest -n 2 --dist worksteal -m "not alone"
	$(BIN)/pytest -m alone

test-ray:  ## the sweep on a Ray cluster of two nodes, in an environment of its own: the launcher wants an older cloudpickle
	test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	grep -vE '^(cloudpickle|joblib)==' constraints.txt > .venv-ray/constraints.txt
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-ray/constraints.txt --editable '.[ray]' pytest pytest-timeout pyte ray==2.60.0
	.venv-ray/bin/python -m pytest tests/pipeline/test_launchers.py -k ray -rs

coverage: install-dev  ## the tests, with the coverage of stages and pipeline
	$(BIN)/pytest -n 2 --dist worksteal -m "not alone" --cov --cov-report=term --cov-fail-under=90

check: install-dev  ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev  ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-place: install-dev  ## the placement policies against each other; tables in outputs/bench_place and in MLflow
	$(BIN)/python -m tests.bench.bench_place

bench-eplb: install-dev  ## EPLB for all layers at once against its published loops
	$(BIN)/python -m tests.bench.bench_eplb

bench-plan: install-dev  ## full plans, from 32 to 4,096 GPUs
	$(BIN)/python -m tests.bench.bench_plan

bench-update: install-dev  ## the executors and transports side by side, on all GPUs or on CPU ranks
	$(BIN)/python -m tests.bench.bench_update --out outputs/bench_update.md $(if $(shell command -v nvidia-smi),,--model gpt_oss_20b)

bench-checksum: install-dev  ## checksums against torch.sum of the same bytes
	$(BIN)/python -m tests.bench.bench_checksum

bench-collect: install-dev  ## memory and time of reading dumps of a GiB, each format
	$(BIN)/python -m tests.bench.bench_collect

bench-record: install-dev  ## what counting a model's choices costs it
	$(BIN)/python -m tests.bench.bench_record

bench-tracking: install-dev  ## what MLflow costs a run and a sweep, and how it bears 5,000 runs
	$(BIN)/python -m tests.bench.bench_tracking

docs: install-dev  ## the generated tables of docs/, anew
	$(BIN)/python -m tests.docs.tables

clean:  ## remove what runs and tools left (not the runs in outputs)
	rm -rf .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis .coverage* dist build
