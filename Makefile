# Thin targets; each sets up its own environment from nothing. Needs Python 3.11+, make and git.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The servers' packages have generic names (store, broker): never import them from a stray folder.
export PYTHONSAFEPATH := 1

MESSAGES ?= 20000

SEED     ?= 1

# Test processes side by side; above four, tests that measure time get into each other's way.
JOBS     ?= auto
PYTEST   := -m pytest -q -n $(JOBS) --maxprocesses 4 --dist worksteal

.PHONY: help demo test test-quick jepsen-smoke jepsen-full check-checkers check-controls bench \
	bench-all bench-growth bench-peers lint fmt wheel clean
.PHONY: interop interop-java interop-go interop-node interop-apache interop-standstill

help:
	@echo "make demo   a three-replica cluster that survives kill -9 of its leader"
	@echo "make test   the whole test suite"
	@echo "make jepsen-smoke   clusters of real processes under faults, judged; at most 6 minutes"
	@echo "make jepsen-full    the same with every fault and workload; about an hour"
	@echo "make check-checkers   the history checkers against brute force, and their speed"
	@echo "make check-controls   planted faults, each of which the simulation must find"
	@echo "make interop   RocketMQ's official clients against a cluster (JDK, Maven, Go, Node)"
	@echo "make lint   format check, ruff, mypy, import contracts"
	@echo "make fmt    format and fix what can be fixed"
	@echo "make bench  the table of figures, measured in one run"
	@echo "make bench-all   that, the pictures and the other brokers, into docs/performance.md; an hour"
	@echo "make bench-growth   how they change as the work grows, with pictures"
	@echo "make bench-peers  the same loads against other replicated brokers; twelve minutes"
	@echo "make wheel  build the wheel into dist/"

# The stamp makes the second time quick: it is rebuilt only when the dependencies change.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; set PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/dledger demo --messages $(MESSAGES)

test: $(STAMP)
	$(BIN)/python $(PYTEST)

test-quick: $(STAMP)
	$(BIN)/python $(PYTEST) tests/unit tests/property

jepsen-smoke: $(STAMP)
	@jepsen_tests/setup.sh
	$(BIN)/dledger jepsen matrix --tier smoke --seed $(SEED)

jepsen-full: $(STAMP)
	@jepsen_tests/setup.sh
	$(BIN)/dledger jepsen matrix --tier full --seed $(SEED)

# Longer than the tests do it (about 3 minutes): checkers against brute force, and their speed.
check-checkers: $(STAMP)
	$(BIN)/python -m jepsen_tests.checkers.agreement --short 100000 --registers 100000 --long 10000
	$(BIN)/python benchmarks/jepsen_check.py 1000000

# Minutes; writes the table in docs/simulation.md. The quick ones are part of the tests.
check-controls: $(STAMP)
	$(BIN)/python -m jepsen_tests.sim.control_table --jobs 2 --write

# Official clients from their registries, which needs a JDK, Maven, Go and Node: docs/compatibility.md
interop: $(STAMP)
	PYTHONPATH=. $(BIN)/python -m interop.run

interop-java: $(STAMP)
	PYTHONPATH=. $(BIN)/python -m interop.run --client java-4.9.8 --client java-5.3.3

interop-go interop-node: interop-%: $(STAMP)
	PYTHONPATH=. $(BIN)/python -m interop.run --client $*

# Our client against Apache RocketMQ's own servers (JDK 17, Maven): docs/apache-rocketmq.md
interop-apache: $(STAMP)
	PYTHONPATH=. $(BIN)/python -m interop.apache.run

# How long each official client stands still when the leader is killed: about half an hour.
KILLS ?= 5
interop-standstill: $(STAMP)
	PYTHONPATH=. $(BIN)/python -m interop.run --standstill $(KILLS) --groups 1
	PYTHONPATH=. $(BIN)/python -m interop.run --standstill $(KILLS) --groups 2

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The table, the pictures and the other brokers, one after the other on a machine that does nothing
# else, into docs/performance.md; about an hour.
bench-all:
	$(MAKE) bench bench-growth bench-peers WRITE=--write

# On a machine that does nothing else; about a quarter of an hour.
bench: $(STAMP)
	$(BIN)/python benchmarks/table.py $(WRITE)

# About a quarter of an hour, and 45 GB of disk meanwhile. WRITE=--write puts it into docs/performance.md.
bench-growth: $(STAMP)
	$(BIN)/python benchmarks/growth.py $(WRITE)

# The same loads against RabbitMQ, NATS, Redis and Apache RocketMQ, as far as they can be had here;
# QUICK=1 only says which. About twelve minutes; WRITE=--write puts the table into docs/performance.md.
bench-peers: $(STAMP)
	@PYTHON=$(BIN)/python benchmarks/peers/setup.sh
	build/peers/venv/bin/python benchmarks/peers/run.py $(if $(QUICK),--quick) $(WRITE)

wheel: $(STAMP)
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
