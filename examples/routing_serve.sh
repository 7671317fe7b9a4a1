#!/bin/sh
# One model out of two: two vLLM servers, and the router in front of them on port 8000.
#
#     sh examples/routing_serve.sh                     # the embedded tiny reasoners
#     sh examples/routing_serve.sh SMALL LARGE [vLLM's options for both]
#
# vLLM may live in an environment of its own: VLLM_PYTHON=/path/to/its/python.
set -e
for command in python tokenlens; do
    command -v "$command" >/dev/null || { echo "no $command here: activate an environment with tokenlens (make install)" >&2; exit 1; }
done
"${VLLM_PYTHON:-python}" -c "import vllm" 2>/dev/null ||
    { echo "no vLLM in ${VLLM_PYTHON:-python}: name its environment's python in VLLM_PYTHON (make test-vllm makes .venv-vllm)" >&2; exit 1; }
asset() { python -c "from tokenlens.assets import path_of; print(path_of('tiny-reasoner-$1'))"; }
if [ $# -lt 2 ]; then
    set -- "$(asset small)" "$(asset large)" \
        --max-model-len 1024 --kv-cache-memory-bytes 50331648 --dtype float32 --enforce-eager
fi
small="$1" large="$2"
shift 2

trap 'kill $(jobs -p) 2>/dev/null' EXIT INT TERM
pids=""
port=8001
for model in "$small" "$large"; do
    "${VLLM_PYTHON:-python}" -m vllm.entrypoints.openai.api_server --model "$model" \
        --host 127.0.0.1 --port $port --generation-config vllm "$@" &
    pids="$pids $!"
    port=$((port + 1))
done
for port in 8001 8002; do
    until python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$port/health')" 2>/dev/null; do
        # A server that has ended will never answer.
        kill -0 $pids 2>/dev/null || { echo "a vLLM server ended while it started; its messages are above" >&2; exit 1; }
        sleep 1
    done
done
# The same settings as a file: --policy routing.yaml. Thresholds are nats; inf and -inf are allowed.
tokenlens route --small http://127.0.0.1:8001 --large http://127.0.0.1:8002 \
    --policy glimprouter --threshold "${THRESHOLD:-0.4}" --port 8000
