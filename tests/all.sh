#!/bin/bash
# all.sh: every test there is, after `make test` has built what they need.
# Each step ends with its own `N passed, N failed`; the sum is the last line.
# A step that dies, or that runs no test at all, counts as a failure.
set -u
cd "$(dirname "$0")/.." || exit 1
export PATH=$PATH:/usr/sbin:${XDG_CACHE_HOME:-$HOME/.cache}/gateway/nginx/usr/sbin
shopt -s nullglob
mkdir -p build/log
passed=0 failed=0 broken=()

step() { # NAME COMMAND...
  local name=$1 log=build/log/$1 line ok=0 bad=0 status start=$SECONDS
  shift
  echo "== $name: $*"
  "$@" </dev/null 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
  if [[ $line =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed ]]; then
    ok=${BASH_REMATCH[1]} bad=${BASH_REMATCH[2]}
  fi
  if ((ok + bad == 0)); then
    echo "== $name ran no test (exit $status)"
    bad=1
  elif ((status != 0 && bad == 0)); then
    echo "== $name died (exit $status)"
    bad=1
  fi
  ((bad == 0)) || broken+=("$name")
  ((passed += ok, failed += bad))
  echo "== $name: $ok passed, $bad failed, $((SECONDS - start)) s"
}

# Leaks are looked for only where the process may be traced: in the unit tests,
# and end to end in gateways that stay dumpable and have no walls. That is not
# what 5* test; a broker's cage (11, 88) lets nobody look; and 70 is too slow.
# What 84-* test is Lua, above C that 80 to 83 use in the same way.
export UBSAN_OPTIONS=print_stacktrace=1
step unit build/unit
ASAN_OPTIONS=detect_leaks=1 step unit-asan build/asan/unit
step rooms python3 tests/rooms.py
step fuzz tests/fuzz.sh 5 $(basename -a -s .inc tests/fuzz_*.inc | sed s/^fuzz_//)
step policies build/gateway test
step lua build/gateway test --library --cpu 60 tests/lua/*_test.lua
step certs python3 tests/certs.py --bin build/gateway
step differential python3 tests/differential.py
step schemas python3 tests/schemas.py
step openapi python3 tests/openapi_cases.py
step e2e python3 tests/e2e/run.py --bin build/gateway
ASAN_OPTIONS=detect_leaks=0 step e2e-asan python3 tests/e2e/run.py --bin build/asan/gateway --only '^(5|11|70|88)'
GATEWAY_DUMPABLE=1 ASAN_OPTIONS=detect_leaks=1 \
  step e2e-leaks python3 tests/e2e/run.py --bin build/asan/gateway --only '^(?!5|11|70|84|88)'

((failed == 0)) || echo "failed: ${broken[*]}"
echo "$passed passed, $failed failed"
((failed == 0))
