#!/bin/bash
# demo.sh: what `make run` serves.  Development certificates in certs/ where
# there are none, the demo upstream, the gateway with scripts/gateway.lua in
# the foreground.  Ctrl-C, or a TERM to this process, ends both.
set -u
cd "$(dirname "$0")/.." || exit 1
gateway=build/gateway

# ---- the names and sub-commands that scripts/gateway.lua counts on ----------
port=8443
upstream_port=9080

certificates() {
  $gateway certs init certs &&
    $gateway certs server certs localhost &&
    $gateway certs client certs alice \
      --uri spiffe://example.org/ns/demo/sa/alice &&
    $gateway certs client certs mallory \
      --uri spiffe://example.org/ns/demo/sa/mallory
}

lines() {
  local curl="curl --cacert certs/ca.pem"
  local alice="$curl --cert certs/alice.pem --key certs/alice.key"
  local mallory="$curl --cert certs/mallory.pem --key certs/mallory.key"
  local url=https://localhost:$port
  cat <<END

gateway serves on $url; in another terminal, here, try

  proxied:        $alice $url/api/hello
  validated JSON: $alice -H 'Content-Type: application/json' -d '{"name":"lamp","on":true}' $url/devices
  a program:      $alice $url/uptime
  refused (403):  $mallory $url/api/hello
  no certificate: $curl $url/api/hello

END
}
# -----------------------------------------------------------------------------

if [ ! -e certs/ca.pem ]; then
  certificates || exit 1
fi

children=()
stop() {
  trap '' INT TERM
  kill -TERM "${children[@]}" 2>/dev/null
  wait
}
trap 'stop; exit 0' INT TERM
trap stop EXIT

python3 tests/upstream.py "$upstream_port" &
children+=($!)
$gateway run scripts/gateway.lua &
children+=($!)
main=$!

for _ in $(seq 100); do
  kill -0 "$main" 2>/dev/null || break
  if grep -q ":$(printf %04X "$port") .* 0A " /proc/net/tcp /proc/net/tcp6; then
    lines
    break
  fi
  sleep 0.05
done
wait "$main"
