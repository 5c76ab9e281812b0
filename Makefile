# Everything that a person or CI does with rotor. Each target installs what it needs and says so.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

INSTANCES ?= 50

.PHONY: help build demo test test-fast test-race test-slow test-fips test-python test-interop test-repro fuzz lint bench release vuln clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

build: ## build the rotor command and the example worker into bin/
	go build -tags grpcnotrace -o bin/ ./cmd/rotor ./examples/worker

demo: build ## a fleet of 50 processes rotates its keys under load and faults; report in demo-report.json
	go build -o bin/fleet ./examples/fleet
	bin/fleet run -rotor bin/rotor -model "$$(scripts/model)" -instances $(INSTANCES)

test: test-fast test-race test-slow test-services test-fips test-python test-interop test-repro vuln fuzz ## every test

test-fast: ## the fast suite, under a minute
	go test ./...

test-race: ## the fast suite of the concurrent rooms under the race detector
	go test -race -count=1 . ./envelope ./internal/...

test-slow: ## exhaustive model checking, crash rounds: minutes
	go test -tags slow -count=1 -timeout 30m -run '$(SLOW)' $(SLOW_ROOMS)

test-services: ## what needs a real PostgreSQL, etcd, SoftHSM or Vault, which it installs
	scripts/services
	go test -tags "services pkcs11" -count=1 -timeout 20m $(SERVICES_ROOMS)
	go test -tags "services pkcs11" -count=1 -run 'PKCS11|HSM' ./internal/cli ./internal/kms
	go test -tags services -count=1 -run OnServices ./internal/guard

test-fips: ## the FIPS suites, a server and its clients within Go's cryptographic module, under GODEBUG=fips140=only
	GOFIPS140=v1.26.0 GODEBUG=fips140=only go test -tags fips -count=1 -run FIPS ./internal/suite ./envelope ./internal/delivery ./internal/cli
	GOFIPS140=v1.0.0 GODEBUG=fips140=only go test -tags fips -count=1 -run FIPS ./internal/suite ./envelope ./internal/cli

test-python: ## the Python package, in both directions against the Go code
	scripts/test-python

test-interop: ## the clients of Vault, which it installs, and the audit log before a verifier that rotor did not write
	scripts/interop
	go test -C interop -mod=mod -count=1 ./...
	go test -C interop/clients -count=1 -timeout 10m ./...

fuzz: ## every fuzz target for a fixed number of inputs
	scripts/fuzz 10000x

test-repro: ## two builds of one commit are the same, and a release verifies
	scripts/test-repro

release: ## programs, SBOMs, provenance, signed checksums in dist/; RELEASE_KEY=path of an SSH key
	scripts/release

vuln: ## known flaws in what rotor is made of, by the Go vulnerability database of a pinned day
	scripts/vuln

lint: ## gofmt, go vet and golangci-lint
	scripts/lint

bench: ## the bars, as ratios in one run; report in bench-report.json
	scripts/bench

clean: ## remove what was built
	rm -rf bin dist .cache demo-report.json bench-report.json

# What test-slow and test-services run.
SERVICES_ROOMS := ./internal/testenv ./internal/custody ./internal/seal/pkcs11 ./internal/seal/transit ./internal/store/postgres ./internal/store/etcd ./internal/server ./deploy
SLOW := .
SLOW_ROOMS := . ./internal/rotation ./internal/store/... ./examples/fleet ./internal/cli
