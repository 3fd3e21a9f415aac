# `make demo` and `make test` set up all they need: an environment in .venv from envs/dev.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format lock clean
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

test: $(VENV)/done
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/python examples/stdlib_documents.py data
	$(BIN)/snakemake --lint

format: $(VENV)/done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

# Pins what envs/*.in name, with all that those need. Run it to move to newer versions.
lock: $(VENV)/done
	for name in workflow tokenize train dev; do \
	  $(BIN)/pip-compile --quiet --strip-extras --no-emit-index-url --no-emit-find-links --allow-unsafe \
	    --output-file envs/$$name.lock envs/$$name.in || exit 1; \
	  sed -i -e 's/+cpu$$//' -e '/^--/d' envs/$$name.lock; \
	done

clean:
	rm -rf $(VENV) .snakemake .tokencache cache results logs data
