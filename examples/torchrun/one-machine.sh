#!/usr/bin/env bash
# One machine with several GPUs: a process for each. In a project folder:
#
#     bash one-machine.sh dpo dpo.yaml
#
# Without GPUs, set PROCESSES yourself; it then runs on the CPU.
set -euo pipefail

PROCESSES="${PROCESSES:-gpu}"
# Each process has its share of the cores for what the CPU does.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"

exec torchrun --standalone --nproc-per-node="$PROCESSES" --max-restarts=3 -m preftune train "$@"
