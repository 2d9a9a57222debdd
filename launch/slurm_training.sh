#!/usr/bin/env bash
# 8 processes that compute together. If one dies, the allocation ends, and all are queued again.
# SIGTERM, 120 seconds before the time limit as well, saves, and the job is queued again.
#   agentrm launch slurm configs/paper/llama3_8b_reward.yaml --stage train-rm --output /shared/runs/llama3_8b --policy=/shared/models/llama3_8b --hosts 8 --gpus 1 --time 24:00:00 --train_rm.fit.attention=cudnn --dry-run
#SBATCH --job-name=agentrm
#SBATCH --ntasks=8
#SBATCH --gpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
export JAX_LOCAL_DEVICE_IDS=0 # each task sees its own GPUs alone

# The tasks get SIGTERM; srun itself would end them at once.
stopped= worker=
trap 'stopped=1; if [ -n "$worker" ]; then scancel --signal=TERM "$SLURM_JOB_ID"; fi' TERM
srun --kill-on-bad-exit=1 agentrm train-rm configs/paper/llama3_8b_reward.yaml --output /shared/runs/llama3_8b --policy=/shared/models/llama3_8b --train_rm.fit.attention=cudnn --distributed.coordinator=auto &
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
