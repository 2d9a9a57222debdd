#!/usr/bin/env bash
# The quickstart, stage by stage, on this machine. Each stage reads the output of the stages before
# it. A stage whose output exists is skipped; one that was interrupted resumes.
#
#   launch/local.sh [CONFIG] [OUTPUT]
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
config=${1:-$here/configs/quickstart.yaml}
output=${2:-$here/runs/quickstart}
if [ -x "$here/.venv/bin/agentrm" ]; then PATH="$here/.venv/bin:$PATH"; fi

agentrm experts  "$config" --output "$output"   # expert trajectories
agentrm sft      "$config" --output "$output"   # tokenizer and policy
agentrm explore  "$config" --output "$output"   # search trees
agentrm label    "$config" --output "$output"   # (state, value) labels from the trees
agentrm train-rm "$config" --output "$output"   # reward model
agentrm evaluate "$config" --output "$output"   # greedy, best-of-n, beam, baselines
agentrm report   "$config" --output "$output"   # report.html, report.json, results.json
