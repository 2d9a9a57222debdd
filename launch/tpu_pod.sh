#!/usr/bin/env bash
# All hosts of a slice of Cloud TPUs, which compute together and end together. They need one folder
# that all see (Filestore) and, in ~/agentrm_jax, this repository installed in .venv with the extra
# [tpu]. The same command resumes after a preemption.
#   agentrm launch tpu-pod configs/paper/llama3_8b_reward.yaml --stage train-rm --output /shared/runs/llama3_8b --policy=/shared/models/llama3_8b --name agentrm --zone us-central1-a --dry-run
set -euo pipefail

gcloud compute tpus tpu-vm ssh agentrm --zone=us-central1-a --worker=all \
  --command='cd ~/agentrm_jax && PATH=$PWD/.venv/bin:$PATH && exec agentrm train-rm configs/paper/llama3_8b_reward.yaml --output /shared/runs/llama3_8b --policy=/shared/models/llama3_8b --distributed.coordinator=auto'
