# `make` alone prints the targets: the three doors to the tests, their parts, and the rest.

CARGO ?= cargo
PYTHON ?= python3
POSTS ?= 100000
SEEDS ?= 20000
SOCKET_SEEDS ?= 200
SIMULATOR = $(CARGO) test --quiet --locked --features drill --test simulator --
SYSTEM := tests/system

TARGET := $(or $(CARGO_TARGET_DIR),target)
ZBATCH := $(TARGET)/release/zbatch
VENV := target/venv
# Panic messages name source files: as /cargo/… and /zbatch/…, not as the paths of this machine.
REMAP := --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo --remap-path-prefix=$(CURDIR)=/zbatch

# The parts of the two long doors, in the order in which they run.
TORTURE := simulate simulate-sockets sweep guards crash-quick measure-quick
BENCH := compare functions measure

# Cargo uses all cores by itself, and the benchmarks need a quiet machine.
.NOTPARALLEL:

.PHONY: help test torture bench $(TORTURE) torture-parts crash soak people bombs fuzz python-tests $(BENCH) \
	build demo lint audit clean

help: # Prints the target and the text after `##`; a line that begins with `##@` is a heading.
	@awk '/^##@ /  { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { at = index($$0, "## "); name = $$0; sub(/:.*/, "", name); \
			printf "  make %-17s %s\n", name, substr($$0, at + 3) }' $(firstword $(MAKEFILE_LIST))

##@ The three doors to the tests

test: ## Every Rust test, and a short run of the simulator: minutes
	$(CARGO) test --locked --features drill

torture: $(TORTURE) ## Kills, faults, full disks and removed safety checks: all its parts, half an hour

bench: $(BENCH) ## Speed and memory, beside other programs: all its parts

##@ Parts of `make torture`

simulate: ## `run` in virtual time under SEEDS=20000 schedules of faults and kills (SEED=17: replay that seed, with its output)
	$(SIMULATOR) $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

simulate-sockets: ## The same over real sockets with SIGKILL, SOCKET_SEEDS=200 (SEED=17: replay that seed, with its output)
	$(SIMULATOR) --sockets $(if $(SEED),--seed $(SEED),--threads 24 --seeds $(SOCKET_SEEDS))

sweep: ## Kill `run` at the first, middle and last durable step of each kind, and again during the resume (EVERY=1: at every step)
	$(SIMULATOR) --sweep $(if $(EVERY),--every)

guards: ## Mutation test: remove each safety check; a test must fail
	$(PYTHON) -B $(SYSTEM)/guards.py

crash-quick: build ## Each verb killed and refused at its system calls, on a full disk, without power: the short form of `crash`
	$(PYTHON) -B $(SYSTEM)/crash.py --zbatch $(ZBATCH) --quick
	$(PYTHON) -B $(SYSTEM)/crash_disk.py --zbatch $(ZBATCH) --quick
	$(PYTHON) -B $(SYSTEM)/crash_power.py --zbatch $(ZBATCH) --instants 10

measure-quick: build ## The memory bounds of gen, parse and merge at 10,000 and 100,000 posts; `measure` judges growth too
	$(PYTHON) -B $(SYSTEM)/measure.py --zbatch $(ZBATCH) --posts 10000

# CI runs each part by itself and reports it.
torture-parts:
	@echo $(TORTURE)

##@ Not part of `make torture`: at length, or with packages of others

crash: build ## `crash-quick` at every system call, every 32 KiB of disk and 100 instants (strace; root; half an hour)
	$(PYTHON) -B $(SYSTEM)/crash.py --zbatch $(ZBATCH)
	$(PYTHON) -B $(SYSTEM)/crash_disk.py --zbatch $(ZBATCH)
	$(PYTHON) -B $(SYSTEM)/crash_power.py --zbatch $(ZBATCH) --instants 100
	$(PYTHON) -B $(SYSTEM)/crash_power.py --zbatch $(ZBATCH) --instants 12 --without-syncs

soak: POSTS = 1000000
soak: SECONDS ?= 900
soak: build ## A job of POSTS=1000000 posts; its client is killed every 5 to 20 s for SECONDS=900, its server less often
	$(PYTHON) -B $(SYSTEM)/soak.py --zbatch $(ZBATCH) --posts $(POSTS) --seconds $(SECONDS)

people: ## Fifty processes at a time on one directory, and the tests of signals, secrets and outputs, ten times
	for round in 1 2 3 4 5 6 7 8 9 10; do \
		ZBATCH_RACERS=50 $(CARGO) test --locked --test tests -- signals:: secrets:: outputs:: || exit 1; done

bombs: ## Inputs that unpack to 1 GiB, and 1,000 posts with five images of 4 MB each (27 GB of requests)
	ZBATCH_BOMB_MIB=1024 $(CARGO) test --locked --test tests bombs -- --test-threads=1
	ZBATCH_IMAGE_POSTS=1000 $(CARGO) test --locked --test tests five_large_images -- --nocapture

FUZZ_TARGETS := answer_ladder api_bodies config custom_id journal_replay posts result_lines
CARGO_FUZZ := $(CARGO) fuzz
FUZZ_FLAGS := --fuzz-dir tests/fuzz --sanitizer none

fuzz: SECONDS ?= 60
fuzz: ## Each fuzz target for SECONDS=60, one after another (cargo install cargo-fuzz --locked)
	$(CARGO_FUZZ) build $(FUZZ_FLAGS)
	mkdir -p target/fuzz
	set -e; for target in $(FUZZ_TARGETS); do \
		mkdir -p target/fuzz/$$target; \
		$(CARGO_FUZZ) run $(FUZZ_FLAGS) $$target target/fuzz/$$target tests/fuzz/corpus/$$target -- \
			-max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=1024; \
	done

python-tests: build $(VENV)/ready ## The SDK of Zhipu against the emulator, and the Pocket Flow nodes (pip installs both)
	$(VENV)/bin/python -B $(SYSTEM)/zai_sdk_cycle.py $(ZBATCH)
	ZBATCH=$(abspath $(ZBATCH)) $(VENV)/bin/python -B -m unittest discover -v -s examples/pocketflow

$(VENV)/ready: $(SYSTEM)/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(SYSTEM)/requirements.txt
	touch $@

##@ Parts of `make bench`

compare: build $(VENV)/peers ## zbatch beside jq, Python, orjson and DuckDB on the same POSTS=100000 posts
	$(VENV)/bin/python -B $(SYSTEM)/bench.py --zbatch $(ZBATCH) --posts $(POSTS) --json target/bench.json

functions: ## Each function alone (cargo bench)
	$(CARGO) bench --locked --bench functions

measure: build ## Peak memory of gen, parse and merge for POSTS=100000 posts and ten times as many
	$(PYTHON) -B $(SYSTEM)/measure.py --zbatch $(ZBATCH) --posts $(POSTS)

$(VENV)/peers: $(SYSTEM)/peers/requirements.txt
	$(PYTHON) -m venv $(VENV)
	-$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(SYSTEM)/peers/requirements.txt
	touch $@

##@ The rest

build: ## Build target/release/zbatch, without paths of this machine in it
	RUSTFLAGS="$(REMAP) $(RUSTFLAGS)" $(CARGO) build --release --locked

demo: build ## Label data/posts.json with the emulator: no key, no network, invented answers
	rm -rf demo/work demo/enhanced_blogs.json
	mkdir -p demo
	$(ZBATCH) run data/posts.json -d demo/work -o demo/enhanced_blogs.json --data-dir data --emulate
	@echo
	@echo "enhanced posts: demo/enhanced_blogs.json"
	@echo "report:         demo/work/integration_report.json"

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

clean: ## Remove the files of the targets above, but not those of Cargo
	rm -rf demo/work demo/enhanced_blogs.json $(VENV) target/measure
