# `make demo` and `make test` are all a newcomer needs; both set up what they use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test exhaustive checks bench lock clean slice-image

demo: $(READY)
	@exec $(BIN)/queunir-trio demo $(DEMO)

test: $(READY)
	@exec $(BIN)/python -m tests $(TESTS)

exhaustive: $(READY)
	$(BIN)/python -m tests exhaustive

checks: $(READY)
	$(BIN)/python -m tests checks

bench: $(READY)
	$(BIN)/python -m benchmarks proxy sse

# The lock file pins every package by hash; nothing outside it is installed.
$(READY): requirements.lock setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--extra dev --extra demo --no-config setup.cfg -o requirements.lock

	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		-c requirements.lock --no-config deploy/slice/requirements.in -o deploy/slice/requirements.lock

# IMAGE=name:tag; what else may be chosen stands in the script
slice-image:
	deploy/slice/build $(IMAGE)

clean:
	rm -rf $(VENV) build dist *.egg-info
