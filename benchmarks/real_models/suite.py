"""tokenlens on pretrained models, Hugging Face beside vLLM: ``python suite.py``.

Real vocabularies (49 k, 262 k), tied and scaled embeddings. Every latent method runs greedily on
both engines in float32; each trace is replayed in one uncached forward of transformers over what it
says was fed, and once with tokens in place of the mixtures, which must be seen to differ. Ids may
part between engines where soft decoding amplifies rounding; the replay is what decides.
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
METHODS = {
    **LATENT,
    "think_router": [{"method": "think_router", "start": "first_token"}],
    "selar": [{"method": "selar", "start": "first_token"}],
    "lead": [{"method": "lead", "start": "first_token"}],
    "swi_reasoning": [{"method": "swi_reasoning", "start": "first_token"}],
}


class Report:
    """Lines of a table, and whether all was as it must be."""

    def __init__(self):
        self.failed = []

    def line(self, model, engine, name, verdict, fine, *cells):
        """One row."""
        print("| " + " | ".join([model, engine, name, verdict, *cells]) + " |", flush=True)
        if not fine:
            self.failed.append(f"{model}, {engine}, {name}: {verdict}")


def usable(tokenizer):
    """Methods whose spec is one for this model; the others with the reason."""
    from tokenlens.errors import TokenlensError
    from tokenlens.spec import parse_spec

    found = {}
    for name, methods in METHODS.items():
        try:
            parse_spec(spec(methods, tokenizer))
        except TokenlensError as error:
            print(f"{name} is left out: {error}")
            continue
        found[name] = methods
    return found


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
    methods = usable(tokenizer)
    specs = [None, *methods.values()]
    rows = [
        (prompt, given and spec(given, tokenizer, seed))
        for given in specs
        for seed, prompt in enumerate(asked)
    ]
    here, traces = generate(model, tokenizer, rows, max_new_tokens=tokens)
    for number, method in enumerate(methods, 1):
        own = slice(number * count, (number + 1) * count)
        pairs = list(zip(asked, traces[own]))
        verified(report, name, "hf", method, model, tokenizer, pairs, "")
    if python is None:
        return
    sent = [{"prompt": prompt, "tokens": tokens, "spec": given} for prompt, given in rows]
    found = with_vllm(python, name, sent)
    equal = [one["ids"][: len(ids)] == ids for one, ids in zip(found, here)]
    same = sum(equal[:count])
    report.line(name, "vllm", "greedy, no spec", "", same == count, "", "", f"{same} of {count}")
    for number, method in enumerate(methods, 1):
        own = slice(number * count, (number + 1) * count)
        read = [Trace.model_validate_json(one["trace"]) for one in found[own]]
        same = f"{sum(equal[own])} of {count}"
        verified(report, name, "vllm", method, model, tokenizer, list(zip(asked, read)), same)


def check_bf16(report, name, count, tokens):
    """The same on Hugging Face in bf16: every step is latent, finite, and near its replay."""
    model, tokenizer = load(name, "bfloat16")
    asked = prompts(name, tokenizer, count)
    given = spec([{**SOFT, "temperature": 0.6}], tokenizer)
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
