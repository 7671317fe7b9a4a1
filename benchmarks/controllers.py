"""Controllers on the tiny reasoner: accuracy against all tokens spent, and throughput on a server.

``python benchmarks/controllers.py table`` runs held-out Countdown problems under each method at
three settings, beside greedy, sampling and self-consistency, with Hugging Face in this process.
Tokens are all that the model wrote, thrown away ones included. Every row is written as it is
measured; rows that the CSV holds already are not measured again. ``page`` writes them into
``docs/controllers.md``, with a plot.

``python benchmarks/controllers.py throughput --server http://127.0.0.1:8001`` has a running vLLM
server write 32 requests under DEER, LATR and CNTP, all at once and one after the other, as the
authors' scripts do.
"""

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import argparse
import asyncio
import csv
import re
import time
from math import sqrt
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenlens.assets import path_of
from tokenlens.controllers import Controller
from tokenlens.evaluation.countdown import check_answer, problems, prompt
from tokenlens.routing import RouterVocabulary, Sampling
from tokenlens.routing.hf import HFBackend
from tokenlens.routing.http import HTTPBackend, HTTPSettings

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "controllers.md"
PLOT = PAGE.parent / "images" / "controllers.svg"
ALT = "accuracy over all tokens, by method"
BEGIN, END = "<!-- controllers: begin -->", "<!-- controllers: end -->"
MAX_TOKENS = 320
AT_ONCE = 64
"""Requests, and rows of a batch."""
THINKING = 280
WARM = Sampling(temperature=0.8, top_p=0.95)
GREEDY = Sampling()
PROBE = {"probe_text": "\n</think>\n\n"}
"""The tiny vocabulary cannot write the papers' probes."""
DEER = {"policy": "deer", "words": ["wait"], "probe_stops": ["zzz"], **PROBE}
DYNASOR = {"policy": "dynasor", "answers": "text", **PROBE}
LATR = {"policy": "latr", "checks": [8, 16], "absolute": 0.15, "relative": 0.5, "force": 96}
MEASURED = {
    "deer": {**DEER, "threshold": 0.99},
    "latr": {**LATR, "n": 4},
    "cntp": {"policy": "cntp", "most": 3, "cap": 16},
}
"""Methods of the throughput."""
FIELDS = (
    "method", "setting", "problems", "accuracy", "low", "high", "kept", "thrown_away", "tokens",
    "probes", "forks",
)  # fmt: skip


def arms():
    """Method, setting, its config and its sampling."""
    one = {"policy": "self_consistency", "n": 1}
    yield "greedy", "", one, GREEDY
    yield "sampling", "temperature 0.8", one, WARM
    for n in (2, 4, 8):
        yield "self_consistency", f"n {n}", {"policy": "self_consistency", "n": n}, WARM
    for n in (2, 4, 8):
        yield "best_of_n", f"n {n}", {"policy": "best_of_n", "n": n}, WARM
    for threshold in (0.8, 0.95, 0.99):
        yield "deer", f"threshold {threshold}", {**DEER, "threshold": threshold}, GREEDY
    for window in (2, 3, 5):
        setting = {**DYNASOR, "window": window, "chunk": 16}
        yield "dynasor", f"window {window}, chunk 16", setting, GREEDY
    for epsilon in (0.02, 0.05, 0.1):
        policy = {"policy": "conditional_entropy", "epsilon": epsilon, "probe_stops": ["zzz"]}
        yield "conditional_entropy", f"epsilon {epsilon}", {**policy, **PROBE}, GREEDY
    for hard in (3, 6, 12):
        policy = {"policy": "first_try", "pattern": "|", "hard": hard}
        yield "first_try", f"candidate {hard}", policy, GREEDY
    for most in (3, 5, 10):
        yield "cntp", f"most {most}", {"policy": "cntp", "most": most}, WARM
    for n in (2, 4, 8):
        yield "latr", f"n {n}", {**LATR, "n": n}, GREEDY
    for again in (1, 3, 7):
        yield "cure", f"again {again}", {"policy": "cure", "again": again}, WARM
    for n in (4, 8, 16):
        policy = {"policy": "confidence_pool", "n": n, "warm": n // 2, "period": 32}
        yield "confidence_pool", f"n {n}", policy, WARM
    for n in (2, 3, 4):
        yield "icn", f"n {n}", {"policy": "icn", "n": n, "text": "{found}\n\n"}, WARM
    for threshold in (0.001, 0.01, 0.1):
        policy = {"policy": "reverse_speculative", "threshold": threshold}
        yield "reverse_speculative", f"threshold {threshold}", policy, WARM
    for budget in (2, 3, 5):
        policy = {"policy": "fetch", "budget": budget, "beam": budget, "limit": 16, "step": "\n\n"}
        yield "fetch", f"beam {budget}", policy, WARM


def wilson(right, count, z=1.96):
    """A 95 % interval of a share."""
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    width = z / (1 + z * z / count) * sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - width), min(1.0, middle + width)


def chosen_problems(words, count):
    """Problems and their prompts."""
    chosen = [*problems("test", 3, count // 2), *problems("test", 4, count - count // 2)]
    return chosen, [tuple(words.chat([{"role": "user", "content": prompt(one)}])) for one in chosen]


async def together(controller, prompts, sampling, sessions):
    """Results of all prompts, so many at once."""
    places = asyncio.Semaphore(sessions)

    async def one(index, ids):
        how = sampling.model_copy(update={"seed": index})
        async with places:
            return await controller.run(ids, sampling=how, max_tokens=MAX_TOKENS)

    return await asyncio.gather(*(one(index, ids) for index, ids in enumerate(prompts)))


async def row(networks, words, policy, sampling, chosen, prompts):
    """One arm's figures; those of two models have the small one beside the large one."""
    large, small = networks
    beside = {}
    if policy["policy"] == "reverse_speculative":
        second = HFBackend(small, words, max_sessions=AT_ONCE)
        beside = {"second": second, "second_vocabulary": words}
    backend = HFBackend(large, words, max_sessions=AT_ONCE)
    spec = {"policy": policy, "thinking_tokens": THINKING}
    controller = Controller(backend, spec, vocabulary=words, **beside)
    found = await together(controller, prompts, sampling, AT_ONCE)
    await controller.close()
    right = sum(
        one.finish_reason == "stop" and check_answer(problem, one.text)
        for problem, one in zip(chosen, found)
    )
    usage = [of for one in found for of in one.trace.usage.values()]
    count = len(found)
    kept = sum(one.tokens for one in usage) / count
    thrown = sum(one.discarded_tokens for one in usage) / count
    low, high = wilson(right, count)
    return {
        "problems": count, "accuracy": round(right / count, 4), "low": round(low, 4),
        "high": round(high, 4), "kept": round(kept, 1), "thrown_away": round(thrown, 1),
        "tokens": round(kept + thrown, 1),
        "probes": round(sum(one.trace.probes for one in found) / count, 2),
        "forks": round(sum(one.trace.forks for one in found) / count, 2),
    }  # fmt: skip


def table(count, path, only):
    """Measure what the CSV does not hold yet."""
    torch.set_num_threads(1)
    words = RouterVocabulary(AutoTokenizer.from_pretrained(path_of("tiny-reasoner-small")), (2, 0))
    networks = [
        AutoModelForCausalLM.from_pretrained(path_of(f"tiny-reasoner-{size}"), dtype=torch.float32)
        for size in ("large", "small")
    ]
    chosen, prompts = chosen_problems(words, count)
    known = set()
    if path.exists():
        with path.open() as file:
            known = {
                (one["method"], one["setting"], one["problems"]) for one in csv.DictReader(file)
            }
    for method, setting, policy, sampling in arms():
        if (method, setting, str(count)) in known or (only and method not in only):
            continue
        found = asyncio.run(row(networks, words, policy, sampling, chosen, prompts))
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if is_new:
                writer.writeheader()
            writer.writerow({"method": method, "setting": setting, **found})
        print(method, setting, found, flush=True)


def plot(path):
    """Accuracy over all tokens, an interval a point."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with path.open() as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(figsize=(8, 5))
    for method in dict.fromkeys(one["method"] for one in rows):
        mine = sorted(
            (float(r["tokens"]), float(r["accuracy"]), float(r["low"]), float(r["high"]))
            for r in rows if r["method"] == method
        )  # fmt: skip
        x, y, low, high = zip(*mine)
        spread = [[a - b for a, b in zip(y, low)], [b - a for a, b in zip(y, high)]]
        axes.errorbar(x, y, yerr=spread, marker="o", capsize=2, label=method)
    axes.set_xscale("log")
    axes.set_xlabel("tokens a problem, thrown away ones included")
    axes.set_ylabel("share solved")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})


def page(path):
    """Write the table into the page, and the plot beside it."""
    with path.open() as file:
        found = list(csv.DictReader(file))
    order = [(method, setting) for method, setting, _, _ in arms()]
    found.sort(key=lambda one: order.index((one["method"], one["setting"])))
    head = ("method", "setting", "accuracy %", "kept", "thrown away", "all tokens")
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|---|"]
    for one in found:
        share, low, high = (f"{100 * float(one[name]):.1f}" for name in ("accuracy", "low", "high"))
        tokens = (f"{float(one[name]):.0f}" for name in ("kept", "thrown_away", "tokens"))
        cells = (one["method"], one["setting"], f"{share} [{low}, {high}]", *tokens)
        lines.append(f"| {' | '.join(cells)} |")
    count = found[0]["problems"]
    about = f"{count} held-out problems, half of three numbers and half of four; 95 % intervals."
    between = "\n".join((BEGIN, about, "", *lines, "", f"![{ALT}](images/{PLOT.name})", END))
    text = PAGE.read_text(encoding="utf-8")
    pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    PAGE.write_text(re.sub(pattern, lambda _: between, text, flags=re.S), encoding="utf-8")
    plot(path)


async def throughput(server, count, loop):
    """Tokens a second, all at once and one after the other."""
    words = RouterVocabulary(AutoTokenizer.from_pretrained(path_of("tiny-reasoner-small")), (2, 0))
    _, prompts = chosen_problems(words, count)
    settings = HTTPSettings(read_timeout=600)
    for name, policy in MEASURED.items():
        backend = HTTPBackend("large", server, "tiny-small", api="vllm", settings=settings,
                              max_length=1024)  # fmt: skip
        spec = {"policy": policy, "thinking_tokens": THINKING}
        controller = Controller(backend, spec, vocabulary=words)
        await together(controller, prompts[:2], GREEDY, 2)
        rates = {}
        for label, asked, sessions in (("at once", prompts, count), ("a loop", prompts[:loop], 1)):
            began = time.monotonic()
            found = await together(controller, asked, GREEDY, sessions)
            seconds = time.monotonic() - began
            usage = [one.trace.usage["large"] for one in found]
            spent = sum(one.tokens + one.discarded_tokens for one in usage)
            rates[label] = len(found) / seconds
            figures = f"{rates[label]:.2f} requests, {spent / seconds:.0f} tokens a second"
            print(f"{name}, {label}: {len(found)} in {seconds:.1f} s, {figures}", flush=True)
        print(f"{name}: {rates['at once'] / rates['a loop']:.1f} times the loop", flush=True)
        await controller.close()


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("table", "page", "throughput"))
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--csv", type=Path, default=HERE / "results" / "controllers.csv")
    parser.add_argument("--server", default="http://127.0.0.1:8001")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--loop", type=int, default=32, help="requests of the loop")
    given = parser.parse_args()
    if given.what == "table":
        table(given.problems, given.csv, given.only)
    elif given.what == "page":
        page(given.csv)
    else:
        asyncio.run(throughput(given.server, given.requests, given.loop))


if __name__ == "__main__":
    main()
