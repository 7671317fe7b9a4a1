"""The table of docs/families.md: run as a script, it runs the suite and writes both again.

``python tests/families/family_table.py [NAMES]``: all architectures, or those that are named.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import family_checks
import sight_table
from family_models import GROUPS, TEXT, build

from tokenlens import versions
from tokenlens.hf.verify import TOLERANCE

RESULTS = Path(__file__).parent / "results.json"
ON_ENGINES: dict[versions.Engine, Path] = {
    "vllm": Path(__file__).parent / "vllm.json",
    "sglang": Path(__file__).parent / "sglang.json",
}
PAGE = Path(__file__).parents[2] / "docs" / "families.md"

HEAD = """# Models

Every architecture below was decoded by `generate()` with three rows in one batch (soft thinking,
Gumbel noise, plain) and then *replayed*: one uncached forward pass over exactly what the traces say
was fed, in float32. The replay has to give what was recorded within 1e-4 (`tokenlens trace verify`
does the same for your model, in your engine); feeding the visible tokens instead is off by the
figure beside it. Models are tiny and random, built from their configurations; `make test-families`
runs them all and writes this page. transformers {version}, CPU. Where there is a figure for vLLM
({vllm}, CPU) or SGLang ({sglang}, CPU), an engine of its own decoded three such rows, twice, the
second time from its prefix cache, and was replayed through transformers. *does not run*: on a CPU,
on SGLang behind fakes of its kernels ([why](#on-the-engines)). Where there is nothing it was not
tried.

Each model, on each engine, is also given a preset's name alone (`"soft"`, with markers that are
found in the vocabulary): it has to think in mixtures behind a prompt that has opened the thinking,
and to say that nothing opened behind one that has not. Without markers in the vocabulary the name
is refused.

"""

ON_SGLANG = (
    *("llama", "qwen2", "qwen3", "glm4", "olmo2", "granite", "gemma2", "gemma3_text"),
    *("qwen3_moe", "glm4_moe", *family_checks.UNLIKE),
)
"""Architectures of which SGLang runs what the fakes of its kernels leave to torch."""
NOT_ON_SGLANG = ("gpt_oss", "gemma3n_text", "gemma4_text", "falcon_h1")
"""Those that it does not run so, which the page says of each."""
ON_VLLM = ("llama", "qwen3", "gemma2", "gpt_oss", "glm4_moe", "granite", "olmo2")
NOT_ON_VLLM = ("gemma3n_text",)
"""vLLM computes something else than transformers, also where nothing was asked for."""

TAIL = """
*refused*: the forward pass needs token ids (measured on the model, not looked up in a list), and a
compiled one could be fed mixtures only in place of them; the dynamic cache works. *stock fails*:
`generate()` without tokenlens cannot use a static cache there either.

## On the engines

What does not run there, and what is built otherwise:

{remarks}

{sight}## Second ways in

Some architectures hand the token to more than the input embedding. A second table that is looked up
by the token alone is mixed with the same weights, in every engine (a token that the table does not
have adds nothing); it stays the visible token's where what is fed is no mixture of tokens (hidden
states, mixtures of the whole vocabulary). Whatever else looks at the token sees the *visible* one.
The published code of the methods replaces the input embedding's output and nothing else, so there,
and with no `profile` here, a second table would see the visible token as well.

| architecture | what also looks at the token | what it sees at a latent step |
|---|---|---|
| Gemma 3n, Gemma 4 (E2B, E4B) | a table of per-layer embeddings | the mixture of its rows |
| Qwen4-Exp | hashes of the last tokens (n-grams) | the visible tokens |
| DeepSeek-V4 | routing of the first layers by hash of the token | the visible token's experts |
"""


def check(name: str) -> dict[str, Any]:
    """One line of the table."""
    model = build(name)
    found = family_checks.replayed(model)
    named = family_checks.by_name(model)
    if family_checks.wrong_by_name(named) or len(named["said"]) != 1:
        raise AssertionError(f"{name}: {named}")
    bad = [row for row, one in found.items() if not (one.holds and one.tells)]
    if bad:
        raise AssertionError(f"{name}: {bad}")
    return {
        "traced": max(one.traced.largest for one in found.values()),
        "tokens": min(one.tokens.largest for one in found.values() if one.tokens),
        "static": family_checks.static(model),
    }


def stored() -> dict[str, dict[str, Any]]:
    """What the suite found last."""
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}


def wrong(found: Any) -> str | None:
    """What is wrong with what an engine gave of a text architecture, ``None`` if nothing is."""
    if not isinstance(found, list):
        return str(found)
    for one in found:
        if one["row"] == family_checks.STOCK:
            continue
        if one["row"] == family_checks.BY_NAME:
            named = family_checks.wrong_by_name(one)
            if named:
                return named
            continue
        far = one["tokens"] is None or one["tokens"] > TOLERANCE
        if one["traced"] > TOLERANCE or one["parted"] or not far:
            return f"not what its trace says: {one}"
        if (one["mixtures"] > 3) != (one["row"] != "plain"):
            return f"mixtures: {one}"
    return None


def on_an_engine(found: Any) -> dict[str, Any]:
    """What an engine made of a text architecture."""
    if not isinstance(found, list):
        return {"why": str(found)}
    plain = max(one["traced"] for one in found if one["row"] == "plain")
    if plain > TOLERANCE:
        return {"plain": plain}
    if wrong(found) is not None:
        raise AssertionError(wrong(found))
    kept = {"traced": max(one["traced"] for one in found if one["row"] in family_checks.ROWS)}
    stock = [one["traced"] for one in found if one["row"] == family_checks.STOCK]
    return {**kept, **({"stock": stock[0]} if stock else {})}


def store(engine: versions.Engine, found: dict[str, Any]) -> None:
    """Keep what an engine gave."""
    file = ON_ENGINES[engine]
    rows = json.loads(file.read_text())["rows"] if file.exists() else {}
    rows |= {name: on_an_engine(one) for name, one in found.items() if name in TEXT}
    whole = {engine: versions.installed(engine), "rows": dict(sorted(rows.items()))}
    file.write_text(json.dumps(whole, indent=1) + "\n")


def cell(row: dict[str, Any] | None) -> str:
    """Of the table, what an engine gave."""
    if row is None:
        return ""
    if "plain" in row:
        return "stock differs"
    return "does not run" if "why" in row else f"{row['traced']:.1e}"


def remarks(engine: str, rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What an engine does otherwise, or why it does not run, of each architecture."""
    for name, row in rows.items():
        if "stock" in row:
            as_built = family_checks.UNLIKE[name][1]
            yield (
                f"* `{name}` on {engine}, built {as_built}: so its class there computes whatever"
                f" the configuration says. Built as elsewhere on this page, {engine} without"
                f" tokenlens is {row['stock']:.1e} off transformers."
            )
        elif "plain" in row:
            apart = f"{row['plain']:.1e}"
            yield f"* `{name}` on {engine}: rows without methods are {apart} off as well."
        elif "why" in row:
            yield f"* `{name}` on {engine}: `{family_checks.first_words(row['why'])}`"


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The page."""
    version = json.loads(RESULTS.read_text())["transformers"]
    engines = {engine: json.loads(file.read_text()) for engine, file in ON_ENGINES.items()}
    numbers = {engine: whole[engine] for engine, whole in engines.items()}
    lines = [HEAD.format(version=version, **numbers)]
    for group, names in GROUPS.items():
        lines.append(f"## {group[0].upper()}{group[1:]}\n\n")
        lines.append(
            "| architecture | off, fed as traced | off, fed the visible tokens | static cache |"
            " off, on vLLM | off, on SGLang |\n"
        )
        lines.append("|---|---|---|---|---|---|\n")
        for name in names.split():
            row = rows[name]
            cells = (f"`{name}`", f"{row['traced']:.1e}", f"{row['tokens']:.2g}", row["static"])
            cells = (*cells, *(cell(whole["rows"].get(name)) for whole in engines.values()))
            lines.append(f"| {' | '.join(cells)} |\n")
        lines.append("\n")
    notes = [
        *remarks("vLLM", engines["vllm"]["rows"]),
        *remarks("SGLang", engines["sglang"]["rows"]),
    ]
    return (
        "".join(lines).rstrip()
        + "\n"
        + TAIL.format(sight=sight_table.section(), remarks="\n".join(notes))
    )


def main(names: list[str]) -> None:
    """Run, and write the results after each."""
    import transformers

    rows = stored()
    for name in names or TEXT:
        rows[name] = check(name)
        print(name, rows[name], flush=True)
        whole = {"transformers": transformers.__version__, "rows": dict(sorted(rows.items()))}
        RESULTS.write_text(json.dumps(whole, indent=1) + "\n")
    if set(rows) == set(TEXT):
        PAGE.write_text(page(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
