"""Step routing on the tiny reasoners: accuracy, shares and latency, and a plot against share.

``python benchmarks/routing.py`` routes 500 held-out Countdown problems of the test split through
GlimpRouter at several thresholds, each beside a random control with the same share of steps, and
through SpecReason, Speculative Thinking, and either model alone. Every row is written as it is
measured; rows that the CSV holds already are not measured again.

Latency is measured apart, one request at a time: each problem under every policy in turn, as a
ratio to the large model alone on the same problem, so that whatever else the machine does hits all.
"""

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import argparse
import asyncio
import csv
import json
import time
from math import sqrt
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokenlens.assets import path_of
from tokenlens.evaluation.countdown import check_answer, problems, prompt
from tokenlens.evaluation.plots import against_share
from tokenlens.routing import Router, RouterVocabulary, Sampling
from tokenlens.routing.hf import HFBackend

THRESHOLDS = (0.02, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
MAX_TOKENS = 320
FIELDS = (
    "name", "setting", "problems", "accuracy", "standard_error", "large_steps", "large_tokens",
    "tokens", "discarded_tokens", "latency_q20", "latency_q50", "latency_q80", "policy",
)  # fmt: skip
BASELINE = "large alone"


def load(count):
    """Models, vocabulary, problems and prompts."""
    tokenizer = AutoTokenizer.from_pretrained(path_of("tiny-reasoner-small"))
    words = RouterVocabulary(tokenizer, (2, 0))
    models = {
        role: AutoModelForCausalLM.from_pretrained(
            path_of(f"tiny-reasoner-{role}"), dtype=torch.float32
        )
        for role in ("small", "large")
    }
    chosen = [*problems("test", 3, count // 4), *problems("test", 4, count - count // 4)]
    prompts = [tuple(words.chat([{"role": "user", "content": prompt(one)}])) for one in chosen]
    return models, words, chosen, prompts


async def measure(spec, models, words, chosen, prompts, sessions, temperature):
    """One row of the table."""
    small, large = (
        HFBackend(models[role], words, max_sessions=sessions) for role in ("small", "large")
    )
    router = Router(small, large, spec, small_vocabulary=words, large_vocabulary=words)
    places = asyncio.Semaphore(sessions)

    async def one(index, ids):
        sampling = Sampling(temperature=temperature, top_p=0.95, seed=index)
        async with places:
            return await router.run(ids, sampling=sampling, max_tokens=MAX_TOKENS)

    found = await asyncio.gather(*(one(index, ids) for index, ids in enumerate(prompts)))
    await router.close()
    right = sum(
        one.finish_reason == "stop" and check_answer(problem, one.text)
        for problem, one in zip(chosen, found)
    )
    accuracy, count = right / len(found), len(found)
    steps = [sum(s.phase == "thinking" for s in one.trace.steps) for one in found]
    large_steps = sum(round(one.trace.large_step_share * n) for one, n in zip(found, steps)) / max(
        1, sum(steps)
    )
    large_tokens = sum(one.trace.usage["large"].tokens for one in found)
    thrown = sum(usage.discarded_tokens for one in found for usage in one.trace.usage.values())
    tokens = sum(one.tokens for one in found)
    return {
        "problems": count,
        "accuracy": f"{100 * accuracy:.1f}",
        "standard_error": f"{100 * sqrt(accuracy * (1 - accuracy) / count):.1f}",
        "large_steps": f"{100 * large_steps:.1f}",
        "large_tokens": f"{100 * large_tokens / tokens:.1f}",
        "tokens": f"{tokens / count:.0f}",
        "discarded_tokens": f"{thrown / count:.1f}",
    }


async def latencies(specs, models, words, prompts, temperature):
    """For each spec but the first its latencies divided by the first one's, sorted."""
    backends = [HFBackend(models[role], words) for role in ("small", "large")]
    routers = [
        Router(*backends, spec, small_vocabulary=words, large_vocabulary=words) for spec in specs
    ]

    async def seconds(router, index):
        sampling = Sampling(temperature=temperature, top_p=0.95, seed=index)
        began = time.perf_counter()
        await router.run(prompts[index], sampling=sampling, max_tokens=MAX_TOKENS)
        return time.perf_counter() - began

    for router in routers:
        await seconds(router, 0)
    ratios = [[] for _ in specs[1:]]
    for index in range(len(prompts)):
        taken = [await seconds(router, index) for router in routers]
        for mine, one in zip(ratios, taken[1:]):
            mine.append(one / taken[0])
    for backend in backends:
        await backend.close()
    return [sorted(mine) for mine in ratios]


def markdown(rows):
    """The table of the docs."""
    lines = [
        "| policy | setting | accuracy % | steps by large % | tokens by large % | tokens |"
        " thrown away | latency / large alone: q20 / q50 / q80 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['name']} | {r['setting']} | {r['accuracy']} ± {r['standard_error']} |"
            f" {r['large_steps']} | {r['large_tokens']} | {r['tokens']} | {r['discarded_tokens']} |"
            f" {r['latency_q20']} / {r['latency_q50']} / {r['latency_q80']} |"
        )
    return "\n".join(lines)


def specs_before(thresholds):
    """Name, setting and spec of every row but the random controls, whose share is found first."""
    yield "large alone", "", {"policy": "always_large"}
    yield "small alone", "", {"policy": "always_small"}
    yield "only the answer by large", "", {"policy": "always_small", "answer": "large"}
    for threshold in thresholds:
        policy = {"policy": "glimprouter", "threshold": threshold}
        yield "GlimpRouter", f"{threshold:g} nats", {"policy": policy}
    for threshold in (6.0, 7.0, 8.0):
        policy = {"policy": "specreason", "score": "likelihood", "threshold": threshold}
        yield "SpecReason (likelihood)", f"{threshold:g} of 9", {"policy": policy}
    # The paper's interjection is no text that this vocabulary can write.
    policy = {"policy": "speculative_thinking", "recap_after": 0}
    yield "Speculative Thinking", "20 tokens", {"policy": policy}


def control(row):
    """The random control at a row's share of the steps."""
    share = round(float(row["large_steps"]) / 100, 3)
    policy = {"policy": "random", "share": share}
    return "random", f"share {share:.3f}", {"policy": policy, "answer": "large"}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--timed", type=int, default=24, help="problems of the latencies")
    parser.add_argument("--sessions", type=int, default=128, help="at once")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "routing.csv"
    )
    parser.add_argument(
        "--plot", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "routing.png"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    subjects = load(arguments.problems)
    models, words, _, prompts = subjects
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    if arguments.out.exists():
        with arguments.out.open(newline="") as file:
            rows = list(csv.DictReader(file))

    def write():
        with arguments.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)

    def run(name, setting, spec):
        row = next((r for r in rows if (r["name"], r["setting"]) == (name, setting)), None)
        if row is None:
            spec = {"duplicate_guard": False, **spec}
            found = asyncio.run(measure(spec, *subjects, arguments.sessions, arguments.temperature))
            row = {"name": name, "setting": setting, **found, "policy": json.dumps(spec)}
            rows.append(row)
            write()
            print(row, flush=True)
        return row

    for name, setting, spec in specs_before(arguments.thresholds):
        row = run(name, setting, spec)
        if name == "GlimpRouter":
            run(*control(row))
    if not all(row.get("latency_q50") for row in rows):
        assert rows[0]["name"] == BASELINE
        specs = [json.loads(row["policy"]) for row in (rows[0], *rows)]
        # Of both lengths of problems: the first half is of the shorter one.
        timed = prompts[:: max(1, len(prompts) // arguments.timed)][: arguments.timed]
        found = asyncio.run(latencies(specs, models, words, timed, arguments.temperature))
        for row, ratios in zip(rows, found):
            for q in (20, 50, 80):
                row[f"latency_q{q}"] = f"{ratios[round(q / 100 * (len(ratios) - 1))]:.2f}"
        write()
    against_share(rows).savefig(arguments.plot, dpi=130)
    print(markdown(rows))


if __name__ == "__main__":
    main()
