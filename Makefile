# The verbs of this repository. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# protoc and buf are found here; sudo forgets it and where the caches are, so both are given again where root is needed.
export PATH := $(BIN):$(PATH)
AS_ROOT := $(SUDO) env PATH="$(PATH)"$(if $(XDG_CACHE_HOME), XDG_CACHE_HOME="$(XDG_CACHE_HOME)")
SOURCES := mesh service hypervisor guest-agent image cli tools tests examples hatch_build.py

# What the host must have; `cellmesh doctor` says what each is for.
PACKAGES := python3-venv qemu-system-x86 mmdebstrap erofs-utils e2fsprogs cpio zstd gcc libc6-dev
# What only the tests need: a real browser, the tools that people make images with, and a database server.
TEST_PACKAGES := chromium-headless-shell buildah skopeo umoci postgresql

# Install those of some Debian packages that are missing, in one checkout at a time: `apt-get update` waits for nobody.
LOCK := /var/lib/dpkg
define install
exec 9<$(LOCK); flock 9; \
missing=$$(for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
if [ -n "$$missing" ]; then echo "installing:" $$missing; \
  $(SUDO) apt-get update -q >/dev/null && \
  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -o DPkg::Lock::Timeout=600 -y -q --no-install-recommends $$missing >/dev/null; fi
endef

.DEFAULT_GOAL := help
.PHONY: help deps test-deps setup demo test check fmt gen accept bench clean

help: ## show the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install the Debian packages that are missing
	@$(call install,$(PACKAGES))

test-deps: deps
	@$(call install,$(TEST_PACKAGES))

setup: deps $(VENV)/.ready ## make .venv with everything in it

$(VENV)/.ready: pyproject.toml hatch_build.py constraints.txt $(wildcard */pyproject.toml) | deps
	@$(PYTHON) -m venv $(VENV)
	@echo "installing Python packages into $(VENV)"
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

demo: setup ## boot a real microVM, run two containers in it, open their pages, clean up
	$(AS_ROOT) $(BIN)/python tools/demo.py

test: setup test-deps ## every test, real guests included
	$(AS_ROOT) $(BIN)/python -m pytest tests --ignore=tests/bench -n 2 --dist loadscope --no-loadscope-reorder

bench: setup ## measure; prints a table and writes build/bench.json
	$(AS_ROOT) $(BIN)/python -m pytest tests/bench

check: setup ## formatting, lint, types, layers, contracts
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/protos.py check

fmt: setup ## rewrite the sources as the checks want them
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/python tools/protos.py fmt

gen: setup ## regenerate gen/ from protos/
	$(BIN)/python tools/protos.py gen

accept: setup ## take today's contracts as the accepted surface
	$(BIN)/python tools/protos.py accept

clean: ## remove what the verbs made in this checkout
	rm -rf $(VENV) build .mypy_cache .ruff_cache .hypothesis
