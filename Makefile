# `make demo` and `make test` set up all they need: an environment in .venv from envs/dev.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo cluster-demo cluster-stop test trust gpu-test bench bench-training lint format site lock clean
.DELETE_ON_ERROR:

# Remade when the locked versions change.
$(VENV)/done: envs/dev.lock pyproject.toml
	rm -rf $(VENV)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tokencache needs Python 3.11 or newer; name one with: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement envs/dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(VENV)/done
	$(BIN)/python examples/stdlib_documents.py data
	$(BIN)/snakemake --cores all

# The demo as container jobs on a real SLURM cluster of this one machine: root of a Debian 12.
cluster-demo: $(VENV)/done
	tests/cluster/install-apptainer.sh
	tests/cluster/install-slurm.sh
	tests/cluster/start.sh
	$(BIN)/python examples/stdlib_documents.py data
	PATH=/opt/apptainer/usr/bin:$$PATH $(BIN)/snakemake --config 'containers={base: debian}' \
	  --profile slurm --profile tests/cluster/profile
	@echo "The cluster goes on running: see it with sinfo, stop it with make cluster-stop"

cluster-stop:
	tests/cluster/stop.sh

test: $(VENV)/done
	$(BIN)/python -m pytest -n auto

# What only a GPU can show, under 8 minutes on one H100; skips without one.
gpu-test: $(VENV)/done
	$(BIN)/python -m pytest tests/gpu -n 0 -v -rs

# Kills, damage, races, full disks, changed sources and bad input, with nothing lost: half an hour
# and more on two cores. `make test` has a slice of it. TRUST_SEED draws other trials.
trust: $(VENV)/done
	$(BIN)/python -m pytest -n 2 -m trust tests/trust

# Measures this and its peers side by side: `make bench SIZE=small ROUNDS=1`; more settings, as
# `python benchmarks/run.py --help` names them, in MORE. Dolma needs older libraries than the
# rest, so it has an environment of its own, and is left out where that can't be made.
SIZE ?= full
ROUNDS ?= 3
BENCH := .venv-bench
$(BENCH)/done: envs/bench.lock envs/bench-dolma.lock pyproject.toml
	rm -rf $(BENCH) $(BENCH)-dolma
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install --quiet --disable-pip-version-check --requirement envs/bench.lock
	$(BENCH)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(PYTHON) -m venv $(BENCH)-dolma
	-$(BENCH)-dolma/bin/pip install --quiet --disable-pip-version-check --only-binary :all: --requirement envs/bench-dolma.lock
	echo '*' | tee $(BENCH)/.gitignore >$(BENCH)-dolma/.gitignore
	touch $@

bench: $(BENCH)/done
	$(BENCH)/bin/python benchmarks/run.py --size $(SIZE) --rounds $(ROUNDS) $(MORE)

# What each part of a training set-up is worth; settings, as `python benchmarks/training.py --help`
# names them, in MORE.
bench-training: $(VENV)/done
	$(BIN)/python benchmarks/training.py $(MORE)

lint: $(VENV)/done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/lint-imports
	$(BIN)/python examples/stdlib_documents.py data
	$(BIN)/snakemake --lint

format: $(VENV)/done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

# The documentation as a site, in site/.
site: $(VENV)/done
	$(BIN)/mkdocs build --strict

# Pins what envs/*.in name, with all that those need. Run it to move to newer versions.
lock: $(VENV)/done
	for name in workflow tokenize train dev bench bench-dolma; do \
	  $(BIN)/pip-compile --quiet --strip-extras --no-emit-index-url --no-emit-find-links --allow-unsafe \
	    --output-file envs/$$name.lock envs/$$name.in || exit 1; \
	  sed -i -e 's/+cpu$$//' -e '/^--/d' envs/$$name.lock; \
	done

clean:
	rm -rf $(VENV)* site .snakemake .tokencache cache results logs data benchmarks/data
