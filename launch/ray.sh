#!/usr/bin/env bash
# The worker command in 2 Ray actors, which share tasks by leases. Ray chooses
# where they run and starts those that die again; it holds no state of the run.
# On a cluster: `ray job submit -- bash FILE`, or set RAY_ADDRESS; without either, Ray starts here.
#   agentrm launch ray configs/quickstart.yaml --output runs/quickstart --hosts 2 --dry-run
set -euo pipefail

exec python3 -m agentrm_jax.launch.workers --place=ray --count=2 --gpus=0 \
  --restarts=10 -- \
  agentrm run configs/quickstart.yaml --output runs/quickstart --leases.enabled=true
