# SPDX-License-Identifier: MIT
#
# `make demo` and `make test` start from a fresh clone: each sets up what it needs in .venv (and,
# as root on Debian or Ubuntu, installs missing system packages). Stamp files in .venv remember
# what is done, so a second run starts at once; a change in native/ builds the native part again.

MAKEFLAGS += --no-builtin-rules
VENV := .venv
PIP := $(VENV)/bin/python -m pip --quiet --disable-pip-version-check
PYTEST := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m pytest
NATIVE := pyproject.toml native/CMakeLists.txt native/uffdswap_build.py \
	$(wildcard native/include/*.h native/src/*.[ch] native/shim/*.[ch] native/shim/*.map \
	native/shim/public/*.h native/bench/*.[ch])
PYTEST_ARGS ?=
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo bench test soak lint format clean
.DELETE_ON_ERROR:

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.built $(VENV)/.examples ## Run a program that needs several times its limit
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python examples/demo.py

bench: $(VENV)/.built ## Compare with the kernel's own swap, as root (some minutes)
	@$(VENV)/bin/uffdswap bench $(BENCH_ARGS)

# Two at a time: half of the tests' time is waiting.
test: $(VENV)/.built $(VENV)/.test ## Run the tests (10 minutes at most)
	$(PYTEST) --numprocesses=2 --dist=worksteal $(PYTEST_ARGS)

soak: $(VENV)/.built $(VENV)/.test ## Run the long tests
	$(PYTEST) -m soak $(PYTEST_ARGS)

lint: $(VENV)/.test $(VENV)/.lint ## Check style, types and spelling
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files 'native/*.[ch]' 'examples/*.c')
	$(VENV)/bin/codespell
	$(VENV)/bin/cmake -S native -B build/lint -G Ninja --log-level=WARNING \
		-DUSW_WERROR=ON -DUSW_BUILD_TESTS=ON -DUSW_BUILD_MODULE=OFF
	$(VENV)/bin/cmake --build build/lint

format: $(VENV)/.lint ## Rewrite sources in the project's style
	$(VENV)/bin/ruff check --fix --select I .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $$(git ls-files 'native/*.[ch]' 'examples/*.c')

clean: ## Remove everything that was built, .venv too
	rm -rf $(VENV) build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- Stamps --------------------------------------------------------------------------------------

$(VENV)/.venv: tools/bootstrap.sh
	tools/bootstrap.sh venv $(VENV)
	@touch $@

$(VENV)/.build-tools: $(VENV)/.venv pyproject.toml
	$(PIP) install --group build
	@touch $@

# Editable: a change in uffdswap/ needs no new installation.
$(VENV)/.built: $(VENV)/.build-tools $(NATIVE)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PIP) install --no-build-isolation --editable .
	@touch $@

$(VENV)/.examples: $(VENV)/.venv pyproject.toml
	$(PIP) install --group examples
	@touch $@

$(VENV)/.test: $(VENV)/.venv pyproject.toml
	$(PIP) install --group test
	tools/bootstrap.sh extras $(VENV)
	@touch $@

$(VENV)/.lint: $(VENV)/.venv pyproject.toml
	$(PIP) install --group lint
	@touch $@
