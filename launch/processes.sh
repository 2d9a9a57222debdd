#!/usr/bin/env bash
# 2 processes on this machine, which share tasks by leases.
# A process that dies is started again. SIGTERM stops all; the same command resumes.
#   agentrm launch processes configs/quickstart.yaml --output runs/quickstart --hosts 2 --dry-run
set -euo pipefail

exec python3 -m agentrm_jax.launch.workers --place=processes --count=2 --gpus=0 \
  --restarts=10 -- \
  agentrm run configs/quickstart.yaml --output runs/quickstart --leases.enabled=true
