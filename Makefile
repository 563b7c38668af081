# What a developer does, by name. `make` alone lists it. PYTHON=python3.10 chooses the interpreter of .venv.
fits := import sys, ensurepip, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do $$p -c '$(fits)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test test-slow test-examples lint format schema bench bench-apo bench-gateway bench-train clean

help:
	@echo 'make setup      .venv with lightningrun and everything to develop it'
	@echo 'make demo       setup, then from a prompt to weights: no key, no GPU, no network'
	@echo 'make test       the fast tests'
	@echo 'make test-slow  kills, faults and whole runs'
	@echo 'make test-examples  every example of examples/ in its own framework: installs them, needs a package index'
	@echo 'make example-NAME   one of them, set up and run (make example-langgraph)'
	@echo 'make lint       ruff, formatting, types'
	@echo 'make format     let ruff rewrite what it can'
	@echo 'make schema     lightningrun.schema.json, after a change to the recipe language'
	@echo 'make bench      speed beside a bare loop of calls and a peer (PEER= leaves it out)'
	@echo 'make bench-apo  prompt optimisers side by side, about 20 minutes (QUICK=1: a few)'
	@echo 'make bench-gateway  what the gateway adds to a call, beside the LiteLLM proxy (PROXY= leaves it out)'
	@echo 'make bench-train  GRPO steps of ours beside TRL, about 10 minutes on a quiet machine'
	@echo 'make setup-gpu  .venv-gpu with the extra gpu (vLLM, torch for CUDA), on a machine with an NVIDIA GPU'
	@echo 'make gpu-check  what the GPU does with the embedded engine, sft and verl_grpo; without one, what is missing'
	@echo 'make clean      remove what was built (runs/ stays)'

setup: $(STAMP)

# A .venv of another Python than PYTHON is made anew; otherwise pip only adds what changed.
$(STAMP): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'error: needs Python 3.10, 3.11 or 3.12 with venv; name one: make PYTHON=...' >&2; exit 2; }
	@version='import sys; print(*sys.version_info[:2])'; \
	test "$$($(BIN)/python -c "$$version" 2>/dev/null)" = "$$($(PYTHON) -c "$$version")" || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,train]'
	@touch $@

demo: setup
	$(BIN)/lightningrun recipes/sql_agent.yaml

test: setup
	$(BIN)/python -m pytest -m 'not slow and not examples' -n $(WORKERS)

test-slow: setup
	$(BIN)/python -m pytest -m slow -n $(WORKERS) --timeout 900 --durations 30

test-examples: setup
	$(BIN)/python -m pytest -m examples tests/examples -n $(WORKERS) --dist loadfile --durations 20

example-%: setup
	scripts/example-env.sh $*
	$(BIN)/lightningrun examples/$*/recipe.yaml

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

schema: setup
	$(BIN)/lightningrun schema -o lightningrun.schema.json

# `make bench PEER=` leaves the peer out; `make bench PEER_APO=1` runs its prompt optimiser too, which takes minutes.
PEER ?= .venv-peer
PEER_APO ?=
peer_python := $(if $(PEER),$(PEER)/bin/python)

bench: setup $(if $(PEER),$(PEER)/.installed)
	$(BIN)/python bench/apo_calls.py $(if $(and $(PEER),$(PEER_APO)),--peer-python $(peer_python))
	$(BIN)/python bench/rollouts.py $(if $(PEER),--peer-python $(peer_python))

# Goes on where it was interrupted. Worlds 100 to 115 are for development: WORLDS=200:216 is a test of what was tuned on them.
QUICK ?=
WORLDS ?= $(if $(QUICK),100:103,100:116)
JOBS ?= 2

bench-apo: setup $(if $(PEER),$(PEER)/.installed)
	$(BIN)/python bench/apo/run.py --worlds $(WORLDS) --jobs $(JOBS) $(if $(PEER),--peer-python $(peer_python)) $(ARGS)

$(PEER)/.installed: bench/constraints-peer.txt
	$(PYTHON) -m venv --clear $(PEER)
	$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check -c $< 'agentlightning[apo]==0.3.0' 'gepa==0.1.4'
	@touch $@

# `make bench-gateway PROXY=` leaves the LiteLLM proxy out.
PROXY ?= .venv-proxy

bench-gateway: setup $(if $(PROXY),$(PROXY)/.installed)
	$(BIN)/python bench/gateway.py $(if $(PROXY),--proxy $(PROXY)/bin/litellm)

$(PROXY)/.installed: bench/constraints-proxy.txt
	$(PYTHON) -m venv --clear $(PROXY)
	$(PROXY)/bin/python -m pip install --quiet --disable-pip-version-check -c $< 'litellm[proxy]==1.106.2'
	@touch $@

# One process at a time, one thread. TRL has an environment of its own.
TRL ?= .venv-trl

bench-train: setup $(TRL)/.installed
	$(BIN)/python bench/train/run.py --trl-python $(TRL)/bin/python $(ARGS)

$(TRL)/.installed: bench/constraints-trl.txt
	$(PYTHON) -m venv --clear $(TRL)
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check -c $< 'trl==1.16.0' torch jinja2
	@touch $@

.PHONY: setup-gpu gpu-check
GPU_VENV := .venv-gpu

setup-gpu: $(GPU_VENV)/.installed

$(GPU_VENV)/.installed: pyproject.toml constraints-gpu.txt
	$(PYTHON) -m venv --clear $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-gpu.txt -e '.[gpu]'
	@touch $@

# Exits with 5 (make: "Error 5") where something is missing; installs nothing.
gpu-check:
	@$(firstword $(wildcard $(GPU_VENV)/bin/python $(BIN)/python) $(PYTHON)) scripts/gpu_check.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
