"""Run by the vLLM environment: two engines in one process, and what they write alone and routed."""

import asyncio
import json
import math
import sys

from transformers import AutoTokenizer
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from tokenlens.assets import path_of
from tokenlens.routing import Router, RouterVocabulary
from tokenlens.routing.vllm_engine import VLLMBackend

CASES = {"small": math.inf, "large": -math.inf, "probed": 1e9, "mixed": 0.4}


def engine(role):
    """Stock vLLM with a tiny reasoner."""
    return AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=path_of(f"tiny-reasoner-{role}"), enforce_eager=True, dtype="float32",
            max_model_len=1024, kv_cache_memory_bytes=48 << 20, max_num_seqs=16,
            generation_config="vllm",
        )
    )  # fmt: skip


async def main(prompts):
    """Ids of every prompt in every case."""
    words = RouterVocabulary(AutoTokenizer.from_pretrained(path_of("tiny-reasoner-small")), (2, 0))
    backends = [VLLMBackend(role, engine(role), words) for role in ("small", "large")]
    found = {}
    for name, threshold in CASES.items():
        spec = {"policy": {"policy": "glimprouter", "threshold": threshold}, "answer": "policy",
                "duplicate_guard": False}  # fmt: skip
        router = Router(*backends, spec, small_vocabulary=words, large_vocabulary=words)
        routed = await asyncio.gather(*(router.run(tuple(p), max_tokens=320) for p in prompts))
        found[name] = [[one.ids, one.trace.large_step_share] for one in routed]
    await router.close()
    print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
