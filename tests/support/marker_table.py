"""The table of `docs/markers.md`: which markers `auto` finds, and by which way.

`python tests/support/marker_table.py` writes it. Vocabularies and templates are those that
`real_vocabularies.py` fetches.
"""

import re
from pathlib import Path

from built_tokenizers import byte_level
from real_vocabularies import NAMES, load, templates

from tokenlens.spec.families import FAMILIES
from tokenlens.spec.finding import EngineMarkers, find_markers

PAGE = Path(__file__).parents[2] / "docs" / "markers.md"
BEGIN, END = "<!-- table: made by tests/support/marker_table.py -->", "<!-- end of the table -->"
SPECIAL = re.compile(r"<\|?[A-Za-z_/\uff5c\u2581][^<>\s'\"{}]*>|\[/?[A-Z_]+\]")
REAL = {"qwen3": "qwen3", "gptoss": "gptoss"}


def vocabulary_of(family):
    """A tokenizer with a family's special tokens and without any template or name."""
    texts = "".join((*family.starts, *family.ends, *family.tools))
    special = () if family.written == "text" else SPECIAL.findall(texts)
    kimi = re.findall("\u25c1[^\u25b7]+\u25b7", texts)
    return byte_level(added=tuple(dict.fromkeys((*special, *kimi))))


def family_rows():
    """For every family: found from its vocabulary, else by its name, else by its parser."""
    for name, family in FAMILIES.items():
        tokenizer = vocabulary_of(family)
        found = find_markers(tokenizer)
        if found is None and family.names:
            tokenizer.name_or_path = f"somebody/{family.names[0].strip('/')}"
            tokenizer.chat_template = None
            found = find_markers(tokenizer)
        if found is None and family.parsers:
            found = find_markers(tokenizer, EngineMarkers(family.parsers[0]))
        yield name, family, found


def template_rows():
    """For every template of TRL's: with its own vocabulary where it can be had."""
    for file in sorted(templates().glob("*.jinja")):
        if file.stem.endswith("_training"):
            continue
        text = file.read_text(encoding="utf-8")
        real = next((own for begin, own in REAL.items() if file.stem.startswith(begin)), None)
        tokenizer = (
            load(real) if real else byte_level(added=tuple(dict.fromkeys(SPECIAL.findall(text))))
        )
        kept, tokenizer.chat_template = tokenizer.chat_template, text
        yield file.stem, real, find_markers(tokenizer)
        tokenizer.chat_template = kept


def code(texts):
    return " ".join(f"`{text!r}`" for text in texts).replace("|", "\\|") or "none"


def family_table():
    lines = [
        "| family | models | start | end | tool call | found by |",
        "|---|---|---|---|---|---|",
    ]
    for name, family, found in family_rows():
        assert found is not None, name
        assert found.ends[0] == family.ends[0], (name, found)
        assert not family.starts or found.starts[0] in family.starts, (name, found)
        lines.append(
            f"| {name} | {family.models} | {code(found.starts)} | {code(found.ends)}"
            f" | {code(found.tools)} | {found.by} |"
        )
    return "\n".join(lines)


def template_table():
    lines = [
        "| chat template or vocabulary | tokens | start | end | found by |",
        "|---|---|---|---|---|",
    ]
    for name in NAMES:
        lines.append(row(f"{name} (its own)", "real", find_markers(load(name))))
    for name, real, found in template_rows():
        lines.append(row(name, "real" if real else "those of the template", found))
    return "\n".join(lines)


def tables():
    """Both tables, as the page has them."""
    return f"{family_table()}\n\nReal templates and vocabularies:\n\n{template_table()}"


def main():
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    behind = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{behind}", encoding="utf-8")


def row(name, tokens, found):
    if found is None:
        return f"| {name} | {tokens} | none | none | nothing: an error says so |"
    return f"| {name} | {tokens} | {code(found.starts)} | {code(found.ends)} | {found.by} |"


if __name__ == "__main__":
    main()
