"""What ``make real-models`` found, written where docs/does_it_help.md shows it."""

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "does_it_help.md"


def replace(name, text, page=PAGE):
    """Put a text between the two comments that a part of the page has; the rest stays."""
    begin, end = f"<!-- real models, {name}: begin -->", f"<!-- real models, {name}: end -->"
    before, found, rest = page.read_text().partition(f"{begin}\n")
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise SystemExit(f"{page}: got no lines {begin} and {end}; write both, one below the other")
    page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")
