# Every target sets the virtual environment up first and never twice.
# make demo PYTHON=/path/to/python3.12   chooses the interpreter; VENV=... another place for the environment.

VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The first interpreter at hand that TRL 1.16 and transformers 5.23 run on (3.11 or newer)
SUITABLE := 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell $(name) -c $(SUITABLE) 2>/dev/null && echo $(name))))

# Objectives, masks, scoring and training are held to 90 % of their lines
REPORT_COVERAGE = $(BIN)/python -m coverage report --skip-covered --fail-under=90 \
	--include='src/sparsepo/objectives/*,src/sparsepo/masks/*,src/sparsepo/scoring/*,src/sparsepo/training/*'

.PHONY: setup demo test test-long coverage browser lint bench plots docs wheel
.DEFAULT_GOAL := setup

setup: $(STAMP)

# torch alone and first: a CPU build that pip finds locally then wins over the default build.
# triton last, unpinned and only where it is missing: a CUDA build of torch brings the one version that it works with,
# a CPU build brings none and takes any. Without it everything runs but the tests of the GPU kernels.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "sparsepo needs Python 3.11 or newer (TRL 1.16 does); none was found. Give one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c $(SUITABLE) || { echo "$(PYTHON) is older than Python 3.11, which TRL 1.16 and transformers 5.23 need. Give another: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install --quiet triton || echo "triton has no build for this platform: its tests will be skipped" >&2
	touch $(STAMP)

demo: setup
	$(BIN)/sparsepo demo

# Chromium, in which the tests open the HTML pages; where it cannot be installed these tests are skipped, and say so
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq >/dev/null && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || \
	echo "no Chromium, and none could be installed here: the tests of HTML pages will be skipped" >&2

# One thread a process: the tests are small, and two processes share the cores. With CI set, coverage is taken beside them.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n $(JOBS) $(if $(CI),--cov=sparsepo --cov-report=)
	$(if $(CI),$(REPORT_COVERAGE))

test-long: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every table of the benchmarks, on an otherwise idle machine: hours, the most telling first; goes on where it was cut off.
# make bench TABLES="scorer_float32 prefix_float32 step_targets"   measures what the targets need, in some 25 minutes
bench: setup
	$(BIN)/python benchmarks/run_all.py $(if $(TABLES),--tables $(TABLES))

plots: setup
	$(BIN)/python benchmarks/plots.py
	$(BIN)/python benchmarks/run_all.py --index

# The documentation site in site/: every link and anchor is checked, a broken one fails
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean

# Lines that the default suite runs, by file; the rooms that compute are held to 90 %
coverage: setup
	$(MAKE) test CI=true
	$(BIN)/python -m coverage report --sort=cover

# A wheel, installed alone into an environment of its own: the command answers, and what the package carries is there
wheel: setup
	rm -rf build/wheel && $(BIN)/python -m build --wheel --outdir build/wheel . >/dev/null
	rm -rf build/clean && $(BIN)/python -m venv build/clean
	build/clean/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	build/clean/bin/python -m pip install --quiet build/wheel/*.whl -c constraints.txt
	cd build && clean/bin/sparsepo --version && clean/bin/sparsepo --help >/dev/null && clean/bin/sparsepo demo --fast --output_dir clean/demo >/dev/null
