#!/bin/bash
# fuzz.sh SECONDS TARGET...: each target for so long, two at a time.  What is
# found is kept in build/fuzz/corpus/, what crashes in build/fuzz/TARGET-*.
# The last line is `N passed, N failed`: a target that ran and found nothing.
cd "$(dirname "$0")/.." || exit 1
seconds=$1
shift

one() {
  local name=$1 dict=() log=build/fuzz/$1.log
  [ -f "tests/$name.dict" ] && dict=(-dict="tests/$name.dict")
  mkdir -p "build/fuzz/corpus/$name"
  if FUZZ=$name build/fuzz/all -max_total_time="$seconds" "${dict[@]}" \
    -artifact_prefix="build/fuzz/$name-" -rss_limit_mb=4096 \
    "build/fuzz/corpus/$name" "tests/corpus/$name" >"$log" 2>&1 &&
    grep -q '^Done [1-9]' "$log"; then
    echo "ok   fuzz $name: $(grep '^Done' "$log"), $(grep -o 'cov: [0-9]*' "$log" | tail -n 1)"
  else
    echo "FAIL fuzz $name"
    tail -n 40 "$log"
  fi
}
export -f one
export seconds

printf '%s\n' "$@" | xargs -P 2 -I NAME bash -c 'one NAME' | tee build/fuzz/results
ok=$(grep -c '^ok ' build/fuzz/results)
bad=$(($# - ok))
echo "$ok passed, $bad failed"
((bad == 0))
