#!/usr/bin/env sh
# A stock SGLang server that carries out specs; arguments after the model are SGLang's own.
#
#   sh examples/sglang_serve.sh Qwen/Qwen3-0.6B --tp-size 2
model="${1:-Qwen/Qwen3-0.6B}"
[ $# -gt 0 ] && shift
python -c "import sglang, tokenlens" || { echo "activate an environment with sglang and tokenlens first (make test-sglang makes .venv-sglang)" >&2; exit 1; }
exec python -m sglang.launch_server --model-path "$model" --host 127.0.0.1 --port 30000 \
    --enable-tokenlens --tokenlens-max-entries 32 "$@"
