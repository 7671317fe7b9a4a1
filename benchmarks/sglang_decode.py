"""Decode speed of stock SGLang, of SGLang with tokenlens loaded but unused, and all rows latent.

Runs on a CPU with a random model. Before any time is printed, the tokens are checked: unused
gives what stock gives, and an unmixed soft spec (``top1`` at temperature 0) gives what greedy
gives.

What is compared takes turns, so that all meet the same machine; the difference is taken within a
round. ``stock again`` is a second stock engine: the noise of the comparison, to which belongs where
an engine's weights lie in memory. On a CPU SGLang needs fakes of its kernels:
``PYTHONPATH=tests/sglang/fakes`` and ``SGLANG_USE_CPU_ENGINE=1``.
"""

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The figures of the vLLM sibling are made and printed the same way.
from vllm_decode import ARMS, checkpoint, report

CPU = {"device": "cpu", "attention_backend": "torch_native", "disable_cuda_graph": True}


def engine(path, tokenlens, more):
    """An engine, with tokenlens or stock."""
    import sglang

    import tokenlens.sglang as ours

    kwargs = {
        "model_path": str(path),
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "mem_fraction_static": 0.2,
        "max_total_tokens": 16384,
        "max_running_requests": 32,
        "skip_server_warmup": True,
        "disable_radix_cache": True,
        # An idle engine must not take the other one's processor.
        "sleep_on_idle": True,
        **more,
    }
    return ours.engine(**kwargs) if tokenlens else sglang.Engine(**kwargs)


def run(engine, batch, tokens, methods):
    """Seconds of a decode step, averaged over a run, and the ids."""
    from tokenlens.sglang import custom_params

    params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    if methods:
        phase = {"think_start": [6], "think_end": [7]}
        spec = {"methods": methods, "phase": phase, "trace": {"level": "off"}}
        params["custom_params"] = custom_params(spec)
    prompts = [[1, 6, 10 + row, 11, 12] for row in range(batch)]
    start = time.perf_counter()
    outputs = engine.generate(input_ids=prompts, sampling_params=[params] * batch)
    # The prompt is five tokens: its step is like the others.
    return (time.perf_counter() - start) / tokens, [list(one["output_ids"]) for one in outputs]


def main():
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=17, help="tokens of a round")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--engine", type=json.loads, default=CPU, help="sglang.Engine's, as JSON")
    parser.add_argument("--csv", type=Path, help="where to write every round")
    options = parser.parse_args()
    soft = [{"method": "soft_thinking"}]
    same = [{"method": "soft_thinking", "temperature": 0.0}, {"method": "top1"}]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(folder, options.hidden, options.layers)
        stock = engine(folder, False, options.engine)
        again = engine(folder, False, options.engine)
        hosting = engine(folder, True, options.engine)
        engines = {"stock": stock, "stock again": again, "unused": hosting, "latent": hosting}
        wanted = run(stock, 3, 12, None)[1]
        for name, methods in (("unused", None), ("latent", same)):
            assert run(engines[name], 3, 12, methods)[1] == wanted, f"{name}: other tokens"
        assert run(hosting, 3, 12, soft)[1] != wanted, "mixtures change nothing"
        for batch in options.batch:
            for turn in range(options.rounds + 1):
                for name in ARMS[turn % len(ARMS) :] + ARMS[: turn % len(ARMS)]:
                    methods = soft if name == "latent" else None
                    seconds, _ = run(engines[name], batch, options.tokens, methods)
                    # The first round warms caches.
                    if turn > 0:
                        rows.append((batch, turn, name, seconds))
        for one in (stock, again, hosting):
            one.shutdown()
    report(rows, options.batch)
    if options.csv:
        with options.csv.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["batch", "round", "engine", "seconds_per_step"])
            writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
