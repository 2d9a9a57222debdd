#!/usr/bin/env bash
# A run, or a stage of it, under SLURM, one process for each GPU. OUTPUT must be a folder that all
# nodes see, with the output of earlier stages. SIGTERM saves and stops; the same command resumes.
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 \
#       launch/slurm.sh run|STAGE CONFIG OUTPUT [--KEY=VALUE ...]
#SBATCH --job-name=agentrm
#SBATCH --gpus-per-task=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
set -euo pipefail

if [ $# -lt 3 ]; then sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
cd "${SLURM_SUBMIT_DIR:-.}"

srun --kill-on-bad-exit=1 .venv/bin/agentrm "$1" "$2" --output "${@:3}" --distributed.coordinator=auto
