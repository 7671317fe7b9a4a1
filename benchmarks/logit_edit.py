"""Microseconds a step for 64 rows at a vocabulary of 151 936: one core against a processor a row.

The reference is of the kind that CyclicReflex's repository uses: a Python function a request, which
is given the request's output so far and a row of logits, looks for the end marker in all of the
output, and adds to one logit after another. Both run in turns in one process, on the same logits,
once in place, as vLLM lets them, and once on a copy. A step of the core includes its signals, its
state and the commit of the tokens. The edited logits are compared at every step. Beside them, one
look at every logit (their maximum): the core's guard against a NaN takes that, and the functions
do without. The one thread's own time is taken: what others do on the machine counts little. Prints
quantiles and the ratio within a turn, and writes them as CSV.

    python benchmarks/logit_edit.py [--rows 64] [--vocab 151936] [--output 2000] [--steps 30]
"""

if __name__ == "__main__":
    import sentences  # noqa: F401  first: it says what is missing

import argparse
import csv
import time
from pathlib import Path

import torch

from tokenlens import DecodingSpec
from tokenlens.core import Core, bind
from tokenlens.methods import METHODS
from tokenlens.spec import CyclicReflex, PhaseConfig

START, END = 151_667, 151_668
WORDS = {"wait": 11489, "Wait": 14190, "but": 8088, "But": 3983, "Alternatively": 92014}
AMPLITUDE, PERIOD = 5.0, 1200.0
LOOK = "one look at every logit"


def by_row(output, row):
    """One request's processor, as the reference has it."""
    t = len(output)
    if END in output:
        return row
    c = (t % PERIOD) / PERIOD
    if c <= 0.25:
        delta = AMPLITUDE * c / 0.25
    elif c <= 0.75:
        delta = AMPLITUDE - 2 * AMPLITUDE * (c - 0.25) / 0.5
    else:
        delta = -AMPLITUDE + AMPLITUDE * (c - 0.75) / 0.25
    for token in WORDS.values():
        row[token] += delta
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--output", type=int, default=2000, help="tokens generated before")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument(
        "--csv", type=Path, default=Path(__file__).parent / "results" / "logit_edit_cpu.csv"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, slots = arguments.rows, torch.arange(arguments.rows)
    method = CyclicReflex(profile="published", amplitude=AMPLITUDE, period=PERIOD)
    spec = DecodingSpec(
        methods=(method,), phase=PhaseConfig(think_start=(START,), think_end=(END,))
    )
    # Found in the vocabulary before: Qwen's five bare words.
    found = {"cyclic_reflex.words": list(WORDS.values())}
    request = bind(spec, methods=METHODS, tokenizer=None, vocab_size=151_669, given=found)
    core = Core(methods=METHODS, max_slots=rows, vocab_size=151_669)
    outputs = []
    for slot in range(rows):
        core.add(slot, request, [START])
        outputs.append([100 + slot] * (arguments.output + slot))
    from tokenlens.core.columns import GENERATED, THINKING_TOKENS

    for column in (GENERATED, THINKING_TOKENS):
        core.table.column(column)[:rows] = arguments.output + slots
    logits = torch.randn(rows, arguments.vocab)
    sampled = torch.full((rows,), 7)
    ways = ("core, in place", "core, a copy", "a row, in place", "a row, a copy")
    times = {way: [] for way in (*ways, LOOK)}

    def timed(way, decide):
        given = logits.clone()
        began = time.thread_time()
        decided = decide(given)
        if step >= 3:
            times[way].append((time.thread_time() - began) * 1e6)
        return decided

    def of_core(in_place):
        def decide(given):
            decided = core.step(given, slots, in_place=in_place)
            core.commit(sampled, slots)
            return decided

        return decide

    def of_rows(in_place):
        def decide(given):
            given = given if in_place else given.clone()
            for output, row in zip(outputs, given):
                by_row(output, row)
            return given

        return decide

    for step in range(arguments.steps + 3):  # noqa: B007  read where it is timed
        for in_place, (ours, theirs) in ((True, ways[::2]), (False, ways[1::2])):
            found = timed(ours, of_core(in_place)), timed(theirs, of_rows(in_place))
            torch.testing.assert_close(*found, rtol=0, atol=1e-5)
            for output in outputs:
                output.append(7)
        timed(LOOK, lambda given: given.amax(dim=1))
    quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    lines = []
    for name, microseconds in times.items():
        found = torch.tensor(microseconds, dtype=torch.float64).quantile(quantiles).tolist()
        lines.append([name, rows, arguments.vocab, *(round(x) for x in found)])
        print("{}: {} rows, vocabulary {}: {} / {} / {} us (10, 50, 90 %)".format(*lines[-1]))
    for ours, theirs in (ways[::2], ways[1::2]):
        pairs = zip(times[theirs], times[ours], strict=True)
        ratios = torch.tensor([a / b for a, b in pairs], dtype=torch.float64).quantile(quantiles)
        found = " / ".join(f"{ratio:.1f}" for ratio in ratios.tolist())
        print(f"{theirs} over {ours}: {found} times (10, 50, 90 %)")
    looks = [a / b for a, b in zip(times[LOOK], times[ways[0]], strict=True)]
    found = torch.tensor(looks, dtype=torch.float64).quantile(quantiles).tolist()
    share = " / ".join(f"{share:.2f}" for share in found)
    print(f"{LOOK}, of {ways[0]}: {share} (10, 50, 90 %)")
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    with arguments.csv.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["what", "rows", "vocab", "us_p10", "us_p50", "us_p90"])
        writer.writerows(lines)


if __name__ == "__main__":
    main()
