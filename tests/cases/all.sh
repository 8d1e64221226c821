#!/bin/bash
# Runs all cases one after another: prints ok or FAULT for each, then the number of failures.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
failed=0
for folder in tests/cases/*/; do
  name=$(basename "$folder")
  [ -f "$folder/run.sh" ] || continue
  if bash "$folder/run.sh" > "${TMPDIR:-/tmp}/case-$name.log" 2>&1; then echo "ok     $name"; else echo "FAULT  $name"; failed=$((failed + 1)); fi
done
echo "$failed failed"
exit $((failed > 0))
