"""Every row of the suite on vLLM, in one batch: ``python vllm_rows.py MODEL ROWS.json OUT.json``.

Runs in the environment of ``make test-vllm``; :mod:`suite` starts it.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def main(model, given, out):
    """Ids and traces of all rows."""
    from vllm import LLM, SamplingParams

    from tokenlens.vllm import extra_args, trace

    llm = LLM(
        model, dtype="float32", enforce_eager=True, kv_cache_memory_bytes=256 << 20,
        max_model_len=512, max_num_seqs=16, logits_processors=["tokenlens.vllm:TokenLens"],
    )  # fmt: skip
    rows = json.loads(Path(given).read_text())
    params = [
        SamplingParams(
            temperature=0.0, max_tokens=row["tokens"], detokenize=False,
            extra_args=extra_args(row["spec"]) if row["spec"] else None,
        )
        for row in rows
    ]  # fmt: skip
    asked = [{"prompt_token_ids": row["prompt"]} for row in rows]
    found = []
    for output in llm.generate(asked, params, use_tqdm=False):
        record = trace(output)
        found.append(
            {
                "ids": list(output.outputs[0].token_ids),
                "trace": None if record is None else record.model_dump_json(),
            }
        )
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
