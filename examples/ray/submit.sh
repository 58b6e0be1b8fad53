#!/usr/bin/env bash
# A run on a Ray cluster that is up. On a machine that reaches its head node:
#
#     HEAD=http://head-node:8265 PROJECT=/shared/project bash submit.sh rloo rloo.yaml
#
# GPUS: of the trainer, where they are counted apart from the actors' (0 on a cluster without any).
# PROJECT is the project folder, under the same path on every machine of the cluster, as is the environment with preftune[ray].
# The job server belongs to ray[default], which the cluster needs and preftune does not.
set -euo pipefail

exec ray job submit --address "${HEAD:?the URL of the head node, such as http://head-node:8265}" --no-wait \
  --entrypoint-num-gpus "${GPUS:-1}" -- \
  bash -c 'cd "$1" && shift && exec python -m preftune train "$@"' submit "${PROJECT:?the project folder}" "$@"
