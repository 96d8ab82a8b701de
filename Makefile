# The two commands of the README are `make demo` and `make test`. What they need of the system's packages is installed
# by `make setup` and `make setup-tests` alone, which they call, and which say so.

VENV := .venv
PYTHON := $(VENV)/bin/python
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
export VIRTUAL_ENV := $(abspath $(VENV))
TARGET := $(or $(CARGO_TARGET_DIR),target)
# `checked` is `release` with the invariants of graphs tested after every pass.
PROFILE ?= release
RELEASE := $(TARGET)/release/onnx-kprune
BINARY := $(TARGET)/$(PROFILE)/onnx-kprune
FIXTURE := fixtures/reviews
COMPRESSIONS := 0 0.3 0.6
DENY := $(or $(shell command -v cargo-deny),.tools/bin/cargo-deny)

.PHONY: demo test lint deny sanitize setup setup-tests bench accuracy zoo coverage wheel manual package

demo: setup
	cargo build --release
	mkdir -p demo
	$(RELEASE) $(FIXTURE)/model.onnx demo/pruned.onnx --calibration $(FIXTURE)/calibration.npz \
	    --compression 0.7 --report demo/report.html --report demo/report.json
	$(RELEASE) compare $(FIXTURE)/model.onnx demo/pruned.onnx --data $(FIXTURE)/eval.npz

test: setup-tests
	cargo test --workspace --profile checked

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --release -- -D warnings
	cargo clippy --release --lib --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --release

# Licences and sources of dependencies; advisories too, where their database can be had.
deny: $(DENY)
	$(DENY) check licenses bans sources
	@$(DENY) fetch db >/dev/null 2>&1 && $(DENY) check advisories || echo "skipped: no advisory database here"

# The tests of passes under the address and leak sanitizers, which need a nightly toolchain.
sanitize:
	RUSTFLAGS=-Zsanitizer=address cargo +nightly test -p kprune-passes --lib --target $$(rustc -vV | sed -n 's/host: //p')

.tools/bin/cargo-deny:
	cargo install --locked --root .tools cargo-deny

# Every family, exporter and element type of fixtures/zoo.
zoo: setup
	cargo build --profile $(PROFILE)
	$(PYTHON) fixtures/prune_zoo.py $(BINARY) fixtures/zoo --compression $(COMPRESSIONS)

# FLOPs as counted and as run, and what is offered, model by model.
coverage: setup
	cargo build --profile $(PROFILE)
	$(PYTHON) fixtures/coverage.py $(BINARY) fixtures/zoo

# What pruning costs and what it gives, in forward-equivalents and ratios; `cargo bench` times the stages.
bench: setup
	cargo build --release
	$(PYTHON) benches/bench.py $(RELEASE)

# docs/accuracy.md, from benches/accuracy.jsonl; what is not measured yet is measured first. SETS are folders.
SETS := $(FIXTURE)
accuracy: setup
	cargo build --release
	for set in $(SETS); do \
	    $(PYTHON) benches/accuracy.py measure $(RELEASE) benches/accuracy.jsonl $$set --methods obs && \
	    $(PYTHON) benches/accuracy.py measure $(RELEASE) benches/accuracy.jsonl $$set --methods kprune \
	        --name "kprune, published" -- --refresh 1 --align 1 || exit 1; \
	done
	$(PYTHON) benches/accuracy.py page benches/accuracy.jsonl docs/accuracy.md docs/accuracy.svg

# A Python package with the program in it, as dist/*.whl, and with no more of OpenBLAS than it uses.
OPENBLAS := $(abspath .tools/openblas)
wheel: setup $(VENV)/ready-for-wheels $(OPENBLAS)/openblas.pc
	$(PYTHON) python/package_files.py $(OPENBLAS)
	PKG_CONFIG_PATH=$(OPENBLAS) PATH="$(abspath $(VENV))/bin:$$PATH" maturin build --release --out dist --target-dir $(TARGET)/wheel

$(OPENBLAS)/openblas.pc: python/openblas.sh
	python/openblas.sh $(OPENBLAS)

# Both crates as crates.io would get them, and built from that.
package:
	cargo package -p kprune-passes -p onnx-kprune

# The manual page and the completions that packagers want, as dist/.
manual:
	cargo build --release
	mkdir -p dist
	$(RELEASE) man > dist/onnx-kprune.1
	for shell in bash zsh fish; do $(RELEASE) completions $$shell > dist/onnx-kprune.$$shell; done

# Build tools, OpenBLAS and python3-venv from the system's packages, ONNX Runtime into a local Python environment.
setup: $(VENV)/ready

# The same with what tests alone need: the tools that pruned models go through, and a browser for the page of the
# report. Without a browser in the system's packages those tests say that they are skipped.
setup-tests: setup $(VENV)/ready-for-wheels $(VENV)/ready-for-tests

INSTALL = $(SUDO) apt-get update -q && $(SUDO) apt-get install -q -y
PIP := $(PYTHON) -m pip install -q --disable-pip-version-check

$(VENV)/ready: fixtures/requirements.txt
	@pkg-config --exists openblas 2>/dev/null && python3 -c 'import ensurepip' 2>/dev/null || { \
	    echo "installing build tools, OpenBLAS and python3-venv from the system's packages"; \
	    $(INSTALL) build-essential pkg-config libopenblas-dev python3-venv; }
	python3 -m venv $(VENV)
	$(PIP) -r fixtures/requirements.txt
	touch $@

$(VENV)/ready-for-wheels: fixtures/requirements-wheel.txt | setup
	$(PIP) -r fixtures/requirements-wheel.txt
	touch $@

$(VENV)/ready-for-tests: fixtures/requirements-test.txt | setup
	$(PIP) -r fixtures/requirements-test.txt
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	    echo "installing Chromium from the system's packages"; \
	    $(INSTALL) chromium || echo "there is no Chromium here"; }
	touch $@
