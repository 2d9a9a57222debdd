#!/usr/bin/env bash
# One process on this machine. The same command resumes after an interruption.
#   agentrm launch local configs/quickstart.yaml --output runs/quickstart --dry-run
set -euo pipefail

exec agentrm run configs/quickstart.yaml --output runs/quickstart
