# Everything sets itself up: each target makes the environment it needs in .venv, from pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
REPOSITORY ?= model_repository

.DEFAULT_GOAL := help
.PHONY: help serve setup test check fuzz audit bench peers format digits letters triton triton-setup gpu-check up down secrets compose-test lock clean

help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

serve: $(VENV)/.serve ## serve the bundled models at http://127.0.0.1:8080 (PORT=…, ARGS=… pass through)
	@exec $(BIN)/python -m service serve $(if $(PORT),--port $(PORT)) $(ARGS)

setup: $(VENV)/.dev ## install what training and exporting need, torch among it

test: $(VENV)/.dev ## run the tests (ARGS=… pass through; SLOW=1 adds every heavy network, as CI does)
	$(BIN)/python -m pytest $(if $(SLOW),,-m "not slow") $(ARGS)

check: $(VENV)/.dev ## lint, format, types, import directions: what CI checks beside the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

SECONDS := 60
fuzz: $(VENV)/.dev ## fuzz everything that reads strangers' input, for a minute each (SECONDS=…)
	@for target in decoder bodies tensors config archive http2; do \
		$(BIN)/python -m tests.fuzz $$target --seconds $(SECONDS) || exit; done

audit: $(VENV)/.dev ## ask whether anything installed has a known vulnerability, if that can be asked from here
	@$(BIN)/python -m tests.audit $(ARGS)

bench: $(VENV)/.dev ## measure the gateway beside its peers on this machine (needs wrk; ARGS="--model resnet18", …)
	$(BIN)/python -m load_tests.bench $(ARGS)

peers: $(VENV)/.dev ## install the servers that the benchmark compares with, each in an environment of its own (gigabytes)
	$(BIN)/python -m load_tests.peers.install

format: $(VENV)/.dev ## format the code and mend what the linter can
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

digits: $(VENV)/.dev ## train LeNet-5 on digits and publish it as lenet5-digits (REPOSITORY=… elsewhere)
	$(BIN)/python -m export train --arch lenet5 --data digits --out runs/lenet5-digits
	$(BIN)/python -m export publish runs/lenet5-digits --name lenet5-digits --repository $(REPOSITORY)

LETTERS := translation=0.1,rotation=15,stretching=0.35,shearing=0.3,elastic=0.04,thickness=1,resolution=0.25,blur=1,exposure=0.7,inversion=0.5
letters: $(VENV)/.dev ## train the backbone on rendered letters and publish it as letters (a quarter of an hour)
	$(BIN)/python -m export train --arch wrn16_2 --data letters --augment $(LETTERS) --epochs 16 --batch-size 128 --lr 0.004 --weight-decay 0.05 --precision bf16-mixed --threads 2 --out runs/letters
	$(BIN)/python -m export publish runs/letters --name letters --with-weights --repository $(REPOSITORY)

triton: triton-setup ## serve the models with a real Triton (REPOSITORY=…, ARGS=… pass through)
	@exec $(BIN)/python deploy/triton/serve.py --repository $(REPOSITORY) $(ARGS)

triton-setup: | $(BIN)/python ## install a Triton Inference Server into build/ (once, 315 MB)
	@$(BIN)/python deploy/triton/install.py

GPU := build/gpu
GPU_PIP := $(GPU)/bin/python -m pip --disable-pip-version-check --quiet

gpu-check: $(GPU)/.ready ## check and measure everything on this machine's NVIDIA GPU (ARGS=… pass through)
	$(GPU)/bin/python -m deploy.gpu.check $(ARGS)

$(GPU)/.ready: pyproject.toml constraints.txt deploy/gpu/requirements.txt
	@$(PYTHON) -m venv $(GPU)
	@echo "installing PyTorch's CUDA build and onnxruntime-gpu (several gigabytes) …"
	@$(GPU_PIP) install --constraint constraints.txt --editable '.[export]' --requirement deploy/gpu/requirements.txt
	@# onnxruntime and onnxruntime-gpu fill the same folder: the latter has to be the one that stays.
	@$(GPU_PIP) uninstall --yes onnxruntime
	@$(GPU_PIP) install --no-deps --force-reinstall --requirement deploy/gpu/requirements.txt
	@touch $@

up: ## bring the whole stack up in containers: gateway, Triton, PostgreSQL, Prometheus, Grafana (Docker or podman)
	@$(PYTHON) deploy/compose/stack.py up $(ARGS)

down: ## take the stack down (ARGS=--volumes forgets what it kept, too)
	@$(PYTHON) deploy/compose/stack.py down $(ARGS)

secrets: ## make the .env that docker-compose.yml wants, unless there is one
	@$(PYTHON) deploy/compose/stack.py secrets

compose-test: $(VENV)/.dev ## build the images, bring the stack up, try it and take it down (minutes; not part of make test)
	$(BIN)/python -m pytest tests/compose/whole_stack.py $(ARGS)

lock: $(VENV)/.dev ## write the installed versions to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^fovea' | sed 's/+cpu$$//' >constraints.txt

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed; set PYTHON=…" if sys.version_info < (3, 11) else 0)'
	@echo "making $(VENV) …"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing what serving needs (about a minute) …"
	@$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing what training and testing need (a few minutes, torch among it) …"
	@$(PIP) install --constraint constraints.txt --editable '.[export,dev]'
	@touch $@ $(VENV)/.serve
