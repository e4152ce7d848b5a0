# `make demo` shows it, `make test` checks it; both install what they need into .venv first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
N ?= 100
NAME ?=
ARGS ?=

.PHONY: help install test soak lint format demo chaos bench page wheel package docs proto clean

help:
	@echo "make install        everything into .venv (a second run takes no time)"
	@echo "make demo           a whole swarm on this machine: servers come and go, the text goes on"
	@echo "make test           all tests; ARGS='-k name' selects"
	@echo "make lint           ruff, mypy and the import contracts; make format rewrites"
	@echo "make soak           the tests that prove more by running longer, at their full length"
	@echo "                    MINUTES=10: real processes under random faults; ARGS=--field: in homes behind NATs, too"
	@echo "make chaos N=100    N random failure scenarios on the simulated network"
	@echo "make bench NAME=x   one benchmark against its baseline; without NAME lists them"
	@echo "make page           build and test the web page, and put it where the gateway serves it"
	@echo "make wheel          sdist and wheel, with the page, into dist/"
	@echo "make package        make wheel, then install it into an empty environment, and use it"
	@echo "make docs           the documentation as a site, into site/"
	@echo "make proto          regenerate swarm/wire/swarm_pb2.py and the page's twin from swarm.proto"

install: $(INSTALLED)

# torch comes first and alone: it is the large download, and which build of it fits is the machine's own choice.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "swarm needs Python 3.11 or later: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

test: install
	$(BIN)/python -m pytest -n 2 $(ARGS)

soak: install
ifdef MINUTES
	$(BIN)/python scripts/soak.py --minutes $(MINUTES) $(ARGS)
else
	$(BIN)/python -m pytest -n 2 -m soak $(ARGS)
endif

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: install
	$(BIN)/swarm-demo $(ARGS)

chaos: install
	$(BIN)/python scripts/chaos.py --scenarios $(N) $(ARGS)

bench: install
	$(BIN)/python -m benchmarks $(NAME) $(ARGS)

PAGE := swarm/gateway/page

page: install web/node_modules/.package-lock.json
	cd web && PYTHON=$(abspath $(BIN))/python npm run --silent proto -- --check
	cd web && npm run --silent check && npm run --silent test && npm run --silent build && npm run --silent size
	rm -rf $(PAGE) && cp -r web/dist $(PAGE)

# The wheel is built from the sdist, so that nothing can be in it that the sdist has not.
wheel: page
	rm -rf dist
	$(BIN)/python -m build --outdir dist . >/dev/null

package: wheel
	PYTHON=$(abspath $(BIN))/python bash scripts/check_wheel.sh dist/*.whl

docs: install
	$(BIN)/mkdocs build --strict --quiet

web/node_modules/.package-lock.json: web/package-lock.json
	cd web && npm ci --no-audit --no-fund --loglevel=error

proto: install web/node_modules/.package-lock.json
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. swarm/wire/swarm.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. swarm/net/forwarding/forwarding.proto
	cd web && PYTHON=$(abspath $(BIN))/python npm run --silent proto

clean:
	rm -rf web/node_modules web/dist $(PAGE) site
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
