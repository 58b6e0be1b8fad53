#!/usr/bin/env bash
# A rollout server, in an environment of its own (pip install vllm==0.33.0 there, never beside preftune):
#
#     bash start-server.sh models/base 8000
#
# Start one on each GPU that is to draw samples, name their URLs in rloo.yaml, and then, in preftune's environment:
#
#     preftune train rloo rloo.yaml
#
# The developer mode lets whoever reaches the port change the weights: HOST has to be an address that only your machines see.
set -euo pipefail

MODEL="${1:?the folder that the run starts from}"
PORT="${2:-8000}"

export VLLM_SERVER_DEV_MODE=1
exec vllm serve "$MODEL" --host "${HOST:-127.0.0.1}" --port "$PORT" \
  --dtype bfloat16 --logprobs-mode processed_logprobs --enable-prefix-caching
