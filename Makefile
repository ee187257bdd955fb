# One command for each thing a newcomer or a contributor wants; `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help setup demo bench faults chaos faults-setup faults-share test fuzz sbom ci ci-setup fmt-check lint unit-and-integration rustdoc deny advisories

# Passed on by `make demo`, `make bench`, `make faults` and `make chaos`, e.g. `make demo ARGS=--once`.
ARGS ?=
# Of each decoder, for `make fuzz`.
SECONDS ?= 60
# Of `make chaos`.
MINUTES ?= 10
SEED ?= 1
# The faults that CI injects: deaths at each step, lost answers and links, what can't be read, a hot key, a full queue, two replicas.
SHARE ?= P1,P2.before_commit,P3,P4,P5,P7,P9,P10,P13,N1.broker,N1.database,N1.both,N3.answers,N9,N10,D2,E1,E2,E5.flood,C1,C5,C5.held,B11

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing (RabbitMQ, PostgreSQL, a C compiler) on Debian or Ubuntu
	@./scripts/setup.sh

demo: setup ## see the whole thing work: private servers, a sample world, a live table (ARGS=--once ends it)
	cargo build --release --locked
	./target/release/onceflow dev $(ARGS)

bench: setup ## measure against the limit and the naive way, about 20 minutes (ARGS=--list names the scenarios)
	cargo build --release --locked --features bench
	./target/release/onceflow-bench $(ARGS)

faults: faults-setup ## inject 86 faults into the real service, about 10 minutes (ARGS=--list names them)
	cargo build --locked --features faults
	./target/debug/onceflow-faults --seed $(SEED) $(ARGS)

chaos: faults-setup ## faults at random under load (MINUTES=10 SEED=1)
	cargo build --locked --features faults
	./target/debug/onceflow-faults chaos --minutes $(MINUTES) --seed $(SEED) $(ARGS)

faults-setup:
	@./scripts/setup.sh --faults

test: setup unit-and-integration ## run every test, on private servers

fuzz: ## feed every decoder mutated input (SECONDS=60 each; what breaks one is kept)
	ONCEFLOW_FUZZ_SECONDS=$(SECONDS) cargo test --locked --features faults --test it security::fuzz -- --nocapture

sbom: ## write what a release is made of to target/sbom.cdx.json (CycloneDX)
	@mkdir -p target && ./scripts/sbom.sh > target/sbom.cdx.json && echo "target/sbom.cdx.json"

ci: ci-setup fmt-check lint unit-and-integration faults-share rustdoc deny advisories ## run all that CI runs

ci-setup:
	@./scripts/setup.sh --ci

fmt-check:
	cargo fmt --all --check

lint:
	cargo clippy --locked --all-targets --features failpoints,bench,faults -- -D warnings

unit-and-integration:
	cargo test --locked --features faults

faults-share:
	cargo build --locked --features faults
	./target/debug/onceflow-faults --only $(SHARE)

rustdoc:
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

deny:
	cargo deny --locked check bans licenses sources

# The advisory database is a git repository that not every network reaches. Only a fetch that fails is forgiven.
advisories:
	@if cargo deny --locked fetch db; then \
	  cargo deny --locked check --disable-fetch advisories; \
	else \
	  echo "advisories: NOT CHECKED, the advisory database can't be fetched from here" >&2; \
	fi
