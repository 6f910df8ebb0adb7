# make demo   sets everything up and runs the closed loop: sequential against RSD, table, plot, video (results/demo)
#             TRIALS=n episodes a task and mode; stopped, it goes on where it was
# make test   sets everything up, LIBERO too, and runs the checks and the tests
# make libero adds LIBERO to what they set up; its assets: docs/libero.md
# make clean  removes what they made
# The first three are idempotent; what is there already is left alone.

.DEFAULT_GOAL := help
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TRIALS ?= 20

.PHONY: help demo test gl libero clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile

$(VENV)/.installed: pyproject.toml setup.py CMakeLists.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[sim,eval,train,bench,test]"
	touch $@

$(VENV)/.libero: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt "rsd-fast[libero]"
	$(BIN)/python -m pip install --quiet --no-deps hf-libero==0.1.4 bddl==1.0.1
	touch $@

libero: $(VENV)/.libero

gl:
	tools/ensure_gl.sh

demo: $(VENV)/.installed gl
	$(BIN)/rsd-fast eval --suite robosuite --trials $(TRIALS) --modes sequential,rsd --video 1 --out results/demo

test: $(VENV)/.libero gl
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) build *.egg-info results/demo
