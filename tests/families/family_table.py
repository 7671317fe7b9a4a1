"""The table of docs/families.md: run as a script, it runs the suite and writes both again.

``python tests/families/family_table.py [NAMES]``: all architectures, or those that are named.
"""

import json
import sys
from pathlib import Path
from typing import Any

import family_checks
import sight_table
from family_models import GROUPS, TEXT, build

from tokenlens.hf.verify import TOLERANCE

RESULTS = Path(__file__).parent / "results.json"
ON_SGLANG_RESULTS = Path(__file__).parent / "sglang.json"
PAGE = Path(__file__).parents[2] / "docs" / "families.md"

HEAD = """# Models

Every architecture below was decoded by `generate()` with three rows in one batch (soft thinking,
Gumbel noise, plain) and then *replayed*: one uncached forward pass over exactly what the traces say
was fed, in float32. The replay has to give what was recorded within 1e-4 (`tokenlens trace verify`
does the same for your model, in your engine); feeding the visible tokens instead is off by the
figure beside it. Models are tiny and random, built from their configurations; `make test-families`
runs them all and writes this page. transformers {version}, CPU. Where there is a figure for SGLang
({sglang}, CPU), an engine of its own decoded three such rows, twice, the second time from its radix
cache, and was replayed through transformers. *stock differs*: plain rows are off as well (all
three have a sliding window here); *does not run*: behind the fakes of SGLang's
kernels, or with this version's configuration. Where there is nothing it was not tried.

"""

ON_SGLANG = (
    *("llama", "qwen2", "qwen3", "glm4", "olmo2", "granite", "gemma3_text"),
    *("qwen3_moe", "glm4_moe"),
)
"""Architectures of which SGLang runs what the fakes of its kernels leave to torch."""

TAIL = """
*refused*: the forward pass needs token ids (measured on the model, not looked up in a list), and a
compiled one could be fed mixtures only in place of them; the dynamic cache works. *stock fails*:
`generate()` without tokenlens cannot use a static cache there either.

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
        far = one["tokens"] is None or one["tokens"] > TOLERANCE
        if one["traced"] > TOLERANCE or one["parted"] or not far:
            return f"not what its trace says: {one}"
        if (one["mixtures"] > 3) != (one["row"] != "plain"):
            return f"mixtures: {one}"
    return None


def on_sglang(found: Any) -> str:
    """A cell of the table."""
    if not isinstance(found, list):
        return "does not run"
    plain = max(one["traced"] for one in found if one["row"] == "plain")
    if plain > TOLERANCE:
        return "stock differs"
    most = f"{max(one['traced'] for one in found):.1e}"
    return most if wrong(found) is None else f"{most}, plain {plain:.1e}"


def store_sglang(found: dict[str, Any]) -> None:
    """Keep what SGLang gave."""
    from tokenlens import versions

    whole = json.loads(ON_SGLANG_RESULTS.read_text()) if ON_SGLANG_RESULTS.exists() else {}
    rows = whole.get("rows", {})
    for name, one in found.items():
        if name in TEXT:
            rows[name] = on_sglang(one)
    whole = {"sglang": versions.installed("sglang"), "rows": dict(sorted(rows.items()))}
    ON_SGLANG_RESULTS.write_text(json.dumps(whole, indent=1) + "\n")


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The page."""
    version = json.loads(RESULTS.read_text())["transformers"]
    sglang = json.loads(ON_SGLANG_RESULTS.read_text())
    lines = [HEAD.format(version=version, sglang=sglang["sglang"])]
    for group, names in GROUPS.items():
        lines.append(f"## {group[0].upper()}{group[1:]}\n\n")
        lines.append(
            "| architecture | off, fed as traced | off, fed the visible tokens | static cache |"
            " off, on SGLang |\n"
        )
        lines.append("|---|---|---|---|---|\n")
        for name in names.split():
            row = rows[name]
            cells = (f"`{name}`", f"{row['traced']:.1e}", f"{row['tokens']:.2g}", row["static"])
            cells = (*cells, sglang["rows"].get(name, ""))
            lines.append(f"| {' | '.join(cells)} |\n")
        lines.append("\n")
    return "".join(lines).rstrip() + "\n" + TAIL.format(sight=sight_table.section())


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
