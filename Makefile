# `make demo` and `make test` need nothing but Python and a package index; they set themselves up.

PYTHON ?= python3
BIN := .venv/bin
PACKAGES := halfv_accel halfv_probe halfv_data halfv_cli tiny_vlm
DEMO := runs/demo

.PHONY: help setup demo test check lint types tiny-vlm accuracy sweep probe-cost bench-cpu bench-gpu kept methods schema

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/.installed  ## make .venv and install everything into it

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup  ## calibrate the embedded model, plot and report what was found, ask it about a picture
	mkdir -p $(DEMO)
	$(BIN)/halfv calibrate --model tiny-qwen2.5-vl --out $(DEMO)/profile.json
	$(BIN)/halfv plot-entropy --profile $(DEMO)/profile.json --out $(DEMO)/entropy.png
	$(BIN)/halfv report --profile $(DEMO)/profile.json --out $(DEMO)/report.html
	$(BIN)/halfv run --profile $(DEMO)/profile.json --compare

test: setup  ## run the tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: lint types test  ## lint, types and tests, as CI runs them

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	@# Type-check under the installed names, which differ from the folders'.
	@mkdir -p build/types
	@ln -sfn ../../halfv_accel build/types/halfv_accel && ln -sfn ../../halfv_probe build/types/halfv_probe
	@ln -sfn ../../calibration_data build/types/halfv_data && ln -sfn ../../cli build/types/halfv_cli
	@ln -sfn ../../tiny_vlm build/types/tiny_vlm
	MYPYPATH=build/types $(BIN)/mypy $(addprefix -p ,$(PACKAGES))

tiny-vlm: setup  ## train the embedded models again (about two and a half hours on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m tiny_vlm.train tiny-qwen2.5-vl --out runs/tiny-qwen2.5-vl & qwen=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m tiny_vlm.train tiny-llava --out runs/tiny-llava & llava=$$!; \
	wait $$qwen && wait $$llava
	$(BIN)/python -m tiny_vlm.report runs/tiny-qwen2.5-vl tiny-qwen2.5-vl
	$(BIN)/python -m tiny_vlm.report runs/tiny-llava tiny-llava
	OMP_NUM_THREADS=1 $(BIN)/python -m tiny_vlm.train tiny-qwen2.5-vl-sparse --out runs/tiny-qwen2.5-vl-sparse
	$(BIN)/python -m tiny_vlm.report runs/tiny-qwen2.5-vl-sparse tiny-qwen2.5-vl-sparse

# float32 and not auto, so that every machine measures the same.
accuracy: setup  ## measure the embedded models, untouched and accelerated (the README's table)
	for model in tiny-qwen2.5-vl tiny-llava tiny-qwen2.5-vl-sparse; do \
	  mkdir -p reports/tiny_vlm/$$model && \
	  $(BIN)/halfv calibrate --model $$model --dtype float32 --out reports/tiny_vlm/$$model/profile.json && \
	  $(BIN)/python -m tiny_vlm.evaluate $$model --dtype float32 --profile reports/tiny_vlm/$$model/profile.json \
	    --out reports/tiny_vlm/$$model/accuracy.json || exit 1; \
	done

sweep: setup  ## run every plan on held-out scenes, and compare with what calibration chooses (about 40 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m tiny_vlm.sweep tiny-qwen2.5-vl --out reports/sweep/tiny-qwen2.5-vl & qwen=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m tiny_vlm.sweep tiny-llava --out reports/sweep/tiny-llava & llava=$$!; \
	wait $$qwen && wait $$llava

probe-cost: setup  ## what measuring costs beside a plain forward (a random-weight model, ten minutes)
	mkdir -p reports/probe
	$(BIN)/python -m halfv_probe.benchmark --out reports/probe/cost.json

BENCH := $(BIN)/halfv bench --random-weights --out reports/bench
bench-cpu: setup  ## speed on a model that fits a laptop: the README's table (a quarter of an hour on a quiet machine)
	mkdir -p reports/bench
	$(BENCH)/cpu-sparse.json --chart reports/bench/cpu-sparse.png --model mid --device cpu --visual-tokens 1200 \
	  --plan ivr:1:0.25,sparse:9:0.05 --new-tokens 8 --repeats 20
	$(BENCH)/cpu-freeze.json --chart reports/bench/cpu-freeze.png --model mid --device cpu --visual-tokens 1200 \
	  --plan ivr:2:0.5,freeze:6 --new-tokens 8 --repeats 20
	$(BENCH)/cpu-keep-all.json --model mid --device cpu --visual-tokens 1200 \
	  --plan ivr:1:1,sparse:9:1 --new-tokens 2 --repeats 50
	$(BIN)/python -m halfv_accel.bench.targets reports/bench > reports/bench/targets.md

bench-gpu: setup  ## the same on an H200, models of real size (some minutes)
	mkdir -p reports/bench
	$(BENCH)/h200-qwen.json --chart reports/bench/h200-qwen.png --model qwen2.5-vl-7b --plan paper
	$(BENCH)/h200-llava.json --chart reports/bench/h200-llava.png --model llava-next-7b --plan paper
	$(BENCH)/h200-ragged.json --chart reports/bench/h200-ragged.png --model qwen2.5-vl-7b --plan paper --batch 8 --ragged
	$(BIN)/python -m halfv_accel.bench.targets reports/bench > reports/bench/targets.md

compare: setup  ## all methods, three budgets, 1,000 held-out questions, on the embedded models (about 20 minutes on 2 cores)
	rm -rf runs/heldout
	$(BIN)/python -m tiny_vlm.heldout --samples 1000 --out runs/heldout
	OMP_NUM_THREADS=1 $(BIN)/halfv compare --model tiny-qwen2.5-vl $(HELDOUT)/tiny-qwen2.5-vl & qwen=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/halfv compare --model tiny-llava $(HELDOUT)/tiny-llava & llava=$$!; \
	wait $$qwen && wait $$llava
HELDOUT := --data runs/heldout --samples 1000 --batch-size 20 --out reports/compare

kept: setup  ## draw what every method keeps of one picture, on the embedded models
	$(BIN)/python -m tiny_vlm.methods_sheet --out reports/methods

methods: setup  ## write the table of docs/methods.md anew
	$(BIN)/python -m halfv_accel.catalogue docs/methods.md

schema: setup  ## export the JSON Schemas of profile.json and plan.json to docs/
	$(BIN)/python -c "import json, halfv_accel.profile as p; print(json.dumps(p.json_schema(), indent=2))" > docs/profile.schema.json
	$(BIN)/python -c "import json, halfv_accel.plan_document as p; print(json.dumps(p.json_schema(), indent=2))" > docs/plan.schema.json
