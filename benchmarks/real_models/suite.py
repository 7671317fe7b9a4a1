"""tokenlens on pretrained models, Hugging Face beside vLLM: ``python suite.py [--page]``.

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
import time
from pathlib import Path

import page
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


GREEDY = "greedy, no spec"
HEAD = "| method | off, Hugging Face | off, vLLM | off with tokens | ids as on HF |"


class Report:
    """What was found of each method on each engine, and whether all was as it must be."""

    def __init__(self):
        self.failed = []
        self.models = {}

    def begin(self, model, facts):
        """A model; what is found from now on is of it."""
        self.model = model
        self.models[model] = (facts, {})

    def add(self, engine, method, verdict, fine, **cells):
        """What one engine made of one method."""
        lines = self.models[self.model][1]
        lines.setdefault(method, {})[engine] = cells
        told = ", ".join(f"{name} {value}" for name, value in cells.items())
        print(f"{self.model}, {engine}, {method}: {verdict or 'fine'} {told}", flush=True)
        if not fine:
            self.failed.append(f"{self.model}, {engine}, {method}: {verdict}")

    def markdown(self):
        """A table a model."""
        parts = []
        for model, (facts, lines) in self.models.items():
            rows = [f"**{model}** ({facts})\n", HEAD, "|---|---|---|---|---|"]
            for method, engines in lines.items():
                here, there = (engines.get(name, {}) for name in ("hf", "vllm"))
                apart = [one["tokens"] for one in engines.values() if "tokens" in one]
                far = max(apart, key=float, default="")
                offs = [here.get("off", ""), there.get("off", "")]
                rows.append(f"| {' | '.join([method, *offs, far, there.get('same', '')])} |")
            parts.append("\n".join(rows))
        return "\n\n".join(parts)


def verified(report, engine, method, model, tokenizer, traces, **more):
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
    off = f"{max(one.traced.largest for one in found):.1e}"
    report.add(engine, method, verdict, fine, off=off, tokens=f"{far:.2f}", **more)


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
    ways = "tied" if tied else "separate"
    report.begin(name, f"vocabulary {table.shape[0]:,}, {ways} embeddings".replace(",", " ", 1))
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
        verified(report, "hf", method, model, tokenizer, pairs)
    if python is None:
        return
    sent = [{"prompt": prompt, "tokens": tokens, "spec": given} for prompt, given in rows]
    found = with_vllm(python, name, sent)
    equal = [one["ids"][: len(ids)] == ids for one, ids in zip(found, here)]
    same = sum(equal[:count])
    verdict = "" if same == count else "other ids than Hugging Face's"
    report.add("vllm", GREEDY, verdict, same == count, same=f"{same} of {count}")
    for number, method in enumerate(METHODS, 1):
        own = slice(number * count, (number + 1) * count)
        read = [Trace.model_validate_json(one["trace"]) for one in found[own]]
        same = f"{sum(equal[own])} of {count}"
        pairs = [(prompt, trace) for (prompt, _), trace in zip(rows[own], read)]
        verified(report, "vllm", method, model, tokenizer, pairs, same=same)


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
    report.add("hf, bf16", "soft, T 0.6", said, fine)


def main():
    """Both models; ends with 1 where something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--models", nargs="+", default=NAMES)
    parser.add_argument("--vllm", default=str(ROOT / ".venv-vllm/bin/python"), help="its Python")
    parser.add_argument("--page", action="store_true", help=f"write {page.PAGE.name}")
    options = parser.parse_args()
    python = options.vllm if options.vllm and Path(options.vllm).exists() else None
    began, report = time.time(), Report()
    for name in options.models:
        check(report, name, options.prompts, options.tokens, python)
        check_bf16(report, name, options.prompts, options.tokens)
    for one in report.failed:
        print(f"failed: {one}", file=sys.stderr)
    size = f"`suite.py --prompts {options.prompts} --tokens {options.tokens}`"
    text = f"{size}, {(time.time() - began) / 60:.0f} minutes.\n\n{report.markdown()}"
    print(f"\n{text}")
    if options.page and not report.failed:
        page.replace("suite", text)
    raise SystemExit(bool(report.failed))


if __name__ == "__main__":
    main()
