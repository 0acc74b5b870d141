# deps.mk - the libraries of gateway: where they come from and how they are
# built.  Every tarball is fetched by apt and verified against its signed
# index, built static with our flags, and kept under CACHE in a prefix whose
# name says library, version, and a key of recipe, flags and compiler.  What
# is there already is not built, and apt is not asked, a second time.
#
#   make deps                    fetch and build what is missing
#   make DEPS_DIR=folder         take the tarballs from a folder, not from apt
#   make SYSTEM_DEPS=1           all but wolfSSL and llhttp from pkg-config
#   rm CACHE/sources/*.mk        forget what was fetched: look for newer ones
#
# To add a library: its name in LIBS, its _ROW, its _BUILD.

LIBS = wolfssl uv lua llhttp yyjson pcre2 cares seccomp yaml
DEBUG_LIBS = lua_debug

# library     Debian's source, minimum, licence, its names in pkg-config
wolfssl_ROW = wolfssl  5.9.2  GPL-3.0-or-later
uv_ROW      = libuv1   1.50   MIT           libuv
lua_ROW     = lua5.4   5.4.6  MIT           lua5.4 lua-5.4 lua54 lua
lua_debug_ROW = $(lua_ROW)
llhttp_ROW  = nghttp2  1.60   MIT
yyjson_ROW  = yyjson   0.10   MIT           yyjson
pcre2_ROW   = pcre2    10.43  BSD-3-Clause  libpcre2-8
cares_ROW   = c-ares   1.34   MIT           libcares
seccomp_ROW = libseccomp 2.5.4 LGPL-2.1-only libseccomp
yaml_ROW    = libyaml  0.2.5  MIT           yaml-0.1

SUITES      = sid forky trixie
DEPS_FLAGS  = -O2 -fPIE -fno-omit-frame-pointer -fstack-protector-strong \
    -ffunction-sections -fdata-sections
CACHE      := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/gateway

# wolfSSL.  What is given as -D here is found again in wolfssl/options.h, which
# gateway.c includes first: WOLFSSL_ALWAYS_VERIFY_CB is seen through it.
# X25519MLKEM768 in plain C costs 2 KB and 36 us a handshake; with wolfSSL's
# assembly for it and for SHA-3, 207 KB and 11 us.  Tickets: no key of wolfSSL's
# own, and room for the note that gateway seals into them; MAX_PSK_ID_LEN, or a
# longer ticket of another server is an error instead of a full handshake.
WOLFSSL_ARCH.x86_64  = --enable-intelasm
WOLFSSL_ARCH.aarch64 = --enable-armasm
WOLFSSL_FLAGS = --disable-shared --enable-static --enable-curve25519 \
    --enable-ed25519 --enable-sp --enable-sp-asm --enable-session-ticket \
    --enable-alpn --enable-sni --enable-certgen --enable-certreq \
    --enable-certext --enable-keygen --disable-oldtls \
    --disable-sys-ca-certs --disable-crypttests --disable-examples \
    --enable-mlkem=768,make,encapsulate,decapsulate,noasm \
    --enable-singlethreaded \
    $(WOLFSSL_ARCH.$(CPU))
WOLFSSL_DEFS = -DWOLFSSL_ALWAYS_VERIFY_CB -DWOLFSSL_ALT_NAMES \
    -DMICRO_SESSION_CACHE -DWOLFSSL_MULTI_ATTRIB -DWOLFSSL_ASN_ALLOW_0_SERIAL \
    -DWOLFSSL_NO_DEF_TICKET_ENC_CB -DWOLFSSL_TICKET_EXTRA_PADDING_SZ=64 \
    -DMAX_PSK_ID_LEN=16384 -DWC_SHA3_NO_ASM
# Servers give tickets whose nonce is longer than 8 bytes (mbedTLS, rustls: 32);
# without this, each of their connections ends in an error.
WOLFSSL_DEFS += -DWOLFSSL_TICKET_NONCE_MALLOC
WOLFSSL_ABSENT = OPENSSL_EXTRA OPENSSL_COMPATIBLE_DEFAULTS \
    WOLFSSL_TRUST_PEER_CERT KEEP_PEER_CERT SESSION_CERTS HAVE_CRL HAVE_OCSP

# wolfSSL's template of a name knows one attribute in an RDN.  RFC 5280 allows
# several: the sed lets each further one be read without a SET of its own.  What
# is laxer by that is for pki_ to refuse, which reads every name strictly.
WOLFSSL_MORE = (input[srcIdx] == (ASN_SEQUENCE | ASN_CONSTRUCTED))

# wolfSSL 5.9.2 goes on counting a ticket's nonce where the resumed session's
# stood, and ends a chain of resumptions at 256 with an error; RFC 8446 (4.6.1)
# wants it to be unique within one connection, so each begins at 0.
# What a client sends is for pki_ alone: wolfSSL would keep each CA of a chain,
# check the next signature with it (a stranger's P-521 key: 2 ms each) and
# complete another client's chain with it.
# wolfSSL calls most refusals of a verify callback unknown_ca or
# bad_certificate.  The alert is what the callback leaves in store->error, made
# negative: between its success and its error codes, which begin at -97.
define wolfssl_BUILD
sed -i 's/GetASN_Items(rdnASN, dataASN, rdnASN_Length, 1, input,/GetASN_Items( \
  rdnASN + $(WOLFSSL_MORE), dataASN + $(WOLFSSL_MORE), \
  (int)rdnASN_Length - $(WOLFSSL_MORE), 0, input,/' wolfcrypt/src/asn.c
grep -q 'rdnASN + (input' wolfcrypt/src/asn.c
sed -i 's/if (ssl->session->ticketNonce.len == 0) {/if (!ssl->options.ticketsSent) {/' \
  src/tls13.c
[ "$$(grep -c 'if (!ssl->options.ticketsSent) {' src/tls13.c)" = 1 ]
sed -i 's/verifyNone && !skipAddCA) {/verifyNone \&\& !skipAddCA \&\& 0) {/' \
  src/internal.c
[ "$$(grep -c '!skipAddCA && 0) {' src/internal.c)" = 1 ]
sed -i -e 's/alertWhy = bad_certificate;/alertWhy = ret < -1 \&\& ret > -97 ? -ret : bad_certificate;/' \
  -e 's/^  *.. induce error if one not present ..$$/if (store->error < 0) \
  cert_err = ret = store->error;/' src/internal.c
[ "$$(grep -c -e 'ret > -97 ? -ret' -e 'cert_err = ret = store->error' src/internal.c)" = 2 ]
./autogen.sh
./configure $(HOST) $(WOLFSSL_FLAGS) CFLAGS="$$CFLAGS $(WOLFSSL_DEFS)"
for name in $(WOLFSSL_ABSENT); do
  if grep -q "define $$name *$$" wolfssl/options.h; then
    echo "wolfSSL was configured with $$name, which gateway must not have" >&2
    exit 1
  fi
done
make -j$$JOBS src/libwolfssl.la
cp src/.libs/libwolfssl.a $$OUT/lib/
cp -R wolfssl $$OUT/include/
endef

define uv_BUILD
cd src
archive "-I. -I../include -D_GNU_SOURCE" *.c $$(printf 'unix/%s.c ' \
  async core dl fs getaddrinfo getnameinfo linux loop loop-watcher pipe poll \
  process procfs-exepath proctitle random-devurandom random-getrandom \
  random-sysctl-linux signal stream tcp thread tty udp)
cp -R ../include/. $$OUT/include/
endef

# POSIX, but neither readline nor dlopen: no script loads a shared object.
define lua_BUILD
cd src
rm -f lua.c luac.c
archive -DLUA_USE_POSIX *.c
cp lua.h luaconf.h lualib.h lauxlib.h $$OUT/include/
endef

# The same, checking every use of its C interface: for debug, asan and tsan.
lua_debug_BUILD = $(subst -DLUA_USE_POSIX,"-DLUA_USE_POSIX \
  -DLUA_USE_APICHECK",$(lua_BUILD))

# The generated C travels in nghttp2's tarball; llhttp has its own version.
define llhttp_BUILD
cd third-party/llhttp
VERSION=$$(awk '/define LLHTTP_VERSION_M|define LLHTTP_VERSION_P/ {
  v = v s $$3; s = "." } END { print v }' include/llhttp.h)
at_least 9.2 $$VERSION || { echo "llhttp $$VERSION is below 9.2" >&2; exit 1; }
archive -Iinclude src/*.c
cp include/llhttp.h $$OUT/include/
endef

define yyjson_BUILD
archive -Isrc src/yyjson.c
cp src/yyjson.h $$OUT/include/
endef

# As NON-AUTOTOOLS-BUILD in the tarball has it; 8 bit, Unicode, JIT.
define pcre2_BUILD
cd src
mv config.h.generic config.h
mv pcre2.h.generic pcre2.h
mv pcre2_chartables.c.dist pcre2_chartables.c
rm -f pcre2_dftables.c pcre2_fuzzsupport.c pcre2_jit_test.c pcre2demo.c \
  pcre2grep.c pcre2posix*.c pcre2test.c pcre2_jit_match.c pcre2_jit_misc.c \
  pcre2_printint.c pcre2_ucptables.c
archive "-I. -DHAVE_CONFIG_H -DPCRE2_CODE_UNIT_WIDTH=8 -DSUPPORT_PCRE2_8 \
  -DSUPPORT_UNICODE -DSUPPORT_JIT -DPCRE2_STATIC" pcre2_*.c
cp pcre2.h $$OUT/include/
endef

define cares_BUILD
[ -x configure ] || autoreconf -fi
./configure $(HOST) --disable-shared --enable-static --disable-tests
make -j$$JOBS -C src/lib
cp src/lib/.libs/libcares.a $$OUT/lib/
cp include/*.h $$OUT/include/
endef

# Its configure asks for gperf, whose work is in the tarball, and finds out
# nothing else.
define seccomp_BUILD
cd src
rm -f arch-syscall-dump.c
: >configure.h
archive "-I. -I../include -D_GNU_SOURCE -DHAVE_LINUX_SECCOMP_H" *.c
cp ../include/seccomp.h ../include/seccomp-syscalls.h $$OUT/include/
endef

# The parser alone: neither its writer nor its trees.
define yaml_BUILD
cd src
archive "-I. -I../include -DYAML_DECLARE_STATIC -DYAML_VERSION_MAJOR=0 \
  -DYAML_VERSION_MINOR=2 -DYAML_VERSION_PATCH=5 \
  -DYAML_VERSION_STRING='\"$$VERSION\"'" api.c parser.c reader.c scanner.c
cp ../include/yaml.h $$OUT/include/
endef

# ---- end of the settings; below is how a row becomes a static library ------

CPU      := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))
HOST      = $(if $(CROSS_COMPILE),--host=$(shell $(CC) -dumpmachine))
CC_ID    := $(shell $(CC) --version | head -n 1) $(CPU)
source    = $(word 1,$($1_ROW))
minimum   = $(word 2,$($1_ROW))
licence   = $(word 3,$($1_ROW))
pc_names  = $(wordlist 4,99,$($1_ROW))
define newline


endef
quote     = '$(subst ','\'',$(subst $(newline), ,$1))'

# A folder of tarballs has locks of its own, so that it never mixes with apt's.
SOURCES  := $(CACHE)/sources$(if $(DEPS_DIR),/$(subst /,_,$(abspath $(DEPS_DIR))))
lock      = $(SOURCES)/$(call source,$1)-$(call minimum,$1).mk
key       = $(firstword $(shell printf %s $(call quote,$($1_BUILD) $(deps_shell)) \
            $(call quote,$(DEPS_FLAGS) $(CC) $(CC_ID) $($(call source,$1)_SHA256)) | sha256sum | cut -c1-12))
OWN_LIBS := $(if $(SYSTEM_DEPS),$(foreach l,$(LIBS),$(if $(call pc_names,$l),,$l)),$(LIBS))
PC_LIBS  := $(filter-out $(OWN_LIBS),$(LIBS))

# What every script below may use.
define deps_shell
set -eu
at_least() { # MINIMUM VERSION
  [ "$$(printf '%s\n' "$$1" "$$2" | sort -V | head -n 1)" = "$$1" ]
}
archive() { # FLAGS FILE...: compiles the files and puts them into $$OUT/lib
  flags=$$1; shift
  for file; do
    printf '%s %s\n' "$$(printf %s "$$file" | tr / _).o" "$$file"
  done | xargs -P "$$JOBS" -n 2 sh -c \
    '$$CC $$CFLAGS -D_FORTIFY_SOURCE=2 '"$$flags"' -c -o "$$0" "$$1"'
  $$AR rcs "$$OUT/lib/lib$$NAME.a" *.o
}
endef

# deps_fetch SOURCE MINIMUM LOCK: gets the tarball beside the lock file and writes
# into the lock what was got.
define deps_fetch
source=$$1 minimum=$$2 lock=$$3 folder=$$(dirname "$$3") tried=

keep() { # VERSION FILE: remembers it
  {
    printf '%s_VERSION := %s\n' "$$source" "$$1"
    printf '%s_TARBALL := %s\n' "$$source" "$$folder/$$(basename "$$2")"
    printf '%s_SHA256 := %s\n' "$$source" "$$(sha256sum "$$2" | cut -d' ' -f1)"
  } >"$$lock.new"
  mv "$$lock.new" "$$lock"
  exit 0
}

fail() {
  tried=$${tried:-, none listed}
  echo "gateway needs $$source $$minimum or newer, and none could be had" \
    "(tried: $${tried#, }); put its tarball into a folder and say" \
    "make DEPS_DIR=that-folder." >&2
  exit 1
}

if [ -n "$$DEPS_DIR" ]; then
  for file in "$$DEPS_DIR"/*.tar.* "$$DEPS_DIR"/*.tgz; do
    version=$$(basename "$$file" | sed -nE \
      "s/^($$source|$${source%%[0-9.]*})[-_]v?([0-9][0-9.]*[0-9]).*/\2/p")
    [ -n "$$version" ] || continue
    tried="$$tried, $$version"
    at_least "$$minimum" "$$version" || continue
    cp "$$file" "$$folder/"
    keep "$$version" "$$folder/$$(basename "$$file")"
  done
  fail
fi

command -v apt-get >/dev/null || fail
apt=$$folder/apt
mkdir -p "$$apt/lists/partial" "$$apt/cache/archives/partial" "$$apt/download"
exec 9>"$$apt/flock"
flock 9

cat >"$$apt/conf" <<END
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::Etc::SourceList "$$apt/debian.sources";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$$apt/lists";
Dir::Cache "$$apt/cache";
APT::Sandbox::User "$$(id -un)";
Acquire::Languages "none";
Acquire::http::Timeout "60";
END

if [ -z "$$(find "$$apt/fresh" -mmin -60 2>/dev/null)" ]; then
  codename=$$(. /etc/os-release; echo "$${VERSION_CODENAME:-sid}")
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources \
    /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list; do
    [ -r "$$file" ] || continue
    awk -v codename="$$codename" -v suites="$(SUITES)" -v name="$$file" "$$deps_mirror" \
      "$$file" >"$$apt/debian.sources"
    [ ! -s "$$apt/debian.sources" ] || break
  done
  if [ ! -s "$$apt/debian.sources" ]; then
    echo "no Debian archive is configured in /etc/apt" >&2
    fail
  fi
  echo "apt: reading the source indexes of $(SUITES)"
  if apt-get -c "$$apt/conf" -o APT::Update::Error-Mode=any -qq update; then
    touch "$$apt/fresh"
  fi
fi

for suite in $(SUITES); do
  for full in $$(apt-cache -c "$$apt/conf" madison "$$source" |
    awk -F' *[|] *' -v suite="$$suite" '$$3 ~ " " suite "/" { print $$2 }' |
    sort -rV); do
    version=$${full#*:}
    version=$${version%-*}
    tried="$$tried, $$suite $$version"
    at_least "$$minimum" "$$version" || continue
    rm -rf "$$apt/download/"*
    if ! (cd "$$apt/download" && apt-get -c "$$apt/conf" -qq source \
      --download-only --tar-only "$$source=$$full") >"$$apt/log" 2>&1; then
      echo "apt: $$source $$version from $$suite: listed, but not to be had: the next older one is tried"
      continue
    fi
    echo "apt: $$source $$version from $$suite"
    for file in "$$apt/download/$$source"_*.orig.tar.*; do
      case $$file in *.asc | *'*'*) continue ;; esac
      mv "$$file" "$$folder/"
      keep "$$version" "$$folder/$$(basename "$$file")"
    done
  done
done
fail
endef

# The awk that finds the first Debian archive on the network in a .list or
# .sources file and writes it again with our suites, its keyring kept.
define deps_mirror
function use(uri, key) {
  if (uri ~ /^cdrom:/) return
  print "Types: deb-src\nURIs: " uri "\nSuites: " suites "\nComponents: main"
  if (key != "") print "Signed-By:" key
  done = 1
  exit
}
function known(list,   i, n, part) {
  n = split(list, part, " ")
  for (i = 1; i <= n; i++)
    if (part[i] ~ "^(" codename "|sid|unstable|testing|stable|oldstable)$$")
      return 1
  return 0
}
function stanza() {
  if (("types" in f) && f["types"] ~ /deb/ && known(f["suites"]) &&
      f["components"] ~ /(^| )main( |$$)/ && f["enabled"] !~ /no/) {
    split(f["uris"], uri, " ")
    use(uri[1], f["signed-by"])
  }
  split("", f)
}
/^[ \t]*#/ { next }
name ~ /\.sources$$/ {
  if ($$0 ~ /^[ \t]*$$/) stanza()
  else if ($$0 ~ /^[ \t]/) f[field] = f[field] "\n" $$0
  else {
    field = tolower(substr($$0, 1, index($$0, ":") - 1))
    f[field] = substr($$0, index($$0, ":") + 1)
  }
  next
}
$$1 ~ /^deb(-src)?$$/ {
  key = ""
  if (match($$0, /\[[^]]*\]/)) {
    options = substr($$0, RSTART, RLENGTH)
    if (match(options, /signed-by=[^] ]*/))
      key = " " substr(options, RSTART + 10, RLENGTH - 10)
    sub(/\[[^]]*\]/, "")
  }
  line = $$0
  if (known($$3) && line ~ / main( |$$)/) use($$2, key)
}
END { if (!done && name ~ /\.sources$$/) stanza() }
endef

# Unpacks the tarball, runs the library's _BUILD, and puts the result in place
# at once.  The stamp is the library's line in the list of `make sbom`.
define deps_build
echo "deps: building $$NAME $$VERSION"
unset MAKEFLAGS MFLAGS MAKELEVEL
mkdir -p "$$DEPS/tmp"
work=$$(mktemp -d "$$DEPS/tmp/$$NAME.XXXXXX")
trap 'rm -rf "$$work"' EXIT
trap 'exit 1' HUP INT TERM
if ! echo "$$SHA256  $$TARBALL" | sha256sum -c --quiet -; then
  echo "$$TARBALL is not what was fetched: remove it and the .mk files beside it" >&2
  exit 1
fi
export OUT=$$work/out
mkdir -p "$$OUT/include" "$$OUT/lib" "$$work/src"
tar -xf "$$TARBALL" -C "$$work/src" --strip-components=1
if ! (cd "$$work/src" && exec sh -c "$$deps_shell
$$RECIPE
echo \$$VERSION >\$$OUT/version") >"$$work/log" 2>&1; then
  tail -n 30 "$$work/log" >&2
  mv "$$work/log" "$$DEPS/$$NAME.log"
  echo "$$NAME $$VERSION did not build; its whole log is $$DEPS/$$NAME.log" >&2
  exit 1
fi
echo "$$NAME $$(cat "$$OUT/version") $$SHA256 $$LICENCE" >"$$OUT/sbom"
rm -rf "$$PREFIX"
mv "$$OUT" "$$PREFIX"
endef

export deps_shell deps_fetch deps_mirror deps_build

define lock_rule
$(call lock,$1): $(wildcard $(if $(DEPS_DIR),$(DEPS_DIR)/*.t*))
	@mkdir -p $$(@D)
	@DEPS_DIR='$(abspath $(DEPS_DIR))' sh -c 'eval "$$$$deps_shell"; eval "$$$$deps_fetch"' deps '$(call source,$1)' '$(call minimum,$1)' '$$@'
endef

define library_rule
$1_PREFIX := $(CACHE)/$1-$($(call source,$1)_VERSION)-$(call key,$1)
$$($1_PREFIX)/sbom: export RECIPE = $$($1_BUILD)
$$($1_PREFIX)/sbom:
	@NAME='$1' VERSION='$($(call source,$1)_VERSION)' TARBALL='$($(call source,$1)_TARBALL)' SHA256='$($(call source,$1)_SHA256)' \
	LICENCE='$(call licence,$1)' PREFIX='$$(@D)' DEPS='$(CACHE)' CC='$(CC)' AR='$(AR)' CFLAGS='$(DEPS_FLAGS)' JOBS='$(JOBS)' \
	sh -c 'eval "$$$$deps_shell"; eval "$$$$deps_build"'
endef

# The locks are made first; then make starts again and knows every version.
ALL_OWN := $(OWN_LIBS) $(if $(SYSTEM_DEPS),,$(DEBUG_LIBS))
$(foreach s,$(sort $(foreach l,$(OWN_LIBS),$(call source,$l))),$(eval $(call \
    lock_rule,$(firstword $(foreach l,$(OWN_LIBS),$(if $(filter $s,$(call \
    source,$l)),$l))))))
LOCKS := $(sort $(foreach l,$(OWN_LIBS),$(call lock,$l)))
include $(LOCKS)
ifeq ($(filter-out $(wildcard $(LOCKS)),$(LOCKS)),)
$(foreach l,$(ALL_OWN),$(eval $(call library_rule,$l)))
endif

# SYSTEM_DEPS: the first name that pkg-config knows at our minimum or newer.
define system_rule
$1_PC := $(firstword $(foreach n,$(call pc_names,$1),$(shell \
    $(PKG_CONFIG) --exists '$n >= $(call minimum,$1)' && echo $n)))
$$(if $$($1_PC),,$$(error SYSTEM_DEPS: $(firstword $(call pc_names,$1)) must \
be $(call minimum,$1) or newer; pkg-config knows $(or $(firstword $(foreach \
n,$(call pc_names,$1),$(shell $(PKG_CONFIG) --modversion $n 2>/dev/null))),none)))
endef
$(foreach l,$(PC_LIBS),$(eval $(call system_rule,$l)))

# What the rules of the Makefile use; a library for debugging takes the place
# of the everyday one.
archives     = $(foreach l,$1,$($l_PREFIX)/lib/lib$l.a)
DEPS_STAMPS  = $(foreach l,$(OWN_LIBS),$($l_PREFIX)/sbom)
DEBUG_STAMPS = $(foreach l,$(ALL_OWN),$($l_PREFIX)/sbom)
PC_MODULES   = $(foreach l,$(PC_LIBS),$($l_PC))
PC_CFLAGS   := $(if $(PC_LIBS),$(patsubst -I%,-isystem %,$(shell $(PKG_CONFIG) --cflags $(PC_MODULES))))
PC_LDLIBS   := $(if $(PC_LIBS),$(shell $(PKG_CONFIG) --libs $(PC_MODULES)))
DEPS_CFLAGS  = $(foreach l,$(OWN_LIBS),-isystem $($l_PREFIX)/include) $(PC_CFLAGS)
DEPS_LIBS    = $(call archives,$(OWN_LIBS)) $(PC_LDLIBS) -lm -lpthread
DEBUG_LDLIBS = $(call archives,$(filter-out $(DEBUG_LIBS:_debug=),$(ALL_OWN))) \
    $(PC_LDLIBS) -lm -lpthread
library_list = $(foreach l,$(OWN_LIBS),$l $(shell cat $($l_PREFIX)/version)) \
    $(foreach l,$(PC_LIBS),$l $(shell $(PKG_CONFIG) --modversion $($l_PC)))
