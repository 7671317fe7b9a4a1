"""Milliseconds per decode step of stock ``generate()`` and of soft ``generate()``, side by side.

One random Qwen3 model, large enough that a step takes 20 ms or more. Every way is a ``generate()``
call of its own, in a thread of its own, over the same weights; the calls take turns, one step each,
in random order. So whatever else the machine does hits all alike, and the overhead is taken within
a turn. ``stock again`` is a second stock call: the noise of the comparison. Before a time is
printed, the soft run with ``top_k=1`` must give the tokens of the stock run.

    python benchmarks/hf_decode.py [--hidden 1024] [--layers 28] [--vocab 32000] [--rounds 3]

With ``--steer`` the ways are those of a steering vector behind the middle layer: a file that is
allowed and that nobody names, a shift of 0, and one that shifts.
"""

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import argparse
import copy
import csv
import random
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from rich.progress import Progress
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3Config, StoppingCriteria, StoppingCriteriaList

# The figures of the vLLM sibling are printed the same way.
from vllm_decode import report

from tokenlens.hf import generate_kwargs
from tokenlens.methods import files
from tokenlens.spec import DecodingSpec, East, GumbelNoise, PhaseConfig, SoftThinking

PROMPT_TOKENS = 16


class Turns(StoppingCriteria):
    """Stops a ``generate()`` call behind each step until it is its turn, and times its turns."""

    def __init__(self, clock=time.perf_counter):
        self.seconds, self._clock = [], clock
        self._mine, self._over = threading.Semaphore(0), threading.Semaphore(0)
        self._ended = False

    def take(self):
        """Let the call make one step; returns when it is made, or if the call has ended."""
        if self._ended:
            return
        self._mine.release()
        self._over.acquire()

    def follow(self, generate):
        """Run the call in this thread, turn by turn."""
        self._wait()
        try:
            return generate(self)
        finally:
            self._ended = True
            self._over.release()

    def __call__(self, input_ids, scores, **kwargs):
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.seconds.append(self._clock() - self._start)
        self._over.release()
        self._wait()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def _wait(self):
        self._mine.acquire()
        self._start = self._clock()


def build(arguments):
    """A random model whose every step is the same work."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=arguments.vocab,
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        num_key_value_heads=arguments.hidden // 128,
        head_dim=64,
        eos_token_id=None,
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def another(model):
    """A model of its own that reads the same weights."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def spec(**settings):
    """Latent from the first token to the last: the end marker is a token that is never sampled."""
    noise = (GumbelNoise(),) if settings.pop("noise", False) else ()
    method = SoftThinking(quirks={"start": "first_token"}, **settings)
    # The end marker is a token that a random model does not come to by chance.
    return DecodingSpec(
        methods=(method, *noise), phase=PhaseConfig(think_start=(1,), think_end=(2,))
    )


def steering(hidden, layers):
    """Ways of a steering vector, by name; its file is allowed."""
    vector = {"vector": torch.randn(hidden) / hidden**0.5}
    with tempfile.TemporaryDirectory() as folder:
        save_file(vector, Path(folder) / "v", {"layer": str(layers // 2)})
        files.allow({"east": Path(folder) / "v"})
    phase = PhaseConfig(think_start=(1,), think_end=(2,))

    def east(beta):
        return DecodingSpec(methods=(East(beta=beta, where="all"),), phase=phase)

    return {
        "allowed, unused": DecodingSpec(methods=(), phase=phase),
        "east, beta 0": east(0.0),
        "east": east(1e-4),
    }


def run(model, ids, steps, what, criterion=None):
    """The tokens of one call."""
    criteria = [] if criterion is None else [criterion]
    kwargs = {"stopping_criteria": StoppingCriteriaList(criteria)}
    if what is not None:
        kwargs = generate_kwargs(model, None, what, stopping_criteria=criteria)
    return model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=steps,
        min_new_tokens=steps,
        **kwargs,
    )


def by_turns(ways, ids, steps, advance, clock=time.perf_counter):
    """Seconds of each way's steps, turn by turn."""
    turns = {way: Turns(clock) for way in ways}
    order = list(ways)
    with ThreadPoolExecutor(len(ways)) as pool:
        calls = [
            pool.submit(
                turns[way].follow, lambda mine, ask=(model, ids, steps, what): run(*ask, mine)
            )
            for way, (model, what) in ways.items()
        ]
        # One turn more than there are steps: the call returns.
        for _ in range(steps + 1):
            for way in order:
                turns[way].take()
            # Nobody is always behind the same one.
            random.shuffle(order)
            advance()
        for call in calls:
            call.result()
    # The first step is the prompt's; in the second, memory is fresh.
    measured = [turns[way].seconds[2:] for way in ways]
    return [dict(zip(ways, taken, strict=True)) for taken in zip(*measured, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=34)
    parser.add_argument("--rounds", type=int, default=3, help="calls one after the other")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steer", action="store_true", help="a steering vector's ways")
    parser.add_argument(
        "--own-time", action="store_true", help="each thread's own, on a machine that others use"
    )
    parser.add_argument("--csv", type=Path, help="write every step here too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.thread_time if arguments.own_time else time.perf_counter
    model = build(arguments).to(arguments.device)
    specs = {
        "stock": None,
        "stock again": None,
        "soft": spec(),
        "soft + Gumbel": spec(noise=True),
        # Needs the entropy of the whole vocabulary; the threshold is never reached.
        "soft + Cold Stop": spec(cold_stop={"entropy_threshold": 1e-9}),
    }
    if arguments.steer:
        specs = {"stock": None, "stock again": None}
        specs |= steering(arguments.hidden, arguments.layers)
    ways = {way: (another(model), what) for way, what in specs.items()}
    rows = []
    with Progress(transient=True) as progress:
        for batch in arguments.batches:
            ids = torch.randint(3, arguments.vocab, (batch, PROMPT_TOKENS)).to(arguments.device)
            top1 = run(model, ids, 8, spec(top_k=1))
            assert torch.equal(run(model, ids, 8, None), top1), "top_k=1 must give stock's tokens"
            task = progress.add_task(
                f"batch {batch}", total=arguments.rounds * (arguments.steps + 1)
            )
            taken = []
            for _ in range(arguments.rounds):
                step = partial(progress.advance, task)
                taken += by_turns(ways, ids, arguments.steps, step, clock)
            for turn, steps in enumerate(taken):
                rows += [(batch, turn, way, steps[way]) for way in ways]
    report(rows, arguments.batches, ways)
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["batch", "turn", "way", "seconds"])
            writer.writerows((*row[:3], f"{row[3]:.6f}") for row in rows)


if __name__ == "__main__":
    main()
