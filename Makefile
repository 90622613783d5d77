# Two commands are enough: `make demo` and `make test`. Both make and use .venv; nothing else is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test check docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo  ## the whole method on real images, under 3 minutes (ARGS="--out DIR --seconds S --seed N")
	@$(BIN)/rela demo $(ARGS)

test: $(VENV)/.installed-dev  ## the test suite on two processes (ARGS="-m 'not slow'" for the quick part, "-n 0" for one process)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 2 --dist loadfile $(ARGS)  # compiled once for all that tests start

check: $(VENV)/.installed-dev  ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(VENV)/.installed-dev  ## the documentation, into site/; warnings are errors
	@$(BIN)/sphinx-build -q -W --keep-going -b html docs site
	@echo "site/index.html"

clean:  ## what the commands above made, .venv included
	rm -rf $(VENV) site rela_demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage htmlcov

# A stamp says which extra is installed; it is older than pyproject.toml whenever that changed.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/.made
	@echo "Installing rela_lightning[$*] into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]' \
		|| { echo "The installation failed: pip's message is above. Mend it and run make again." >&2; exit 1; }
	@touch $@

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) on PATH: install Python 3.10 or newer, or say make PYTHON=/path/to/python3." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and f"Python 3.10 or newer is needed; $(PYTHON) is {v[0]}.{v[1]}. Say make PYTHON=/path/to/python3.")'
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian, Ubuntu: python3-venv)." >&2; exit 1; }
	@touch $@
