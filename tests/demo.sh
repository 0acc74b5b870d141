#!/bin/bash
# demo.sh: what `make run` serves. Development certificates in certs/ where
# there are none, the demo upstream, and the gateway with scripts/gateway.lua.
# Ctrl-C, or a TERM to this process, drains the gateway and ends both; a second
# one stops it at once.
set -u
cd "$(dirname "$0")/.." || exit 1

gateway=build/gateway
port=8443           # these three are written in scripts/gateway.lua
upstream_port=8080
admin_port=9443
url=https://localhost:$port

say() {
  echo "make run: $*" >&2
}

# Leaves are valid for 90 days: after 80, or where one is missing, all are made
# again. The CA stays, so clients that trust it go on.
certificates() {
  local f old=
  for f in ca server alice bob; do
    [ -e "certs/$f.crt" ] && [ -e "certs/$f.key" ] || old=yes
  done
  for f in server alice bob; do
    [ -z "$(find "certs/$f.crt" -mtime +80 2>/dev/null)" ] || old=yes
  done
  [ -n "$old" ] || return 0

  [ -e certs/ca.crt ] || $gateway certs init certs || return 1
  $gateway certs server certs server --force \
    --dns localhost --ip 127.0.0.1 --ip ::1 &&
    $gateway certs client certs alice --force --ou ops \
      --uri spiffe://example.org/ns/demo/sa/alice &&
    $gateway certs client certs bob --force \
      --uri spiffe://example.org/ns/demo/sa/bob
}

listening() { # PORT
  grep -q ":$(printf %04X "$1") [0-9A-F:]* 0A " /proc/net/tcp /proc/net/tcp6 \
    2>/dev/null
}

# Said before anything starts: a demo whose upstream is a stranger is worse
# than none.
ports_free() {
  local p taken=
  for p in $port $upstream_port $admin_port; do
    listening "$p" && taken="$taken $p"
  done
  [ -n "$taken" ] || return 0
  say "another program listens on port$taken"
  say "stop it (\`ss -ltnp\` names it), or change the port in" \
    "scripts/gateway.lua and tests/demo.sh"
  return 1
}

lines() {
  local curl="curl --cacert certs/ca.crt"
  local alice="$curl --cert certs/alice.crt --key certs/alice.key"
  local bob="$curl --cert certs/bob.crt --key certs/bob.key"
  local json="-H 'Content-Type: application/json'"
  cat <<END

gateway serves on $url; in another terminal, in this folder, try

who am I:
  $alice $url/whoami
  $bob $url/whoami
a proxied file:
  $alice $url/files/hello
checked JSON:
  $alice $json -d '{"room":"bath","celsius":22.5}' $url/v1/setpoint
a program (tail):
  $alice '$url/v1/logs/boiler.log?lines=3'

and what is refused:

refused, 403, bob may not read files:
  $bob $url/files/hello
refused, 403, too hot for alice:
  $alice $json -d '{"room":"bath","celsius":28}' $url/v1/setpoint
refused, 422, there is no such room:
  $alice $json -d '{"room":"cellar","celsius":20}' $url/v1/setpoint
refused, 400, a way out of the folder:
  $alice --path-as-is $url/files/../../etc/passwd
no certificate, no handshake:
  $curl $url/whoami

metrics, and health:
  curl http://127.0.0.1:$admin_port/metrics
  curl http://127.0.0.1:$admin_port/healthz

Ctrl-C stops it.

END
}

certificates || exit 1
ports_free || exit 1

# Sessions of their own, so that Ctrl-C comes to this script only, which hands
# it on once.
setsid python3 tests/upstream.py --quiet --port "$upstream_port" &
upstream=$!
setsid $gateway run scripts/gateway.lua &
main=$!
trap 'kill -TERM "$main" 2>/dev/null' INT TERM HUP
trap 'kill -TERM "$main" "$upstream" 2>/dev/null' EXIT

for _ in $(seq 200); do
  kill -0 "$main" 2>/dev/null || break
  if ! kill -0 "$upstream" 2>/dev/null; then
    say "tests/upstream.py did not start"
    exit 1
  fi
  if listening "$upstream_port" &&
    curl -sf -o /dev/null "http://127.0.0.1:$admin_port/healthz"; then
    lines
    break
  fi
  sleep 0.05
done

status=130
while ((status > 128)); do  # a trap ends `wait` early
  wait "$main"
  status=$?
done
exit "$status"
