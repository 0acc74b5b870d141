#!/bin/sh
# setup.sh [nginx] COMMAND-OR-FILE:PACKAGE...
# Installs the Debian packages whose command or file is not there, having said
# which.  Nothing missing: says nothing, does nothing, needs no root.
set -eu

nginx=
missing=
for need; do
  have=${need%:*}
  case $have in
    nginx) nginx=yes; continue ;;
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

# The tests want nginx's binary as an upstream, not nginx as a service: where
# there is none it is unpacked into the cache.  Nothing is installed, started
# or configured, so an nginx this machine may get later finds it untouched.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/gateway
if [ -n "$nginx" ] && [ ! -x /usr/sbin/nginx ] &&
  [ ! -x "$cache/nginx/usr/sbin/nginx" ] && ! command -v nginx >/dev/null; then
  echo "gateway: nginx, for the tests, will be unpacked into $cache/nginx"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  chmod 755 "$work"
  cd "$work"
  apt-get -qq download nginx 2>log || {
    $root apt-get -qq update
    apt-get -qq download nginx 2>log || { cat log >&2; exit 1; }
  }
  dpkg-deb -x nginx_*.deb unpacked
  mkdir -p "$cache"
  rm -rf "$cache/nginx"
  cp -R unpacked "$cache/nginx"
fi
