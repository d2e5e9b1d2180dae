#!/usr/bin/env bash
# Runs one named stage of a build and appends its duration to target/stages.tsv: `stage.sh NAME COMMAND...`.
set -uo pipefail
cd "$(dirname "$0")/.."
name=$1
shift
mkdir -p target
begin=$(date +%s)
echo "==> $name"
"$@"
code=$?
printf '%s\t%s\t%s\n' "$name" "$(($(date +%s) - begin))" "$code" >>target/stages.tsv
exit $code
