#!/bin/sh
# setup.sh [nginx] [suite] [sarif] COMMAND-OR-FILE:PACKAGE...
# Installs the Debian packages whose command or file is not there, having said
# which.  Nothing missing: says nothing, does nothing, needs no root.
set -eu

nginx=
suite=
sarif=
missing=
for need; do
  have=${need%:*}
  case $have in
    nginx) nginx=yes; continue ;;
    suite) suite=yes; continue ;;
    sarif) sarif=yes; continue ;;
    /*) [ -e "$have" ] && continue ;;
    *) command -v "$have" >/dev/null && continue ;;
  esac
  missing="$missing ${need#*:}"
done

root=
[ "$(id -u)" = 0 ] || root=sudo

if [ -n "$missing" ]; then
  if ! command -v apt-get >/dev/null; then
    echo "gateway: missing here, by their Debian names:$missing" >&2
    exit 1
  fi
  echo "gateway: these packages are missing and will be installed with" \
    "${root:+$root }apt-get:$missing"
  $root apt-get -qq update
  # shellcheck disable=SC2086
  $root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
    --no-install-recommends $missing >/dev/null
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/gateway

# unpack PACKAGE NAME: the files of a package to NAME in the cache.  Nothing is
# installed, started or configured.
unpack() (
  echo "gateway: $1, for the tests, will be unpacked into $cache/$2"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  chmod 755 "$work"
  cd "$work" || exit
  apt-get -qq download "$1" 2>log || {
    $root apt-get -qq update
    apt-get -qq download "$1" 2>log || { cat log >&2; exit 1; }
  }
  dpkg-deb -x "$1"_*.deb unpacked || exit
  mkdir -p "$cache"
  rm -rf "${cache:?}/$2"
  cp -R unpacked "$cache/$2"
)

# nginx's binary is wanted as an upstream, not nginx as a service: one that this
# machine may get later finds it untouched.
if [ -n "$nginx" ] && [ ! -x /usr/sbin/nginx ] &&
  [ ! -x "$cache/nginx/usr/sbin/nginx" ] && ! command -v nginx >/dev/null; then
  unpack nginx nginx
fi

# The official suite of JSON Schema travels in a package of Perl's.  Without it
# tests/schemas.py says so, and has cases of its own.
if [ -n "$suite" ] && [ ! -d "$cache/suite" ]; then
  unpack libtest-json-schema-acceptance-perl suite || true
fi

# The schema of SARIF 2.1.0, as OASIS has published it, travels in a package of
# npm's. Without it tests/e2e/84-audit.py says so, and checks names alone.
sarif_schema() (
  echo "gateway: the schema of SARIF, for the tests, will be put into $cache"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cd "$work" || exit
  npm pack --silent @microsoft/jest-sarif@1.0.0-beta.0 >log 2>&1 || {
    cat log >&2
    exit 1
  }
  tar -xzf ./*.tgz package/lib/schemas/sarif-2.1.0-rtm.5.json || exit
  echo "2d99159ae54a3eea97f81781cff48780548657c35949f4b7f25e99a2ba4de4f8" \
    " package/lib/schemas/sarif-2.1.0-rtm.5.json" | sha256sum -c --quiet || exit
  mkdir -p "$cache"
  cp package/lib/schemas/sarif-2.1.0-rtm.5.json "$cache/sarif-2.1.0.json"
)
if [ -n "$sarif" ] && [ ! -e "$cache/sarif-2.1.0.json" ] &&
  command -v npm >/dev/null; then
  sarif_schema || true
fi
