#!/usr/bin/env bash
# An array of 16 jobs that share tasks by leases. Each has an allocation of its own, which ends
# when its process dies, and is queued again; the others continue.
# SIGTERM, 120 seconds before the time limit as well, saves, and the job is queued again.
#   agentrm launch slurm configs/paper/llama3_8b_h200.yaml --stage explore --output /shared/runs/llama3_8b --policy=/shared/models/llama3_8b --hosts 16 --gpus 1 --time 24:00:00 --dry-run
#SBATCH --job-name=agentrm
#SBATCH --array=0-15
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

# The tasks get SIGTERM; srun itself would end them at once.
stopped= worker=
trap 'stopped=1; if [ -n "$worker" ]; then scancel --signal=TERM "$SLURM_JOB_ID"; fi' TERM
srun --kill-on-bad-exit=1 agentrm explore configs/paper/llama3_8b_h200.yaml --output /shared/runs/llama3_8b --policy=/shared/models/llama3_8b --leases.enabled=true &
worker=$!
if [ -n "$stopped" ]; then scancel --signal=TERM "$SLURM_JOB_ID"; fi
wait "$worker"; status=$?
while [ -n "$stopped" ] && kill -0 "$worker" 2>/dev/null; do wait "$worker"; status=$?; done

# Status 0: finished. 2: the input is wrong, and would be again. A job that is being cancelled ends.
if [ -z "$stopped" ] && { [ "$status" = 0 ] || [ "$status" = 2 ]; }; then exit "$status"; fi
if [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ] && scontrol show job "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING'; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
