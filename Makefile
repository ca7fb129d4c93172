# Everything a person types. `make help` lists it.
# Settings of the jobs are passed on with SET="a.b=c d.e=f"; the name of a run with RUN=<name>.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo serve stop status docs test test-long lint format bench bench-data bench-model bench-train bench-generate bench-encoders bench-serve

# The newest suitable Python; make PYTHON=/path/to/python to choose another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
RUN ?=
SET ?=
JSONL ?=
AUDIO ?=
MODEL ?=
# What `make serve` asks of the checkpoint's gate.json: here it may be missing. GATE=required asks as deployments do.
GATE ?= if-there
ADDRESS ?=
PYTEST ?=

help: ## list the targets
	@grep -hE '^[a-z -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: ## build .venv with all that the other targets need
	@if ! $(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "setup: Python 3.11 or newer is needed: install one, or make PYTHON=<path to one>" >&2; exit 2; fi
	@$(PYTHON) scripts/setup_env.py

demo: setup ## the whole path on this machine: recordings to answers. JSONL= AUDIO= RUN= SET=
	@$(BIN)/python -m stetholm.demo $(if $(RUN),--run "$(RUN)") $(if $(JSONL),--jsonl "$(JSONL)") \
	  $(if $(AUDIO),--audio "$(AUDIO)") $(foreach pair,$(SET),--set '$(pair)')

serve: setup ## keep an endpoint up in the foreground: make serve MODEL=<checkpoint URI>
	@if [ -z "$(MODEL)" ]; then echo "serve: which checkpoint? make serve MODEL=s3://stetholm/runs/<run>/dpo/..." >&2; exit 2; fi
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m stetholm.processes run serve -- $(BIN)/python -m serve.deploy \
	  --set 'serve.model=$(MODEL)' --set 'serve.gate=$(GATE)' $(foreach pair,$(SET),--set '$(pair)')

stop: setup ## end what our own commands started (by recorded process id), nothing else
	@$(BIN)/python -m stetholm.processes stop

status: setup ## what runs where: our processes, Ray's nodes, jobs, the endpoint. ADDRESS=<dashboard>
	@$(BIN)/python -m stetholm.cluster status $(if $(ADDRESS),--address "$(ADDRESS)")

docs: setup ## the site of docs/, into build/site; a warning fails it
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "build/site/index.html"

test: setup ## the tests; PYTEST="-k name" for some of them
	@command -v chromium >/dev/null || echo "test: SKIPPED, there is no chromium here \
	  (Debian: apt-get install chromium): tests/serve/test_page.py" >&2
	@for each in curl node; do command -v $$each >/dev/null || echo "test: SKIPPED, there is no $$each here: \
	  its snippet in tests/serve/test_docs.py" >&2; done
	@$(BIN)/python -m pytest -m "not long" -rs $(PYTEST)

test-long: setup ## the tests marked long (a small demo from end to end among them)
	@command -v redis-server >/dev/null || echo "test-long: SKIPPED, there is no redis-server here \
	  (Debian: apt-get install redis-server): tests/cluster/test_head_failure.py" >&2
	@[ "$$(id -u)" -eq 0 ] || echo "test-long: SKIPPED, only root can make hosts in network namespaces: \
	  tests/cluster/test_hosts.py, tests/cluster/test_head_failure.py" >&2
	@$(BIN)/python -m pytest -m long -rs $(PYTEST)

lint: setup ## style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup ## put the files into ruff's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup ## all benchmarks, small
	@$(BIN)/python -m benchmarks.run all

bench-data bench-model bench-train bench-generate bench-encoders bench-serve: setup ## one group of benchmarks
	@$(BIN)/python -m benchmarks.run $(@:bench-%=%)
