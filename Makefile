# `make` alone prints this file's targets.

CARGO ?= cargo
PYTHON ?= python3
POSTS ?= 100000
SEEDS ?= 20000
SOCKET_SEEDS ?= 200
SECONDS ?= 900
SIMULATOR = $(CARGO) test --quiet --locked --features drill --test simulator --

TARGET := $(or $(CARGO_TARGET_DIR),target)
ZBATCH := $(TARGET)/release/zbatch
VENV := target/venv
# Panic messages name source files: as /cargo/… and /zbatch/…, not as where they are here.
REMAP := --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo --remap-path-prefix=$(CURDIR)=/zbatch

.PHONY: help build demo test lint audit simulate simulate-sockets sweep guards people crash-quick crash soak bombs fuzz python-tests \
	measure bench clean

help: ## Print every target
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

build: ## Build target/release/zbatch, without paths of this machine in it
	RUSTFLAGS="$(REMAP) $(RUSTFLAGS)" $(CARGO) build --release --locked

demo: build ## Label data/posts.json with the emulator: no key, no network, invented answers
	rm -rf demo/work demo/enhanced_blogs.json
	mkdir -p demo
	$(ZBATCH) run data/posts.json -d demo/work -o demo/enhanced_blogs.json --data-dir data --emulate
	@echo
	@echo "enhanced posts: demo/enhanced_blogs.json"
	@echo "report:         demo/work/integration_report.json"

test: ## Run all tests (Rust; Python's standard library where python3 is there)
	$(CARGO) test --locked --features drill
	@if command -v $(PYTHON) >/dev/null; then \
		$(PYTHON) -B tests/measure.py --zbatch $(TARGET)/debug/zbatch --posts 500; \
	else echo "skipped: $(PYTHON) is not here"; fi

lint: ## Formatting, clippy and rustdoc, warnings denied
	$(CARGO) fmt --check
	$(CARGO) clippy --locked -- -D warnings
	$(CARGO) clippy --all-targets --locked --features drill -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked

audit: build ## Licences, sources and known flaws of the dependencies; paths in the binary (cargo install cargo-deny --locked)
	$(CARGO) deny --locked check --hide-inclusion-graph licenses bans sources
	@if $(CARGO) deny --locked fetch db 2>/dev/null; then $(CARGO) deny --locked check advisories; \
	else echo "skipped: the database of advisories cannot be reached"; fi
	@if grep -aqF -e '$(HOME)/' -e '$(CURDIR)/' $(ZBATCH); then echo "paths of this machine are in $(ZBATCH)" >&2; exit 1; fi

simulate: ## The whole job in virtual time under SEEDS=20000 schedules of faults and kills (SEED=17: that one, aloud)
	$(SIMULATOR) $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

simulate-sockets: ## The same over real sockets with real kills, SOCKET_SEEDS=200 (SEED=17: that one, aloud)
	$(SIMULATOR) --sockets $(if $(SEED),--seed $(SEED),--threads 24 --seeds $(SOCKET_SEEDS))

sweep: ## A kill at the first, middle and last durable step of each kind, and again during the resume (EVERY=1: at every step)
	$(SIMULATOR) --sweep $(if $(EVERY),--every)

guards: ## Take each guard away: a suite must fail
	$(PYTHON) -B tests/guards.py

python-tests: build $(VENV)/ready ## The vendor's SDK against the emulator, and the Pocket Flow nodes (pip installs both)
	$(VENV)/bin/python -B tests/zai_sdk_cycle.py $(ZBATCH)
	ZBATCH=$(abspath $(ZBATCH)) $(VENV)/bin/python -B -m unittest discover -v -s examples/pocketflow

$(VENV)/ready: tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r tests/requirements.txt
	touch $@

people: ## Many processes on one directory, fifty at a time, and the tests of signals, secrets and outputs, ten times over
	for round in 1 2 3 4 5 6 7 8 9 10; do \
		ZBATCH_RACERS=50 $(CARGO) test --locked --test tests -- signals:: secrets:: outputs:: || exit 1; done

crash-quick: build ## The program killed and refused at its calls, on a full disk, without power: the short form of `crash`
	$(PYTHON) -B tests/crash.py --zbatch $(ZBATCH) --quick
	$(PYTHON) -B tests/crash_disk.py --zbatch $(ZBATCH) --quick
	$(PYTHON) -B tests/crash_power.py --zbatch $(ZBATCH) --instants 10

crash: build ## The same at every call, every 32 KiB and 100 instants (strace; root; half an hour)
	$(PYTHON) -B tests/crash.py --zbatch $(ZBATCH)
	$(PYTHON) -B tests/crash_disk.py --zbatch $(ZBATCH)
	$(PYTHON) -B tests/crash_power.py --zbatch $(ZBATCH) --instants 100
	$(PYTHON) -B tests/crash_power.py --zbatch $(ZBATCH) --instants 12 --without-syncs

soak: POSTS = 1000000
soak: build ## A job of POSTS=1000000 posts, its client killed every 5 to 20 s for SECONDS=900, its server now and then
	$(PYTHON) -B tests/soak.py --zbatch $(ZBATCH) --posts $(POSTS) --seconds $(SECONDS)

measure: build ## Peak memory of gen, parse and merge for POSTS=100000 posts and ten times as many
	$(PYTHON) -B tests/measure.py --zbatch $(ZBATCH) --posts $(POSTS)

bench: build $(VENV)/peers ## zbatch beside jq, Python, orjson and DuckDB on the same data, then each function alone
	$(VENV)/bin/python -B tests/bench.py --zbatch $(ZBATCH) --posts $(POSTS) --json target/bench.json
	$(CARGO) bench --locked --bench functions

$(VENV)/peers: tests/peers/requirements.txt
	$(PYTHON) -m venv $(VENV)
	-$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r tests/peers/requirements.txt
	touch $@

bombs: ## The tests with input bombs, each of a gibibyte, and 1,000 posts with five images of 4 MB each (27 GB of requests)
	ZBATCH_BOMB_MIB=1024 $(CARGO) test --locked --test tests bombs -- --test-threads=1
	ZBATCH_IMAGE_POSTS=1000 $(CARGO) test --locked --test tests five_large_images -- --nocapture

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
