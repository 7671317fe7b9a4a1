"""What the suite found on classes that see images, and its part of docs/families.md.

``python tests/families/sight_table.py FIRST.json SECOND.json SGLANG.json`` stores what
``family_vllm.py`` wrote of vLLM's two model runners, and ``family_sglang.py``.
"""

import json
import sys
from pathlib import Path
from typing import Any

from family_checks import BY_NAME, first_words, wrong_by_name
from family_sight import CLASSES

from tokenlens.hf.verify import TOLERANCE

RESULTS = Path(__file__).parent / "sight.json"
TOLERANCES = {"float32": TOLERANCE, "bfloat16": 0.03}
STEPS = 24

RUNNERS = {"1": "vLLM, first runner", "2": "vLLM, second", "sglang": "SGLang"}
LISTS = {"vllm": {"1", "2"}, "sglang": {"sglang"}}
"""Runners on which a class must have been right to be on an engine's list."""

HEAD = """## Models that see, on vLLM and SGLang

One tiny random checkpoint a class, built here with a tokenizer and a processor of its own, on
both model runners of vLLM {vllm} and on SGLang {sglang}, on a CPU. Ten requests in one batch, five
of them with an image: soft thinking, Gumbel noise, LEAD with its visual anchor (the mean of the
tokens around an image and its own, which is reached behind an image in each class, there and in
transformers), a spec without methods, and no spec. Prompts come in chunks, one of which ends in the
middle of an image (on SGLang chunks of three tokens: all images are cut), and a second time from
the prefix cache. Judged as above, through transformers. Requests without a spec have the tokens and
the log-probabilities that they have without tokenlens, bit for bit (on SGLang their logits and
embeddings are compared in the scheduler). A class stands on an engine's list once it has stood here
on all its runners; others are refused for latent methods, and `TOKENLENS_ANY_MODEL=1` tries them.

| class | engine | off, text | off, image | off, fed the visible tokens | steps with LEAD's anchor |
|---|---|---|---|---|---|
"""

TAIL = """
{notes}

Not tried: video and audio inputs, pruned video tokens, classes that vLLM loads with code from a
checkpoint's repository (`InternVLChatModel`), Gemma 3n with images (its image tower needs timm).

"""


def verdict(name: str, found: Any) -> str | None:
    """What is wrong with what one runner gave, ``None`` if nothing is."""
    if not isinstance(found, list):
        return str(found)
    dtype = CLASSES[name].dtype
    for one in found:
        wrong = wrong_by_name(one) if one["row"] == BY_NAME else wrong_row(one, dtype)
        if wrong is not None:
            return wrong
    with_image = [one for one in found if "image" in one.get("request", "")]
    if not any(one.get("anchored") and one["anchored there"] for one in with_image):
        return "LEAD's anchor was never fed behind an image"
    cached = [one["cached"] for one in with_image if one["request"].endswith("round 2")]
    if dtype == "float32" and max(cached) < 32:
        return "no image came from the prefix cache"
    return None


def wrong_row(one: dict[str, Any], dtype: str) -> str | None:
    """What is wrong with one request."""
    if "as stock" in one:
        return None if one["as stock"] else f"another answer than without tokenlens: {one}"
    if one["traced"] > TOLERANCES[dtype]:
        return f"not what its trace says: {one}"
    if one["tokens"] is not None and one["tokens"] < 5 * one["traced"]:
        return f"visible tokens would have been as near: {one}"
    if (one["mixtures"] > 0) != (one["row"] != "plain"):
        return f"mixtures: {one}"
    if dtype == "float32" and one["parted"]:
        return f"another decision than a replay's: {one}"
    if dtype == "float32" and one["row"] == "plain" and one["same"] < STEPS:
        return f"another decision than transformers': {one}"
    if one["same"] == STEPS and one["anchored"] != one["anchored there"]:
        return f"another anchor than in transformers: {one}"
    return None


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table."""
    judged = [one for one in found if "traced" in one]
    image = [one["traced"] for one in judged if "image" in one["request"]]
    return {
        "text": max(one["traced"] for one in judged if "image" not in one["request"]),
        "image": max(image),
        "tokens": min(one["tokens"] for one in judged if one["tokens"] is not None),
        "anchored": sum(one["anchored"] for one in judged),
    }


def stored() -> dict[str, Any]:
    """What the suite found last."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


def store(runner: str, found: dict[str, Any]) -> None:
    """Keep what one runner gave."""
    from tokenlens import versions

    whole = stored() if RESULTS.exists() else {"rows": {}}
    engine: versions.Engine = "sglang" if runner == "sglang" else "vllm"
    whole[engine] = versions.installed(engine)
    for name, one in found.items():
        if name in CLASSES:
            wrong = verdict(name, one)
            # What does not run at all says why by itself.
            bad = "wrong" if isinstance(one, list) else "why"
            row = {bad: wrong} if wrong else summary(one)
            whole["rows"].setdefault(CLASSES[name].model, {})[runner] = row
    whole["rows"] = dict(sorted(whole["rows"].items()))
    RESULTS.write_text(json.dumps(whole, indent=1) + "\n")


def right(engine: str) -> set[str]:
    """Classes with which all runners of an engine were right."""
    return {
        name
        for name, rows in stored()["rows"].items()
        if all("text" in rows.get(runner, {}) for runner in LISTS[engine])
    }


def section() -> str:
    """The part of the page."""
    found = stored()
    lines = [HEAD.format(**found)]
    for name, runners in found["rows"].items():
        for runner, row in sorted(runners.items()):
            cells = [f"`{name}`", RUNNERS[runner]]
            if "text" not in row:
                cells += ["wrong" if "wrong" in row else "does not run", "", "", ""]
            else:
                cells += [f"{row['text']:.1e}", f"{row['image']:.1e}", f"{row['tokens']:.2g}"]
                cells.append(str(row["anchored"]))
            lines.append(f"| {' | '.join(cells)} |\n")
    notes = [f"* `{sight.model}`: {sight.note}" for sight in CLASSES.values() if sight.note]
    notes += [
        f"* `{name}` on {RUNNERS[runner]}: `{first_words(row['why'])}`"
        for name, runners in found["rows"].items()
        for runner, row in sorted(runners.items())
        if "why" in row
    ]
    return "".join(lines) + TAIL.format(notes="\n".join(notes))


if __name__ == "__main__":
    for runner, file in zip(RUNNERS, sys.argv[1:]):
        if Path(file).exists():
            store(runner, json.loads(Path(file).read_text()))
