#!/usr/bin/env bash
# Several machines, without a scheduler. Start it on each of them, with the same words, in the same project folder, which all of them
# see under the same path (NFS, Lustre, FSx and the like):
#
#     MACHINES=2 FIRST=node-a bash several-machines.sh dpo dpo.yaml
#
# MACHINES: how many there are. FIRST: the name or address of one of them, where the others meet; its port 29400 is open to them.
set -euo pipefail

: "${MACHINES:?how many machines there are}"
: "${FIRST:?name or address of the machine where all meet}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"

exec torchrun \
  --nnodes="$MACHINES" --nproc-per-node="${PROCESSES:-gpu}" \
  --rdzv-backend=c10d --rdzv-endpoint="$FIRST:29400" --rdzv-id="${RUN:-preftune}" \
  --max-restarts=3 \
  -m preftune train "$@"
