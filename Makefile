# The two commands: `make demo` runs the main job, `make test` passes every test.
# Both build what they need into target/ and say so; a warm rerun takes seconds.

SHELL := /bin/bash
CARGO ?= cargo
export CARGO
.DEFAULT_GOAL := help

WASILET := target/release/wasilet

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build the node (target/release/wasilet)
	@scripts/stage.sh node-build nice $(CARGO) build --release --locked

.PHONY: guests
guests: ## Build the wasm guests (target/guests/*.wasm), their toolchain first if needed
	@scripts/stage.sh guests scripts/build-guests.sh

.PHONY: demo
demo: build guests ## Run a pod of three wasm containers here, show its page changing, stop it
	@scripts/demo.sh

.PHONY: control-plane
control-plane: ## Build kube-apiserver and the rest of a cluster, kubectl and kubeadm (target/cluster/bin)
	@scripts/stage.sh control-plane scripts/control-plane.sh

.PHONY: cluster
cluster: build guests control-plane ## Kubernetes on this machine, without Docker: a cluster with one node, until Ctrl-C
	@scripts/cluster.sh

.PHONY: test-compat
test-compat: guests ## Pass the cluster tests with the oldest control plane a node joins
	@scripts/stage.sh control-plane scripts/control-plane.sh --compat
	@WASILET_TEST_COMPAT=1 RUST_TEST_THREADS=16 scripts/stage.sh test-compat nice $(CARGO) test --release --locked --test it joined::

.PHONY: test-token
test-token: guests control-plane ## Wait until a pod's token is renewed, with the real API server (nine minutes; not part of make test)
	@scripts/stage.sh test-token nice $(CARGO) test --release --locked --test it -- --ignored joined::credentials::

.PHONY: conformance conformance-quick conformance-flakes
conformance: $(if $(WASILET_BIN),,build) control-plane ## Run the Kubernetes conformance suite against two nodes (FOCUS=common/node, SKIP=, ... see scripts/conformance.sh)
	@scripts/stage.sh conformance scripts/conformance.sh

conformance-quick: $(if $(WASILET_BIN),,build) control-plane ## Run those of its specs that pass and are quick
	@scripts/stage.sh conformance-quick scripts/conformance.sh --quick

conformance-flakes: $(if $(WASILET_BIN),,build) control-plane ## Run the quick ones twenty times
	@REPEAT=20 scripts/stage.sh conformance-flakes scripts/conformance.sh --quick

.PHONY: caddy
caddy: build ## Build Caddy from the Go module proxy, run it as a pod, ask it, stop it, again (minutes; not part of make test)
	@scripts/stage.sh caddy scripts/caddy.sh

.PHONY: agnhost
agnhost: build guests ## Give a node upstream's agnhost, 136 MB: compiled once, within bounds, while other pods start (many minutes; not part of make test)
	@scripts/stage.sh agnhost scripts/agnhost.sh

.PHONY: test
test: ## Lint and pass every test (builds everything it needs)
	@scripts/test.sh

.PHONY: lint
lint: ## Format and clippy checks
	@scripts/stage.sh format $(CARGO) fmt --all --check
	@scripts/stage.sh clippy nice $(CARGO) clippy --release --locked --all-targets --quiet -- -D warnings

.PHONY: bench
bench: guests control-plane ## Measure the node against its peers (WRITE=1: into benches/results.md)
	@scripts/bench.sh

.PHONY: bench-compare
bench-compare: ## Count the instructions of hot paths beside those of the commit before (COMMIT=)
	@scripts/bench-compare.sh $(COMMIT)

.PHONY: soak
soak: guests ## A day of pods on one node, 20,000 with execs, faults and kills: nothing may be left of them (SOAK_PODS=500 for a quick look)
	@SOAK_PODS=$${SOAK_PODS:-20000} scripts/stage.sh soak nice $(CARGO) bench --locked --bench soak

.PHONY: fuzz
fuzz: ## Fuzz every target for a minute each (SECONDS_EACH=60)
	@scripts/fuzz.sh

.PHONY: clean
clean: ## Remove everything that was built
	$(CARGO) clean
