"""Decode speed of stock vLLM, of vLLM with tokenlens loaded but unused, and with every row latent.

Runs on a processor in one process, with a random model whose step takes 20 ms or more. Before any
time is printed, the tokens are checked: unused gives what stock gives, and an unmixed soft spec
(``top1`` at temperature 0) gives what greedy gives.

What is compared changes from round to round, so that all meet the same machine; the difference is
taken within a round. ``stock again`` is a second stock engine: the noise of the comparison.
"""

import argparse
import csv
import gc
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ARMS = ("stock", "stock again", "unused", "latent")
VOCAB = 4096


def checkpoint(folder, hidden, layers):
    """A random Qwen3 without a tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        head_dim=64,
        max_position_embeddings=2048,
        eos_token_id=5,
        tie_word_embeddings=False,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)


def engine(path, tokenlens):
    """An engine, with our class named or not."""
    from vllm import LLM

    return LLM(
        str(path),
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        kv_cache_memory_bytes=256 << 20,
        max_model_len=512,
        max_num_seqs=32,
        disable_log_stats=True,
        logits_processors=["tokenlens.vllm:TokenLens"] if tokenlens else None,
    )


def run(llm, batch, tokens, methods):
    """Seconds of each decode step, and the ids."""
    from vllm import SamplingParams

    from tokenlens.vllm import extra_args

    spec = {"methods": methods or [], "phase": {"think_start": [6], "think_end": [7]}}
    params = SamplingParams(
        temperature=0,
        max_tokens=tokens,
        ignore_eos=True,
        detokenize=False,
        extra_args=extra_args(spec) if methods else None,
    )
    step = llm.llm_engine
    for row in range(batch):
        prompt = {"prompt_token_ids": [1, 6, 10 + row, 11, 12]}
        step.add_request(f"{batch}-{row}-{time.monotonic_ns()}", prompt, params)
    times, ids = [], {}
    while step.has_unfinished_requests():
        start = time.perf_counter()
        outputs = step.step()
        times.append(time.perf_counter() - start)
        ids.update({o.request_id: list(o.outputs[0].token_ids) for o in outputs if o.finished})
    # The first step is the prompt's.
    return times[1:], [ids[name] for name in sorted(ids, key=lambda n: int(n.split("-")[1]))]


def quantile(values, share):
    """A quantile of a list."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main():
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=17, help="tokens of a round")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--csv", type=Path, help="where to write every round")
    options = parser.parse_args()
    soft = [{"method": "soft_thinking"}]
    same = [{"method": "soft_thinking", "temperature": 0.0}, {"method": "top1"}]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(folder, options.hidden, options.layers)
        # Both engines live side by side: what they share, they share in every round.
        engines = {"stock": engine(folder, False), "stock again": engine(folder, False)}
        engines["unused"] = engines["latent"] = engine(folder, True)
        wanted = run(engines["stock"], 3, 12, None)[1]
        for name, methods in (("unused", None), ("latent", same)):
            assert run(engines[name], 3, 12, methods)[1] == wanted, f"{name}: other tokens"
        assert run(engines["latent"], 3, 12, soft)[1] != wanted, "mixtures change nothing"
        for batch in options.batch:
            for turn in range(options.rounds + 1):
                for name in ARMS[turn % len(ARMS) :] + ARMS[: turn % len(ARMS)]:
                    methods = soft if name == "latent" else None
                    times, _ = run(engines[name], batch, options.tokens, methods)
                    # The first round warms caches.
                    if turn > 0:
                        rows.append((batch, turn, name, statistics.median(times)))
        del engines
        gc.collect()
    report(rows, options.batch)
    if options.csv:
        with options.csv.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["batch", "round", "engine", "median_step_seconds"])
            writer.writerows(rows)


def report(rows, batches):
    """One line for each batch and engine."""
    header = ("batch", "engine", "ms/step", "tokens/s", "vs stock: q25", "median", "q75")
    print("{:>5}  {:<12}{:>9}{:>10}{:>15}{:>8}{:>8}".format(*header))
    for batch in batches:
        found = {
            name: {turn: value for b, turn, n, value in rows if (b, n) == (batch, name)}
            for name in ARMS
        }
        for name in ARMS:
            median = statistics.median(found[name].values())
            changes = [
                100 * (found[name][turn] / found["stock"][turn] - 1) for turn in found["stock"]
            ]
            shares = [f"{quantile(changes, share):+.1f}%" for share in (0.25, 0.5, 0.75)]
            print(
                f"{batch:>5}  {name:<12}{1000 * median:>9.2f}{batch / median:>10.1f}"
                f"{shares[0]:>15}{shares[1]:>8}{shares[2]:>8}"
            )


if __name__ == "__main__":
    sys.exit(main())
