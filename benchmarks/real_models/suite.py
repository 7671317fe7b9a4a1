"""tokenlens on pretrained models, Hugging Face beside vLLM: ``python suite.py``.

Real vocabularies (49 k, 262 k), tied and scaled embeddings, no think markers: ``phase: none``.
Every latent method runs greedily on both engines in float32; each trace is replayed in one uncached
forward of transformers over what it says was fed, and once with tokens in place of the mixtures,
which must be seen to differ. Ids may part between engines where soft decoding amplifies rounding;
the replay is what decides.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import LATENT, NAMES, SOFT, folder_of, generate, load, prompts, spec

ROOT = Path(__file__).parents[2]
TOLERANCE = {"hf": 1e-4, "vllm": 1e-4}
"""Nats of entropy, and probability, between engines in float32."""
NEWLINE = {"tokens": ["\n"], "keep": 0.7, "moves": True}
METHODS = {
    **{name: (methods, "none") for name, methods in LATENT.items()},
    "think_router": ([{"method": "think_router"}], "none"),
    "selar": ([{"method": "selar"}], "none"),
    "lead": ([{"method": "lead"}], "none"),
    # Its anchors are the markers where a model has some.
    "swi_reasoning": ([{"method": "swi_reasoning", "enter": NEWLINE, "leave": NEWLINE}], "none"),
    "soft, for 8 tokens": ([{**SOFT}], {"markers": "none", "end_after": 8}),
    "soft, to a text": ([{**SOFT}], {"markers": "none", "think_end": "\n"}),
    "soft, then answer_now": ([{**SOFT}, {"method": "answer_now", "after": 8}], "none"),
    "soft, markers of 3 tokens": ([{**SOFT}], {"think_start": "<think>", "think_end": "</think>"}),
}
"""Methods and phase."""
BEGUN = "<think>\n"
"""Behind the prompt where the phase names a start."""


class Report:
    """Lines of a table, and whether all was as it must be."""

    def __init__(self):
        self.failed = []

    def line(self, model, engine, name, verdict, fine, *cells):
        """One row."""
        print("| " + " | ".join([model, engine, name, verdict, *cells]) + " |", flush=True)
        if not fine:
            self.failed.append(f"{model}, {engine}, {name}: {verdict}")


def verified(report, name, engine, method, model, tokenizer, traces, same):
    """Replay every trace of a method."""
    from tokenlens.hf.verify import verify_trace

    found = [
        verify_trace(model, tokenizer, trace, prompt_ids=prompt, tolerance=TOLERANCE[engine])
        for prompt, trace in traces
    ]
    fine = all(one.holds for one in found) and (
        method.startswith("top1") or any(one.tokens and one.tells for one in found)
    )
    if "markers" not in method:
        # Thinking from the first token, whatever the model writes.
        fine &= all(trace.steps[0].phase == "thinking" for _, trace in traces)
    verdict = "as the traces say" if fine else "; ".join({one.verdict for one in found})
    far = max((one.tokens.largest for one in found if one.tokens), default=0.0)
    cells = (f"{max(one.traced.largest for one in found):.1e}", f"{far:.2f}", same)
    report.line(name, engine, method, verdict, fine, *cells)


def with_vllm(python, name, rows):
    """What vLLM makes of the rows."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "rows.json", Path(folder) / "out.json"
        given.write_text(json.dumps(rows))
        script = str(Path(__file__).with_name("vllm_rows.py"))
        command = [python, "-W", "ignore", script, str(folder_of(name)), str(given), str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())


def check(report, name, count, tokens, python):
    """One model on both engines."""
    from tokenlens.trace import Trace

    model, tokenizer = load(name)
    table = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight.data_ptr() == table.data_ptr()
    print(f"\n{name}: vocabulary {table.shape[0]}, {'tied' if tied else 'separate'} embeddings\n")
    print("| model | engine | method | replay | apart | with tokens | ids as on HF |")
    print("|---|---|---|---|---|---|---|")
    asked = prompts(name, tokenizer, count)
    begun = tokenizer.encode(BEGUN, add_special_tokens=False)
    rows = [(prompt, None) for prompt in asked]
    for methods, phase in METHODS.values():
        more = begun if "think_start" in phase else []
        rows += [(prompt + more, spec(methods, seed, phase)) for seed, prompt in enumerate(asked)]
    here, traces = generate(model, tokenizer, rows, max_new_tokens=tokens)
    for number, method in enumerate(METHODS, 1):
        own = slice(number * count, (number + 1) * count)
        pairs = [(prompt, trace) for (prompt, _), trace in zip(rows[own], traces[own])]
        verified(report, name, "hf", method, model, tokenizer, pairs, "")
    if python is None:
        return
    sent = [{"prompt": prompt, "tokens": tokens, "spec": given} for prompt, given in rows]
    found = with_vllm(python, name, sent)
    equal = [one["ids"][: len(ids)] == ids for one, ids in zip(found, here)]
    same = sum(equal[:count])
    report.line(name, "vllm", "greedy, no spec", "", same == count, "", "", f"{same} of {count}")
    for number, method in enumerate(METHODS, 1):
        own = slice(number * count, (number + 1) * count)
        read = [Trace.model_validate_json(one["trace"]) for one in found[own]]
        same = f"{sum(equal[own])} of {count}"
        pairs = [(prompt, trace) for (prompt, _), trace in zip(rows[own], read)]
        verified(report, name, "vllm", method, model, tokenizer, pairs, same)


def check_bf16(report, name, count, tokens):
    """The same on Hugging Face in bf16: every step is latent, finite, and near its replay."""
    model, tokenizer = load(name, "bfloat16")
    asked = prompts(name, tokenizer, count)
    given = spec([{**SOFT, "temperature": 0.6}])
    rows = [(prompt, given) for prompt in asked]
    traces = generate(model, tokenizer, rows, max_new_tokens=tokens)[1]
    counts = [trace.counts for trace in traces]
    fine = all(one.invalid_steps == 0 and one.latent_steps >= one.tokens - 1 for one in counts)
    said = "all steps latent and finite" if fine else str(counts)
    report.line(name, "hf, bf16", "soft, T 0.6", said, fine, "", "", "")


def main():
    """Both models; ends with 1 where something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--models", nargs="+", default=NAMES)
    parser.add_argument("--vllm", default=str(ROOT / ".venv-vllm/bin/python"), help="its Python")
    options = parser.parse_args()
    python = options.vllm if options.vllm and Path(options.vllm).exists() else None
    report = Report()
    for name in options.models:
        check(report, name, options.prompts, options.tokens, python)
        check_bf16(report, name, options.prompts, options.tokens)
    for one in report.failed:
        print(f"failed: {one}", file=sys.stderr)
    raise SystemExit(bool(report.failed))


if __name__ == "__main__":
    main()
