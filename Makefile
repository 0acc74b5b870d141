# Makefile of gateway (GPL-3.0-or-later).  `make help` lists what there is;
# the libraries are in deps.mk.  Outputs go to build/ and nowhere else.

ifeq ($(origin CC),default)
CC         = $(CROSS_COMPILE)gcc
AR         = $(CROSS_COMPILE)ar
endif
STRIP      = $(CROSS_COMPILE)strip
CLANG      = clang
PKG_CONFIG = $(CROSS_COMPILE)pkg-config
CFLAGS     = -O2 -g
PREFIX     = /usr/local
FUZZ_SECONDS = 60
BENCH      = ../shared/bench/run
JOBS      := $(shell nproc 2>/dev/null || echo 2)
# the day of the build, for clocks that are not set (see pki_now)
EPOCH     := $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null),\
             $(shell stat -c %Y gateway.c))
VERSION   := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

WARN   = -Wall -Wextra -Wshadow -Wconversion \
         -Werror=implicit-function-declaration -Werror
HARDEN = -fstack-protector-strong -fPIE $(HARDEN.$(CPU))
HARDEN.x86_64  = -fcf-protection
HARDEN.aarch64 = -mbranch-protection=standard
LINK   = -pie -Wl,-z,relro,-z,now,-z,noexecstack -Wl,--gc-sections $(LDFLAGS)
COMMON = -std=c11 -D_GNU_SOURCE $(WARN) $(HARDEN) -fno-omit-frame-pointer \
         -DGATEWAY_VERSION='"$(VERSION)"' -DGATEWAY_EPOCH=$(EPOCH) \
         -DGATEWAY_LIBRARIES='"$(strip $(library_list))"' -Ibuild $(DEPS_CFLAGS)
ASAN   = -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all \
         -DGATEWAY_TEST_DUMPABLE
TSAN   = -O1 -g -fsanitize=thread
# The tests include gateway.c without its main, and need not use all of it.
PART   = -Wno-unused-function -Wno-unused-const-variable

# command-or-file:package, all that a bare Debian may lack
BUILD_NEEDS = gcc:gcc /usr/include/stdio.h:libc6-dev autoconf:autoconf \
              automake:automake libtoolize:libtool xz:xz-utils
RUN_NEEDS   = $(BUILD_NEEDS) python3:python3 curl:curl
TEST_NEEDS  = $(RUN_NEEDS) openssl:openssl /usr/sbin/haproxy:haproxy \
              redis-server:redis-server redis-cli:redis-tools \
              bwrap:bubblewrap groff:groff-base zsh:zsh fish:fish rsync:rsync zip:zip unzip:unzip qpdf:qpdf \
              /usr/lib/python3/dist-packages/jsonschema:python3-jsonschema
FUZZ_NEEDS  = $(BUILD_NEEDS) clang:clang /usr/share/doc/libclang-rt-dev:libclang-rt-dev
LINT_NEEDS  = $(BUILD_NEEDS) clang-tidy:clang-tidy luacheck:lua-check

SCRIPTS  = $(sort $(wildcard scripts/gateway/*.lua))
FUZZ     = $(patsubst tests/fuzz_%.inc,%,$(sort $(wildcard tests/fuzz_*.inc)))
NO_DEPS  = help run test fuzz lint fmt rooms clean

# -----------------------------------------------------------------------------

all: build/gateway ## build the gateway (the default)

ifneq ($(filter-out $(NO_DEPS),$(or $(MAKECMDGOALS),all)),)
include deps.mk
endif

run: ## install what is missing, build, make development certificates, serve
	@tests/setup.sh $(RUN_NEEDS)
	@$(MAKE) --no-print-directory all
	@exec tests/demo.sh

test: ## everything: unit, policy and end-to-end tests, also under ASan and UBSan
	@tests/setup.sh nginx suite sarif $(TEST_NEEDS) $(FUZZ_NEEDS)
	@$(MAKE) --no-print-directory -j $(JOBS) all asan build/clock/gateway build/hostile/gateway build/unit build/asan/unit build/fuzz/all
	@exec tests/all.sh

test-vm: build/gateway ## the tests of cgroups and the cage, in a virtual machine
	@exec tests/vm.sh

debug: build/debug/gateway ## build/debug/gateway: -O0, a Lua that checks its callers
asan: build/asan/gateway   ## build/asan/gateway: address and undefined behaviour
tsan: build/tsan/gateway   ## build/tsan/gateway: data races

unit: build/unit build/asan/unit ## the unit tests, plain and under ASan
	build/unit
	build/asan/unit

lua: build/gateway ## the tests of the policies in scripts/, and of the library
	build/gateway test
	build/gateway test --library --cpu 60 $(sort $(wildcard tests/lua/*_test.lua))

differential: build/gateway ## the same raw requests to gateway, nginx and HAProxy
	python3 tests/differential.py

e2e: build/gateway ## the end-to-end tests
	python3 tests/e2e/run.py --bin build/gateway

fuzz: ## fuzz each parser for FUZZ_SECONDS, two at a time; FUZZ="h1 pki" only those
	@tests/setup.sh $(FUZZ_NEEDS)
	@$(MAKE) --no-print-directory build/fuzz/all
	@tests/fuzz.sh $(FUZZ_SECONDS) $(FUZZ)

lint: ## clang-tidy, luacheck
	@tests/setup.sh $(LINT_NEEDS)
	@$(MAKE) --no-print-directory lint-now

fmt: ## clang-format over the C
	clang-format -i gateway.c $(wildcard tests/*.c)

rooms: ## is the preface of gateway.c true?
	python3 tests/rooms.py

bench: all ## compare with other servers (BENCH is the runner)
	$(BENCH) --peers gateway

micro: build/micro ## what it costs to parse and check 1 KiB of JSON
	build/micro

deps: $(DEPS_STAMPS) ## fetch and build the libraries
sbom: $(DEPS_STAMPS) ## name, version, sha256 and licence of every library
	@{ cat $(DEPS_STAMPS); $(foreach l,$(PC_LIBS),echo $l \
	    $$($(PKG_CONFIG) --modversion $($l_PC)) system $(call licence,$l);) } | \
	    awk '{ printf "%-8s %-10s %-64s  %s\n", $$1, $$2, $$3, $$4 }'

install: all ## into PREFIX, below DESTDIR
	install -D -m 755 build/gateway $(DESTDIR)$(PREFIX)/bin/gateway
	$(STRIP) $(DESTDIR)$(PREFIX)/bin/gateway
	install -D -m 644 scripts/gateway.lua $(DESTDIR)$(PREFIX)/share/gateway/gateway.lua

clean: ## remove build/ (the libraries stay in the cache)
	rm -rf build

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

.PHONY: all run test test-vm debug asan tsan unit lua e2e differential fuzz fuzzers lint lint-now \
        fmt rooms bench micro deps sbom install clean help FORCE
.DELETE_ON_ERROR:

build/gateway:       WITH = $(CFLAGS) -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
build/unit:          WITH = $(CFLAGS) $(PART)
build/micro:         WITH = $(CFLAGS) $(PART)
build/debug/gateway: WITH = -O0 -g3
build/clock/gateway: WITH = -O0 -UGATEWAY_EPOCH -DGATEWAY_EPOCH=4102444800
build/hostile/gateway: WITH = -O0 -DGATEWAY_TEST_HOSTILE
build/asan/gateway:  WITH = $(ASAN)
build/asan/unit:     WITH = $(ASAN) $(PART)
build/tsan/gateway:  WITH = $(TSAN)
build/fuzz/all:      WITH = $(ASAN) -fsanitize=fuzzer $(PART)
build/fuzz/all:      CC   = $(CLANG)
build/debug/% build/asan/% build/tsan/% build/fuzz/all: USED = $(DEBUG_LDLIBS)
build/gateway build/clock/gateway build/hostile/gateway build/unit build/micro: USED = $(DEPS_LIBS)

GATEWAYS = build/gateway build/debug/gateway build/asan/gateway build/tsan/gateway \
           build/clock/gateway build/hostile/gateway
UNITS    = build/unit build/asan/unit
define compile
	@mkdir -p $(@D)
	@echo '$(CC) $(WITH) $< -o $@'$(if $(V),,' ... (V=1 shows all of it)')
	$(if $(V),,@)$(CC) $(COMMON) $(WITH) $< -o $@ $(LINK) $(USED)
endef
$(GATEWAYS): gateway.c ; $(compile)
$(UNITS): tests/unit.c gateway.c $(wildcard tests/*.inc) ; $(compile)
build/micro: tests/micro.c gateway.c ; $(compile)
build/fuzz/all: tests/fuzz.c gateway.c $(wildcard tests/*.inc) ; $(compile)
$(GATEWAYS) $(UNITS) build/micro build/fuzz/all: Makefile build/flags build/scripts.inc $(DEBUG_STAMPS)

# The Lua that travels in the binary: a row per file, { name, bytes, length }.
build/scripts.inc: $(SCRIPTS) $(wildcard scripts/gateway)
	@mkdir -p build
	@for f in $(SCRIPTS); do \
	    printf '{ "%s", (const unsigned char[]){\n' "$${f#scripts/}"; \
	    od -An -v -tx1 "$$f" | sed 's/ \(..\)/0x\1,/g'; \
	    printf '0 }, %d },\n' "$$(wc -c <"$$f")"; done >$@

# What the programs are made with: changed flags or versions make them again.
build/flags: $(DEPS_STAMPS) FORCE
	@mkdir -p build
	@printf '%s\n' $(call quote,$(CC_ID) $(COMMON) $(CFLAGS) $(LINK) $(DEPS_LIBS)) >$@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

# The analyzer ends a function at 225000 states by itself, and then takes more
# than ten minutes; what it finds, it finds in the first ones.
ANALYZER = --extra-arg=-Xclang --extra-arg=-analyzer-config \
           --extra-arg=-Xclang --extra-arg=max-nodes=20000
LINTS    = lint-gateway lint-tests lint-lua
.PHONY: $(LINTS)
lint-now: build/scripts.inc $(DEPS_STAMPS)
	@$(MAKE) --no-print-directory -k -j $(JOBS) $(LINTS)
lint-gateway:
	clang-tidy --quiet $(ANALYZER) gateway.c -- $(filter-out -f%,$(COMMON)) $(PART)
lint-tests:
	clang-tidy --quiet --checks='-clang-analyzer-*' $(wildcard tests/*.c) -- $(filter-out -f%,$(COMMON)) $(PART)
lint-lua:
	luacheck --quiet scripts tests
