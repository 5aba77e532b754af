# `make` alone prints this file's targets.

CARGO ?= cargo
PYTHON ?= python3
POSTS ?= 100000

TARGET := $(or $(CARGO_TARGET_DIR),target)
ZBATCH := $(TARGET)/release/zbatch
VENV := target/venv

.PHONY: bombs fuzz help build demo test lint python-tests measure bench clean

help: ## Print every target
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

build: ## Build target/release/zbatch
	$(CARGO) build --release --locked

demo: build ## Label data/posts.json with the emulator: no key, no network, invented answers
	rm -rf demo/work demo/enhanced_blogs.json
	mkdir -p demo
	$(ZBATCH) run data/posts.json -d demo/work -o demo/enhanced_blogs.json --data-dir data --emulate
	@echo
	@echo "enhanced posts: demo/enhanced_blogs.json"
	@echo "report:         demo/work/integration_report.json"

test: ## Run all tests (Rust; Python's standard library where python3 is there)
	$(CARGO) test --locked
	@if command -v $(PYTHON) >/dev/null; then \
		$(PYTHON) -B tests/measure.py --zbatch $(TARGET)/debug/zbatch --posts 500; \
	else echo "skipped: $(PYTHON) is not here"; fi

lint: ## Formatting, clippy and rustdoc, warnings denied
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked

python-tests: build $(VENV)/ready ## The vendor's SDK against the emulator, and the Pocket Flow nodes (pip installs both)
	$(VENV)/bin/python -B tests/zai_sdk_cycle.py $(ZBATCH)
	ZBATCH=$(abspath $(ZBATCH)) $(VENV)/bin/python -B -m unittest discover -v -s examples/pocketflow

$(VENV)/ready: tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

measure: build ## Peak memory of gen, parse and merge for POSTS=100000 posts and ten times as many
	$(PYTHON) -B tests/measure.py --zbatch $(ZBATCH) --posts $(POSTS)

bench: build $(VENV)/peers ## zbatch beside jq, Python, orjson and DuckDB on the same data, then each function alone
	$(VENV)/bin/python -B tests/bench.py --zbatch $(ZBATCH) --posts $(POSTS) --json target/bench.json
	$(CARGO) bench --locked --bench functions

$(VENV)/peers:
	$(PYTHON) -m venv $(VENV)
	-$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check duckdb orjson
	touch $@

bombs: ## The tests with input bombs, each of a gibibyte
	ZBATCH_BOMB_MIB=1024 $(CARGO) test --locked --test tests bombs -- --test-threads=1

FUZZ_TARGETS := answer_ladder api_bodies config custom_id journal_replay posts result_lines
SECONDS ?= 60
CARGO_FUZZ := $(CARGO) fuzz
FUZZ_FLAGS := --fuzz-dir tests/fuzz --sanitizer none

fuzz: ## Each fuzz target for SECONDS=60, one after another (cargo install cargo-fuzz --locked)
	$(CARGO_FUZZ) build $(FUZZ_FLAGS)
	mkdir -p target/fuzz
	set -e; for target in $(FUZZ_TARGETS); do \
		mkdir -p target/fuzz/$$target; \
		$(CARGO_FUZZ) run $(FUZZ_FLAGS) $$target target/fuzz/$$target tests/fuzz/corpus/$$target -- \
			-max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=1024; \
	done

clean: ## Remove what the targets above left, but for Cargo's own files
	rm -rf demo/work demo/enhanced_blogs.json $(VENV) target/measure
