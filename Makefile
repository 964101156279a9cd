GOLANGCI = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# Options of go test, such as TESTFLAGS='-race -v'.
TESTFLAGS =

# The servers that no test may do without.
REQUIRED = DBMUTEX_TEST_POSTGRES=required DBMUTEX_TEST_MYSQL=required

# Every module's folder, the root module last so that its summary ends the output.
MODULES = $(shell find . -mindepth 2 -name go.mod -not -path '*/.*' -not -path '*/testdata/*' | sed 's,/go.mod$$,,' | sort) .

# Of torture and fuzz. A seed of 0 is drawn.
DURATION = 10m
SEED = 0
FUZZTIME = 30s

# Options of bench/bench_test.go.
BENCHFLAGS =

# What is to be tagged, for every module.
VERSION = v0.1.0

.PHONY: help setup build test test-observers test-ticks test-overlaps test-matrix torture fuzz bench screenshots \
	release-check lint fmt

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST)

setup: ## install what the tests need, or say what to install
	@internal/testdb/setup.sh

test: setup ## set up and run the tests of every module
	@failed=; \
	for module in $(MODULES); do \
		echo "go test $$module"; \
		(cd $$module && $(REQUIRED) go test -timeout 20m $(TESTFLAGS) ./...) || failed="$$failed $$module"; \
	done; \
	if [ -n "$$failed" ]; then echo "tests failed in:$$failed" >&2; exit 1; fi

test-observers: setup ## run the root module's tests under observers that panic, block, or return a bad context
	@for observer in panics blocks nil cancelled; do \
		echo "go test with an observer: $$observer"; \
		$(REQUIRED) DBMUTEX_TEST_OBSERVER=$$observer go test -count=1 -timeout 1h $(TESTFLAGS) . || exit 1; \
	done

test-matrix: ## run the root module's tests on all versions that README names; needs npm
	@internal/testdb/matrix.sh

build: ## build the command for all systems, into dist; none may have 25 MB
	@for system in linux darwin windows; do for machine in amd64 arm64; do \
		binary=dist/dbmutex-$$system-$$machine; \
		if [ $$system = windows ]; then binary=$$binary.exe; fi; \
		echo "$$binary"; \
		(cd cmd/dbmutex && CGO_ENABLED=0 GOOS=$$system GOARCH=$$machine \
			go build -trimpath -ldflags "-s -w" -o ../../$$binary .) || exit 1; \
		if [ $$(wc -c <$$binary) -ge 25000000 ]; then echo "build: $$binary is too large" >&2; exit 1; fi; \
	done; done

test-ticks: setup ## 500 ticks for workers in processes that are killed, on each database, of which none may be done twice
	$(REQUIRED) DBMUTEX_TEST_TICKS=500 go test -count=1 -timeout 0 -v $(TESTFLAGS) -run TestEachTick ./internal/faults

test-overlaps: setup ## 200 runs of the command under faults, on each database, of which no two may overlap
	cd cmd/dbmutex && \
		$(REQUIRED) DBMUTEX_TEST_ROUNDS=200 go test -count=1 -timeout 0 -v $(TESTFLAGS) -run TestTwoRunsNeverOverlap .

torture: setup ## let processes compete under random faults, and judge what they saw; DURATION=10m SEED=1
	cd internal/torture && go test -count=1 -timeout 0 -v -run TestTorture -args -duration=$(DURATION) -seed=$(SEED)

fuzz: setup ## fuzz ids, holders, settings and the environment, each for FUZZTIME=30s
	@for target in $$(sed -n 's/^func \(Fuzz[A-Za-z]*\).*/\1/p' fuzz_test.go); do \
		go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) . || exit 1; \
	done

bench: setup ## measure this package and its peers side by side, into bench/RESULTS.md; BENCHFLAGS=-scenarios=cycle
	cd bench && $(REQUIRED) go test -count=1 -timeout 0 -v -run TestBench . -args -full $(BENCHFLAGS)

screenshots: setup ## take the pictures of the dashboard that README shows
	cd contrib/dashboard/internal/browser && DBMUTEX_TEST_POSTGRES=required go test -count=1 -run TestScreenshots . \
		-args -screenshots "$(CURDIR)/docs"

release-check: ## use every module as a stranger would once it is tagged; VERSION=v0.1.0
	cd internal/release && go run . -root ../.. -version $(VERSION)

lint: ## check every module with gofmt, go vet and golangci-lint (staticcheck and more), and the width of all lines
	@internal/testdb/width.sh
	@files=$$(gofmt -l .); \
	if [ -n "$$files" ]; then echo "gofmt: run make fmt for:" $$files >&2; exit 1; fi
	@failed=; \
	for module in $(MODULES); do \
		echo "lint $$module"; \
		(cd $$module && go vet ./... && go run $(GOLANGCI) run --config "$(CURDIR)/.golangci.yml" ./...) || \
			failed="$$failed $$module"; \
	done; \
	if [ -n "$$failed" ]; then echo "lint failed in:$$failed" >&2; exit 1; fi

fmt: ## format the code
	gofmt -w .
