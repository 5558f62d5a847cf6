# The project's verbs. `make` alone lists them.

GO       ?= go
GOTOOL    = $(GO) tool -modfile=tools/go.mod
FUZZTIME ?= 30s
# Flags for `make bench`, for example BENCHFLAGS="-only non -rounds 3"; `-h` lists them.
BENCHFLAGS ?=
# Flags for `make soak`; `-h` lists them.
SOAKFLAGS ?=
# One package at a time: the black-box tests want the cores for themselves.
TESTFLAGS ?= -p 1 -timeout 15m
# Flags for gotestsum. CI has a few failed tests run once more, and lists them.
TESTSUMFLAGS ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: run
run: build ## the demo: a proxy and five devices on this machine's loopback
	exec ./bin/coapproxy demo

.PHONY: build
build: ## build the static binary bin/coapproxy
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/coapproxy ./cmd/coapproxy

.PHONY: test-deps
test-deps: ## install what the tests need (Debian packages as root, one npm package)
	test/install-deps

.PHONY: test
test: test-deps fuzz-short ## go vet, a few seconds of every fuzz target, all tests with the race detector
	@mkdir -p build
	$(GO) vet ./...
	$(GOTOOL) gotestsum --format standard-quiet --hide-summary skipped --jsonfile build/test.json $(TESTSUMFLAGS) --packages=./... -- -race $(TESTFLAGS)
	@test/no-skips build/test.json

.PHONY: systemd
systemd: ## the package under a systemd that boots for it, as root in a minute
	test/systemd

.PHONY: fuzz-short
fuzz-short: ## every fuzz target for about 3 seconds, bounded as a whole
	test/fuzz 3s 180s

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (30s), one after the other
	test/fuzz $(FUZZTIME)

.PHONY: cover
cover: test-deps ## coverage by package; the whole picture in build/cover.html
	@mkdir -p build
	$(GO) test $(TESTFLAGS) -coverpkg=./... -coverprofile=build/cover.out ./...
	$(GO) tool cover -html=build/cover.out -o build/cover.html
	$(GO) tool cover -func=build/cover.out | tail -n 1

.PHONY: lint
lint: ## golangci-lint (.golangci.yml) and govulncheck
	$(GOTOOL) golangci-lint run ./...
	tools/vulncheck

.PHONY: bench
bench: test-deps ## speed side by side with libcoap's proxy and a null relay (BENCHFLAGS=...)
	@mkdir -p build
	$(GO) build -o build/bench ./test/bench/run
	exec build/bench $(BENCHFLAGS)

.PHONY: soak
soak: ## 20 minutes of mixed load that shows whether anything grows (SOAKFLAGS="-chaos -duration 5m")
	@mkdir -p build
	$(GO) build -o build/soak ./test/soak
	exec build/soak $(SOAKFLAGS)

.PHONY: package
package: ## the Debian package, build/coapproxy_VERSION_ARCH.deb
	deploy/package/build

.PHONY: image
image: ## the OCI image coapproxy:latest, with buildah
	deploy/package/image

.PHONY: clean
clean: ## remove what was built
	rm -rf bin build
