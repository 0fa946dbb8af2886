# make demo | test | check | test-system | litert | clean.   PYTHON=python3.12 chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test check lint test-system litert clean
.DEFAULT_GOAL := demo

# Each stamp file marks an installation, of the camera's part or of everything. It is renewed when its lists change.
.venv/realtime: requirements-realtime.txt constraints.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "error: $(PYTHON) is older than 3.11; give a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "installing what the camera needs into .venv (once; about half a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ echo "error: no venv module; on Debian or Ubuntu: sudo apt-get install python3-venv" >&2; exit 2; }
	@$(PIP) -e . -c constraints.txt
	@$(BIN)/python -c "import cv2" || \
		{ echo "error: OpenCV lacks system libraries; on Debian or Ubuntu: sudo apt-get install libgl1 libglib2.0-0" >&2; exit 2; }
	@touch $@

.venv/dev: requirements-dev.txt requirements-export.txt requirements.txt requirements-training.txt .venv/realtime
	@echo "installing the rest into .venv (once; about two minutes)"
	@$(PIP) -r requirements-dev.txt -c constraints.txt
	@touch $@

.venv/distributed: requirements-distributed.txt .venv/dev
	@$(PIP) -r requirements-distributed.txt -c constraints.txt
	@touch $@

demo: .venv/realtime
	@$(BIN)/python -m realtime.demo

test: .venv/dev
	@$(BIN)/python -m pytest -m "not system" --numprocesses 2
	@echo "left to 'make test-system': $$($(BIN)/python -m pytest --collect-only -q -o addopts= -m system 2>/dev/null | grep -c '::') tests"

lint: .venv/dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

check: lint test

# A virtual display, and keys typed into it, for the tests that open windows; a browser for those that open pages; a database.
test-system: .venv/distributed
	@command -v Xvfb >/dev/null && command -v xdotool >/dev/null || { \
		command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq xvfb xdotool >/dev/null; } || \
		{ echo "error: these tests need Xvfb and xdotool; on Debian or Ubuntu: sudo apt-get install xvfb xdotool" >&2; exit 2; }
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
		command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null; } || \
		{ echo "error: these tests need Chromium and its driver; on Debian or Ubuntu: sudo apt-get install chromium chromium-driver" >&2; exit 2; }
	@command -v pg_ctl >/dev/null || ls /usr/lib/postgresql/*/bin/pg_ctl >/dev/null 2>&1 || { \
		command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq postgresql >/dev/null; } || \
		{ echo "error: these tests need PostgreSQL; on Debian or Ubuntu: sudo apt-get install postgresql" >&2; exit 2; }
	@$(BIN)/python -m pytest -m system

# The networks that come with the project, converted so that the camera needs no TensorFlow. Commit models/litert after.
litert: .venv/dev
	@$(BIN)/python -m inference.shipped

clean:
	rm -rf .venv .pytest_cache .ruff_cache
