# Thin: every recipe is a script or a cargo command that can be run alone. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export DUNLIN_CACHE ?= $(HOME)/.cache/dunlin
export PATH := $(DUNLIN_CACHE)/tools/bin:$(PATH)
TARGET := $(or $(CARGO_TARGET_DIR),target)
export DUNLIN_IMAGES ?= $(abspath $(TARGET))/images
NAME ?= dunlin
NODES ?= 4
NODE ?= n2
NOTICE_S ?= 15
MINUTES ?= 30
PREFIX ?= /usr/local
CLUSTER := NAME=$(NAME) NODES=$(NODES) e2e/cluster/cluster

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-20s %s\n", $$1, $$2}'

quickstart: preflight ## a swarm on a local cluster; its middle node is killed mid-answer (root)
	@e2e/prepare.sh $(TARGET)
	@$(MAKE) --no-print-directory cluster-build & go=$$!; trap "kill $$go 2>/dev/null" EXIT; \
	  $(MAKE) --no-print-directory build model && wait $$go
	@$(MAKE) --no-print-directory images
	$(TARGET)/release/quickstart --name $(NAME) --nodes $(NODES)

quickstart-down: ## remove every trace of the quick start
	$(CLUSTER) down --wipe

try: build model ## the same swarm as processes on this machine, without Kubernetes
	$(TARGET)/release/dunlin local --model $$(e2e/fetch-model.sh) --peers 3

test: unit test-kstatus e2e ## all tests (root: the end-to-end part makes network namespaces)

unit: model ## everything that needs no cluster
	tools/install.sh nextest g++
	python3 -m unittest discover -q tools/cuda
	cargo nextest run --locked --workspace
	cargo test --locked --workspace --doc --quiet

cuda-build: ## the CUDA kernels as machine code and PTX in target/cuda, and a look at what came out (a compiler from PyPI, 90 MB, into the cache; no GPU, no CUDA toolkit)
	nice tools/cuda/build.sh $(abspath $(TARGET))/cuda

test-kstatus: ## what Helm and Flux make of both kinds in every state, by the library that they use (needs Go)
	tools/install.sh nextest
	DUNLIN_KSTATUS=$$(e2e/build-go.sh kstatus "half a minute") cargo nextest run --locked --workspace --run-ignored only -E 'package(dunlin-operator) & test(kstatus)'

e2e: preflight images ## scenarios on a real local Kubernetes (root); FILTER=name runs some
	$(TARGET)/release/scenarios $(FILTER)

e2e-train: preflight images ## examples/train-bible.yaml through twenty kills of nodes, on a local cluster (root; about half an hour)
	$(TARGET)/release/scenarios --long through-twenty-kills

e2e-gpu: preflight images ## a node with an (emulated) GPU dies in the middle of an answer, and processors go on with it, on a local cluster (root)
	$(TARGET)/release/scenarios --long a-gpu-node-dies

test-examples: preflight images ## every file of examples/ on a local cluster, until it is Ready or has Succeeded (root; about 20 minutes)
	$(TARGET)/release/scenarios --long every-example-works

test-openai: build model ## the official OpenAI client against a local swarm (installs it from PyPI into the cache)
	DUNLIN_BIN=$(abspath $(TARGET))/release/dunlin e2e/openai/run.sh

test-clients: build model ## OpenAI's client for JavaScript, LangChain and LiteLLM against a local swarm (installs them, and Node, from npm and PyPI into the cache)
	DUNLIN_BIN=$(abspath $(TARGET))/release/dunlin e2e/with-swarm.sh e2e/clients/run.sh

test-templates: build ## 100,000 chats and texts as tokens, here and in transformers, with 35 templates of real models (installs it from PyPI into the cache)
	cargo build --locked --release -p dunlin-gateway --example prompts
	e2e/templates/run.sh $(TARGET)/release/examples/prompts $(TARGET)/release/dunlin

test-gguf: ## tokens and logits of small GGUF files of the usual shapes beside llama.cpp's (builds it into the cache, some minutes)
	tools/install.sh nextest
	DUNLIN_LLAMA_LOGITS=$$(e2e/gguf/llama-logits.sh) cargo nextest run --locked -p dunlin-model --run-ignored only --no-capture -E 'binary(gguf_shapes)'

test-s3: ## checkpoints of training runs in a bucket of a real S3 server (built from Go modules into the cache)
	tools/install.sh nextest
	e2e/s3/run.sh

test-page: build model ## the pages of a gateway and of a training run in headless Chromium (installs it with apt)
	python3 e2e/page/serving.py --dunlin $(TARGET)/release/dunlin --model $$(e2e/fetch-model.sh) --out $(TARGET)/page
	python3 e2e/page/training.py --dunlin $(TARGET)/release/dunlin --text $$(e2e/fetch-text.sh) --out $(TARGET)/page

test-vocabularies: ## tokens of the vocabularies that llama.cpp's tests have, as transformers has them (an sdist of 77 MB from PyPI)
	cargo build --locked --release -p dunlin-model --example vocabulary
	$(TARGET)/release/examples/vocabulary $$(e2e/bench/llama-cpp-source.sh)/models/*.gguf

test-peft: build ## adapters trained here, in Hugging Face's PEFT: same tokens (installs PyTorch and PEFT from PyPI into the cache)
	$$(e2e/torch/setup.sh) e2e/torch/adapters.py --dunlin $(TARGET)/release/dunlin --text $$(e2e/fetch-text.sh)

preflight: ## is everything there that a local cluster needs? installs what apt has
	e2e/cluster/cluster check

build: ## release binaries
	tools/install.sh g++
	cargo build --locked --release -p dunlin-worker -p dunlin-cli -p dunlin-operator -p dunlin-e2e

install: ## dunlin, the worker that it starts, and kubectl-dunlin, which is dunlin, into PREFIX/bin (PREFIX=/usr/local)
	cargo build --locked --release -p dunlin-cli -p dunlin-worker
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin $(TARGET)/release/dunlin $(TARGET)/release/dunlin-worker
	ln -sf dunlin $(DESTDIR)$(PREFIX)/bin/kubectl-dunlin

images: build model cluster-build ## container images as archives in target/images
	e2e/images/build.sh --bin-dir $(TARGET)/release --out $(DUNLIN_IMAGES)

model: ## SmolLM2-135M-Instruct into the cache
	@e2e/fetch-model.sh >/dev/null

cluster-build: ## Kubernetes, etcd, Helm, containerd from Go modules into the cache
	e2e/cluster/build.sh

cluster-up: cluster-build ## a cluster of NODES=4 nodes
	$(CLUSTER) up && $(CLUSTER) wait

cluster-down: ## take it down
	$(CLUSTER) down

cluster-kill: ## NODE=n2 dies without notice
	$(CLUSTER) kill $(NODE)

cluster-shutdown: ## NODE=n2 shuts down with NOTICE_S=15 of notice, then dies
	$(CLUSTER) shutdown $(NODE) $(NOTICE_S)

cluster-silence: ## packets of NODE=n2 vanish
	$(CLUSTER) silence $(NODE)

cluster-unsilence: ## and come back
	$(CLUSTER) unsilence $(NODE)

cluster-start: ## NODE=n2 boots again
	$(CLUSTER) start $(NODE)

crds: ## regenerate the CRDs and their references
	for kind in inferenceswarm trainingswarm; do \
	  cargo run --locked -q -p dunlin-crds --bin crdgen -- $$kind > charts/dunlin/files/crds/$${kind}s.yaml && \
	  cargo run --locked -q -p dunlin-crds --bin crdgen -- $$kind --docs > docs/reference/$$kind.md || exit 1; \
	done

chart-values: ## regenerate the reference of the chart's values
	python3 tools/chart-values.py

chart-lint: cluster-build ## helm lint --strict, and the same bytes from two renderings
	tools/chart-lint.sh

bench-recovery: preflight images ## stall on node loss, 20 kills and 20 silences (root, ~20 min)
	$(TARGET)/release/recovery

bench-stalls: build model ## stall of 1 and 8 streams at positions 100 and 1000 when the middle one of three processes is killed (~25 min)
	$(TARGET)/release/stalls --model $$(e2e/fetch-model.sh) $(STALLS)

bench-chaos: build model ## 8 streams for MINUTES=30 while a process is killed every 20 s and one is stopped every 60 s
	$(TARGET)/release/chaos --model $$(e2e/fetch-model.sh) --minutes $(MINUTES) $(CHAOS)

bench-overload: build model ## 500 requests at once: nobody is lost, and nothing is computed twice
	$(TARGET)/release/overload --model $$(e2e/fetch-model.sh) $(OVERLOAD)

bench-decode: build model ## tokens/s beside llama.cpp on the same file and threads
	e2e/bench/decode.sh

bench-types: ## decode tokens/s of each type of GGUF weights beside llama.cpp on the same file and threads
	cargo build --locked --release -p dunlin-model --example decode_speed
	e2e/bench/types.sh

bench-faults: build ## stall, redone work and cost of 20 kills and 20 notices of a local training run; 200 losses of all kinds on a loaded machine
	python3 e2e/bench/faults.py --dunlin $(TARGET)/release/dunlin --out $(TARGET)/bench/faults.json
	python3 e2e/bench/losses.py --dunlin $(TARGET)/release/dunlin --out $(TARGET)/bench/losses.json

bench-links: build ## tokens/s of a training run whose peers have 200 Mbit/s each, by codec (root)
	python3 e2e/bench/links.py --dunlin $(abspath $(TARGET))/release/dunlin --out $(TARGET)/bench/links.json

bench-loss: build ## the loss of a run that loses a peer every half minute beside PyTorch's (installs PyTorch from PyPI into the cache, 6 GB)
	$$(e2e/torch/setup.sh) e2e/torch/compare.py --dunlin $(TARGET)/release/dunlin --out $(TARGET)/bench/loss.json
	$$(e2e/torch/setup.sh) e2e/torch/compare.py --dunlin $(TARGET)/release/dunlin --delayed-updates --out $(TARGET)/bench/loss-delayed.json

bench-train: ## tokens/s of forward and backward beside PyTorch's (installs PyTorch from PyPI into the cache, 6 GB)
	cargo build --locked --release -p dunlin-model --example train_speed
	$$(e2e/torch/setup.sh) e2e/torch/beside.py --example $(TARGET)/release/examples/train_speed --out $(TARGET)/bench/train.json

bench-average: build ## averages of 100 MB among 4 peers, beside Gloo and hivemind (installs PyTorch and hivemind from PyPI, 3 GB)
	e2e/bench/average/average.sh

.PHONY: help cuda-build quickstart quickstart-down try test unit test-kstatus e2e e2e-train e2e-gpu test-examples test-openai test-clients test-templates test-gguf test-vocabularies test-peft test-s3 test-page preflight build install images model cluster-build cluster-up \
	cluster-down cluster-kill cluster-shutdown cluster-silence cluster-unsilence cluster-start crds chart-values chart-lint \
	bench-recovery bench-stalls bench-chaos bench-overload bench-decode bench-types bench-average bench-faults bench-links bench-loss bench-train
