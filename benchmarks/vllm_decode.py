"""Decode speed of stock vLLM, of vLLM with tokenlens loaded but unused, and with every row latent.

Runs on a CPU in one process, with a random model whose step takes 20 ms or more. Before any
time is printed, the tokens are checked: unused gives what stock gives, and an unmixed soft spec
(``top1`` at temperature 0) gives what greedy gives.

Four engines live side by side and take turns, one step each: whatever else the machine does hits
all alike, and differences are taken within a turn. They read the same weights, because where those
lie in memory alone makes some per cent. ``stock again`` is a second stock engine: the noise of the
comparison.
"""

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import argparse
import csv
import gc
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ARMS = ("stock", "stock again", "unused", "latent")
VOCAB = 4096
QUANTILES = (0.2, 0.5, 0.8)


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
        kv_cache_memory_bytes=128 << 20,
        max_model_len=256,
        max_num_seqs=32,
        disable_log_stats=True,
        logits_processors=["tokenlens.vllm:TokenLens"] if tokenlens else None,
    )


def share(first, other):
    """Let an engine read the weights of another."""
    mine, theirs = (dict(model_of(llm).named_modules()) for llm in (other, first))
    for name, module in mine.items():
        for kind in ("weight", "cpu_linear"):
            if hasattr(module, kind):
                setattr(module, kind, getattr(theirs[name], kind))


def model_of(llm):
    """The model of an engine in this process."""
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    return executor.driver_worker.worker.model_runner.model


def add(llm, batch, tokens, methods):
    """Give an engine its requests."""
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
    for row in range(batch):
        prompt = {"prompt_token_ids": [1, 6, 10 + row, 11, 12]}
        llm.llm_engine.add_request(f"{row}-{time.monotonic_ns()}", prompt, params)


def turns(engines, batch, tokens, methods):
    """Seconds of each engine's steps, turn by turn, and the ids by engine."""
    for name, llm in engines.items():
        add(llm, batch, tokens, methods.get(name))
    times, ids = [], {name: {} for name in engines}
    names, shuffle = list(engines), random.Random(0).shuffle
    while any(llm.llm_engine.has_unfinished_requests() for llm in engines.values()):
        taken = {}
        for name in names:
            start = time.perf_counter()
            outputs = engines[name].llm_engine.step()
            taken[name] = time.perf_counter() - start
            done = {o.request_id: list(o.outputs[0].token_ids) for o in outputs if o.finished}
            ids[name].update(done)
        times.append(taken)
        # Nobody is always behind the same one.
        shuffle(names)
    in_order = {
        name: [found[key] for key in sorted(found, key=lambda key: int(key.split("-")[0]))]
        for name, found in ids.items()
    }
    # The first turn is the prompts', in the second every shape is new.
    return times[2:], in_order


def quantile(values, share):
    """A quantile of a list."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main():
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=34, help="tokens of a request")
    parser.add_argument("--rounds", type=int, default=3, help="requests one after the other")
    parser.add_argument("--csv", type=Path, help="where to write every step")
    options = parser.parse_args()
    soft = [{"method": "soft_thinking"}]
    same = [{"method": "soft_thinking", "temperature": 0.0}, {"method": "top1"}]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(folder, options.hidden, options.layers)
        engines = {name: engine(folder, name in ("unused", "latent")) for name in ARMS}
        for name in ARMS[1:]:
            share(engines["stock"], engines[name])
        _, ids = turns(engines, 3, 12, {"latent": same})
        assert all(found == ids["stock"] for found in ids.values()), "other tokens"
        _, ids = turns(engines, 3, 12, {"latent": soft})
        assert ids["latent"] != ids["stock"], "mixtures change nothing"
        for batch in options.batch:
            for turn in range(options.rounds):
                times, _ = turns(engines, batch, options.tokens, {"latent": soft})
                for step, taken in enumerate(times):
                    number = turn * len(times) + step
                    rows += [(batch, number, name, taken[name]) for name in ARMS]
        del engines
        gc.collect()
    report(rows, options.batch)
    if options.csv:
        with options.csv.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["batch", "turn", "engine", "seconds"])
            writer.writerows((*row[:3], f"{row[3]:.6f}") for row in rows)


def report(rows, batches, arms=ARMS):
    """One line for each batch and engine; differences are taken within a turn.

    ``rows``: batch, turn, one of the arms, seconds.
    """
    quantiles = "q20 / q50 / q80"
    print(f"| batch | engine | ms per step: {quantiles} | tokens/s | against stock: {quantiles} |")
    print("|---|---|---|---|---|")
    for batch in batches:
        found = {
            name: {turn: value for b, turn, n, value in rows if (b, n) == (batch, name)}
            for name in arms
        }
        for name in arms:
            times = [1000 * value for value in found[name].values()]
            changes = [
                100 * (found[name][turn] / found["stock"][turn] - 1) for turn in found["stock"]
            ]
            took = " / ".join(f"{quantile(times, share):.1f}" for share in QUANTILES)
            more = " / ".join(f"{quantile(changes, share):+.1f} %" for share in QUANTILES)
            speed = 1000 * batch / quantile(times, 0.5)
            print(
                f"| {batch} | {name} | {took} | {speed:.1f} | {more if name != 'stock' else ''} |"
            )


if __name__ == "__main__":
    sys.exit(main())
