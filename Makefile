# `make demo` and `make test` are all a fresh machine needs: Rust, a C compiler, python3 and make. They share one dev-profile build;
# `make install` and `make bench` build the release profile. `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-ceph faults lint tools venv install bench clean-demo

CARGO ?= cargo
PREFIX ?= $(HOME)/.local
BENCH_ARGS ?=

# The S3 servers that the tests start live in this virtual environment; the tests read the same variable.
export LAKESCRUB_TEST_VENV ?= $(CURDIR)/.venv
S3_SERVERS := ministack==1.5.33 'moto[s3,server]==5.2.5'

# Builds with $(1) and prints where the binary is: cargo alone knows (CARGO_TARGET_DIR, a config file, a target triple).
build = $(CARGO) build --locked $(1) --message-format=json-render-diagnostics | python3 -c 'import json, sys; \
	print(*[line["executable"] for line in map(json.loads, sys.stdin) if line.get("executable")][-1:])'

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## cleans a copy of sample_data/ in .demo/ and proves it; needs no server
	@lakescrub=$$($(call build,))
	step() { printf '\n== %s\n$$ lakescrub %s\n' "$$1" "$${*:2}"; "$$lakescrub" "$${@:2}"; }
	rm -rf .demo
	mkdir .demo
	cp -r sample_data/lake .demo/lake
	step 'Make the keys' keygen .demo/keys
	step 'Dry run: what would go' plan jobs/demo.toml
	step 'Clean the lake' scrub jobs/demo.toml
	step 'Look again, with the independent engine' verify jobs/demo.toml
	step 'Check the proof, without the data' manifest check .demo/state --public-key .demo/keys/signing.pub
	printf '\nThe cleaned lake is .demo/lake, the manifests are in .demo/state/manifests.\n'

test: lint venv ## everything: format, clippy, unit and integration tests, S3 included
	@$(CARGO) test --locked

test-ceph: ## the S3 tests against a Ceph gateway from Debian's packages, which enforces signatures and policies
	@if ! command -v radosgw ceph-mon ceph-osd >/dev/null; then
	  apt-get update -q
	  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends radosgw ceph-mon ceph-osd ceph-mgr
	fi
	$(CARGO) test --locked --test it -- ceph --ignored

faults: ## 2,000 seeded fault schedules, a death at every call, 20,000 damaged files; SCHEDULES=n, CASES=n
	@LAKESCRUB_FAULT_SCHEDULES=$${SCHEDULES:-2000} LAKESCRUB_FUZZ_CASES=$${CASES:-20000} \
	  $(CARGO) test --locked --test it -- faults:: fuzz:: --skip s3_faults

lint: ## formatting and clippy, warnings denied
	@$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

tools: ## what the tests call beside cargo; apt-get installs what is missing when root
	@missing=()
	python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
	for tool in openssl jq; do
	  command -v "$$tool" >/dev/null || missing+=("$$tool")
	done
	[ $${#missing[@]} -gt 0 ] || exit 0
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	  echo "make test needs $${missing[*]} (names of Debian's packages); install and run it again" >&2
	  exit 1
	fi
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$${missing[@]}"

venv: $(LAKESCRUB_TEST_VENV)/.ready ## the Python environment with the S3 servers of the tests

# Remade when this file changes, which names the versions.
$(LAKESCRUB_TEST_VENV)/.ready: Makefile | tools
	@echo 'making $(LAKESCRUB_TEST_VENV) with the S3 servers of the tests'
	python3 -m venv '$(LAKESCRUB_TEST_VENV)'
	'$(LAKESCRUB_TEST_VENV)/bin/pip' install -q --disable-pip-version-check $(S3_SERVERS)
	touch '$@'

install: ## the release binary, into PREFIX/bin (default ~/.local)
	@$(CARGO) install --locked --path . --root '$(PREFIX)'

bench: ## release build, then plan, scrub and verify beside cp, Polars and DuckDB; BENCH_ARGS="--rows 400000"
	@lakescrub=$$($(call build,--release))
	python3 tests/bench/run.py "$$lakescrub" $(BENCH_ARGS)

clean-demo: ## removes .demo/
	@rm -rf .demo

.ONESHELL:
