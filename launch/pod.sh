#!/usr/bin/env bash
# A run, or a stage of it, on all workers of a TPU pod slice. OUTPUT must be a folder that all
# workers see (Filestore, a mounted bucket), with the output of earlier stages. Each worker has this
# repository in ~/agentrm_jax, installed in .venv with the extra [tpu].
# After a preemption, the same command resumes.
#
#   TPU=NAME ZONE=ZONE launch/pod.sh run|STAGE CONFIG OUTPUT [--KEY=VALUE ...]
set -euo pipefail

if [ $# -lt 3 ]; then sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
printf -v stage ' %q' "$1" "$2" --output "${@:3}" --distributed.coordinator=auto

gcloud compute tpus tpu-vm ssh "${TPU:?the name of the TPU}" --zone "${ZONE:?its zone}" --worker=all \
  --command "cd ~/agentrm_jax && .venv/bin/agentrm$stage"
