# Targets are described by the text after '##', variables by the lines that begin with '#:'; `make help` prints both.
# `make stage2` alone does everything it needs.
#: SIZE=tiny|2b|4b|8b    size of the model (tiny)
#: CORPUS=NAME           corpus of experiments/corpus and data_shards: world, rsvqa, geoscale_vqa or one of yours (world)
#: ARCHIVES=DIR          where the raw archives of that corpus lie; RSVQA_ROOT is its other name
#: MODEL=DIR             stage 1 starts from this Hugging Face folder or hub name
#: INIT_FROM=DIR         stage 2 starts from this folder, instead of from a stage 1 of ours
#: RESUME=1              goes on from the newest valid checkpoints
#: FAST=1                forty steps, to check that everything runs; such runs have names of their own (test: half of it)
#: SEED=N DEVICES=N NODES=N JOBS=N   seed, GPUs (tiny: processes, 2), machines, twins at a time
#: ARGS="..." ARGS2="..."   options added to the command (make stage2: to both stages); to stage 2 and its twins alone
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
SIZE ?= tiny
CORPUS ?= world
SEED ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Threads that spin while they wait slow a shared machine six-fold (measured with four other jobs on two cores). Even a
# bounded spin (GOMP_SPINCOUNT=20000), 6 per cent faster alone, takes twice the time beside two other jobs.
export OMP_WAIT_POLICY ?= PASSIVE
# A tiny run alone takes two ranks of one thread each: 1.15 to 1.4 times as fast as one rank of two threads, whose every
# small operation waits for a thread to wake (docs/results.md). Twins side by side take one rank and thread each: three of
# them share two cores better than two and then one. No hub is needed; the larger sizes fetch their weights there, unless
# MODEL and INIT_FROM are folders.
ifeq ($(SIZE),tiny)
export HF_HUB_OFFLINE ?= 1
DEVICES ?= $(if $(filter 1,$(shell getconf _NPROCESSORS_ONLN)),1,2)
JOBS ?= 3
ALONE := DEVICES=1 OMP_NUM_THREADS=1
export OMP_NUM_THREADS ?= 2
stage1 stage2 twin-%: export OMP_NUM_THREADS := $(if $(filter 1,$(DEVICES)),2,1)
test falsify ablations bench torture: export OMP_NUM_THREADS := 1
endif

ROOT := data_shards/$(CORPUS)
# A run of FAST=1 has a name of its own: no other target takes its 40 steps for a trained model.
TAG := $(SIZE)-$(CORPUS)$(if $(filter-out 1,$(SEED)),-seed$(SEED))$(if $(FAST),-fast)
STAGE1 := runs/stage1-$(TAG)
STAGE2 := runs/stage2-$(TAG)
BACKBONE := $(or $(INIT_FROM),$(STAGE1)/latest/hf)
BACKBONE_FILE := $(if $(INIT_FROM),,$(STAGE1)/latest/hf/config.json)
ARCHIVES ?= $(RSVQA_ROOT)
TWINS := plain_lora gsd_text bucketed
OVERLAYS = -c experiments/size/$(SIZE).yaml $(addprefix -c ,$(wildcard experiments/data/$(CORPUS).yaml))
OVERRIDES = --seed_everything $(SEED) --data.seed $(SEED) --data.root $(ROOT) $(if $(DEVICES),--trainer.devices $(DEVICES)) \
  $(if $(NODES),--trainer.num_nodes $(NODES)) \
  $(if $(FAST),--trainer.max_steps 40 --data.limit_images 64) $(ARGS)
# RESUME=1 goes on with each run that left a checkpoint; the others (killed before their first, or not begun) start.
resume = $(if $(and $(RESUME),$(wildcard $(1)/latest/checkpoints/step=*.ckpt)),--resume true)
FIT = $(BIN)/scaleearth fit
STAGE2_FIT = $(FIT) -c experiments/stage2.yaml $(OVERLAYS)
STAGE2_SET = --model.init_args.init_from $(BACKBONE) --test_after_fit true $(OVERRIDES) $(UNREAD) $(ARGS2)

.PHONY: look help setup check test shards corpus stage1 stage2 compare evaluate falsify ablations sheets bench torture export viewer serve dashboard lock clean

help:  ## this list
	@grep -hE '^[a-z0-9%-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@sed -n 's/^#:/ /p' Makefile

setup: .venv/.installed  ## environment in .venv with the versions of constraints.txt
.venv/.installed: setup.cfg constraints.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@start=$$SECONDS; $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' && \
	  echo $$((SECONDS - start)) > $@

check: setup  ## format, lint, types, layers (no tests)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Images of containers often forbid compiled files; without them every one of the suite's processes compiles our sources.
test: export PYTHONDONTWRITEBYTECODE :=
test: setup  ## the test suite (FAST=1: without its slowest tests, in half the time)
	$(BIN)/pytest -n 2 --dist worksteal $(if $(FAST),-m "not slow") $(ARGS)

shards: $(ROOT)/index.json  ## the corpus CORPUS as shards (world: procedural, no download)
corpus: shards  ## the same, under its other name
# Where the generator is newer, or archives are named, `prepare` looks: it leaves a corpus of the same content alone and
# refuses a stale one.
# Status 3 says that records were refused, fewer than the fatal share: the corpus is whole, its quarantine.jsonl names them.
$(ROOT)/index.json: $(wildcard scaleearth_pl/prepare/$(CORPUS)/*.py) $(if $(ARCHIVES),look) | setup
	@start=$$SECONDS; { $(BIN)/scaleearth prepare experiments/corpus/$(CORPUS).yaml --out $(ROOT) \
	  $(if $(ARCHIVES),--set root=$(ARCHIVES)) || [ $$? -eq 3 ]; } && \
	  { test -e $(ROOT)/.seconds || echo $$((SECONDS - start)) > $(ROOT)/.seconds; }

# The recipe trains on split stage1; a corpus whose own file does not say that it has one is trained on its split train.
stage1: setup shards  ## full-parameter SFT, ends in a Hugging Face folder
	$(FIT) -c experiments/stage1.yaml $(OVERLAYS) \
	  $(or $(addprefix -c ,$(wildcard experiments/data/$(CORPUS)_stage1.yaml)),--data.train_splits '[train]') \
	  --experiment stage1-$(TAG) \
	  $(if $(MODEL),--model.init_args.backbone.source $(MODEL)) $(call resume,$(STAGE1)) $(OVERRIDES)
$(STAGE1)/latest/hf/config.json:
	$(MAKE) --no-print-directory stage1

stage2: setup shards $(BACKBONE_FILE)  ## CS-HLoRA and SSE-U on the 4-bit backbone, then the summary
	$(STAGE2_FIT) --experiment stage2-$(TAG) $(call resume,$(STAGE2)) $(STAGE2_SET)
	$(BIN)/scaleearth summary $(STAGE2)/latest --corpus $(ROOT) $(if $(INIT_FROM),,--stage1 $(STAGE1)/latest)

evaluate: setup shards $(BACKBONE_FILE)  ## checkpoints x GSD policies on CORPUS; reports/evaluate
	@test -e $(STAGE2)/latest/adapter/scaleearth.json || $(MAKE) --no-print-directory stage2
	$(BIN)/scaleearth evaluate $(STAGE2)/latest $(wildcard $(foreach t,$(TWINS),runs/$(t)-$(TAG)/latest)) \
	  --corpus $(ROOT) --policy metadata predicted fused $(if $(FAST),--limit-images 64 --teacher-forced) $(ARGS)

falsify: setup shards  ## what could prove the idea wrong: variants x seeds, a verdict per hypothesis (FAST=1: no verdict)
	$(BIN)/scaleearth falsify --size $(SIZE) --corpus $(ROOT) $(if $(FAST),--fast) $(ARGS)

ablations: setup shards  ## what each component is worth (Figure 6): reports/ablations (FAST=1: nothing concluded)
	$(BIN)/scaleearth ablations --size $(SIZE) --corpus $(ROOT) $(if $(FAST),--fast) $(ARGS)

sheets: setup shards  ## images, questions and every variant's answers side by side (after `make compare`): reports/sheets
	$(BIN)/scaleearth sheets --size $(SIZE) --corpus $(ROOT) $(ARGS)

# Its twins are tested at once: a validation just before that would be read by nobody.
compare: setup shards  ## plain LoRA, GSD as text and bucketed twins from the same stage 1; the versus table
	@test -e $(STAGE2)/latest/summary.json || $(MAKE) --no-print-directory stage2
	@$(MAKE) --no-print-directory -j $(or $(JOBS),1) $(if $(filter-out 1,$(JOBS)),$(ALONE)) \
	  UNREAD='--trainer.limit_val_batches 0' $(TWINS:%=twin-%)
	$(BIN)/scaleearth compare $(STAGE2)/latest $(foreach t,$(TWINS),--twin $(t)=runs/$(t)-$(TAG)/latest) \
	  --corpus $(ROOT) --out $(STAGE2)/latest/comparison.json

# % is the name of a file in experiments/baseline or experiments/ablation. A twin that is trained is left as it is.
twin-%: setup shards $(BACKBONE_FILE)  ## ours with one idea changed: twin-plain_lora, twin-no_tiers, ...
	@if test -e runs/$*-$(TAG)/latest/predictions.jsonl; then \
	  echo "$*: runs/$*-$(TAG)/latest is kept as it is; remove runs/$*-$(TAG) to train it again"; \
	else set -o pipefail; $(STAGE2_FIT) -c $(or $(wildcard experiments/ablation/$*.yaml),experiments/baseline/$*.yaml) \
	  --experiment $*-$(TAG) $(call resume,runs/$*-$(TAG)) $(STAGE2_SET) 2>&1 | sed -u 's/^/$*: /'; fi

bench: setup  ## the ladder against other trainers (extra bench)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m bench $(ARGS)

torture: setup  ## 28 faults as real processes with real signals; reports/torture.json
	$(BIN)/python tests/torture/run.py $(ARGS)

export: setup  ## the dequantised base, and adapters folded at 32 GSDs for PEFT and vLLM: exports/
	$(BIN)/scaleearth export-base $(STAGE2)/latest --out exports/base
	$(BIN)/scaleearth export $(STAGE2)/latest --grid 0.1:30:0.08dex --out exports/bank --base-name exports/base

viewer: setup  ## a page with a GSD slider: answers and gates follow
	$(BIN)/scaleearth viewer --model $(STAGE2)/latest --corpus $(ROOT) $(ARGS)

serve: setup  ## OpenAI-compatible endpoint
	$(BIN)/scaleearth serve --model $(STAGE2)/latest $(ARGS)

dashboard: setup  ## TensorBoard on the newest version of every run
	@rm -rf reports/dashboard && mkdir -p reports/dashboard && for run in runs/*/latest; do \
	  ln -s "$$PWD/$$run" reports/dashboard/$$(basename $$(dirname $$run)); done
	$(BIN)/tensorboard --logdir reports/dashboard $(ARGS)

lock: setup  ## requirements.lock: every package with its version and hashes
	@$(BIN)/pip install --quiet --disable-pip-version-check uv
	@{ sed '/^[^#]/,$$d' requirements.lock; $(BIN)/uv pip compile setup.cfg --quiet --extra dev --extra bench -c constraints.txt \
	  --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --python-platform x86_64-manylinux_2_28; \
	  } > requirements.lock.new && mv requirements.lock.new requirements.lock

clean:  ## removes runs, reports and every corpus in data_shards, keeps the environment
	rm -rf runs reports data_shards/*/
