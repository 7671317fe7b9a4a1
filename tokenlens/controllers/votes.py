"""What a text answers, when two answers are the same, and the vote of several. Knows no model."""

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

from tokenlens.errors import SpecError

Equality = Literal["auto", "text", "number", "math"]
Where = Literal["auto", "boxed", "phrase", "text"]

PHRASE = re.compile(r"(?:final answer|answer)\s*(?:is|:|=)\s*:?\s*(.+)", re.IGNORECASE)
MAX_ANSWER = 2000


def boxed(text: str) -> str | None:
    """What the last whole box of a text holds."""
    at = text.rfind("\\boxed{")
    while at >= 0:
        found = until_brace(text[at + len("\\boxed{") :])
        if found is not None:
            return found.strip()
        at = text.rfind("\\boxed{", 0, at)
    return None


def until_brace(text: str) -> str | None:
    """What stands before the first closing brace without a partner; ``None`` if there is none."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth < 0:
            return text[:at]
    return None


def read(text: str | None, where: Where = "auto") -> str | None:
    """The answer that a text gives, or ``None``."""
    if text is None:
        return None
    found: str | None = None
    if where in ("auto", "boxed"):
        found = boxed(text)
    if found is None and where in ("auto", "phrase"):
        phrases = PHRASE.findall(text)
        found = phrases[-1].strip().rstrip(".").strip("*$ ") if phrases else None
    if found is None and where in ("auto", "text"):
        found = text.strip()
    return found[:MAX_ANSWER] if found else None


def number(text: str) -> Fraction | None:
    """A plain number: digits, a point, commas between thousands, a fraction, a percentage."""
    plain = text.strip().strip("$").replace("\\%", "%").replace(" ", "")
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", plain):
        plain = plain.replace(",", "")
    scale = Fraction(1)
    if plain.endswith("%"):
        plain, scale = plain[:-1], Fraction(1, 100)
    if not re.fullmatch(r"[+-]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})(/\d{1,40})?", plain):
        return None
    top, _, bottom = plain.partition("/")
    if bottom and not int(bottom):
        return None
    return Fraction(top) / (Fraction(bottom) if bottom else 1) * scale


def equality(kind: Equality) -> Callable[[str, str], bool]:
    """A test of two answers.

    Raises
    ------
    SpecError
        math-verify is asked for and not installed.
    """
    if kind == "math":
        try:
            from math_verify import parse, verify
        except ImportError:
            allowed = "auto, text or number; math-verify is not installed"
            raise SpecError.of("equality", kind, allowed) from None

        def same(a: str, b: str) -> bool:
            # Without its timer, which needs the main thread's signals.
            first, second = (parse(f"${t}$", parsing_timeout=None) for t in (a, b))
            return a == b or bool(verify(first, second, timeout_seconds=None))

        return same

    def plain(a: str, b: str) -> bool:
        if kind != "text":
            numbers = number(a), number(b)
            if None not in numbers:
                return numbers[0] == numbers[1]
            if kind == "number":
                return False
        return " ".join(a.split()) == " ".join(b.split())

    return plain


def vote(
    answers: Sequence[str | None],
    weights: Sequence[float] | None = None,
    same: Callable[[str, str], bool] | None = None,
) -> tuple[int | None, dict[str, float]]:
    """The first line of the heaviest answer, and the weight of each answer.

    Ties go to the answer that came first; ``None`` never wins, and is ``None`` where nobody has an
    answer. A weight that is not finite counts as nothing.

    >>> vote(["7", None, "8", "7.0"], same=equality("auto"))
    (0, {'7': 2.0, '8': 1.0})
    """
    test = same or equality("text")
    groups: list[tuple[int, float]] = []
    for at, answer in enumerate(answers):
        if answer is None:
            continue
        weight = 1.0 if weights is None else float(weights[at])
        weight = weight if math.isfinite(weight) else 0.0
        for place, (first, total) in enumerate(groups):
            if test(str(answers[first]), answer):
                groups[place] = first, total + weight
                break
        else:
            groups.append((at, weight))
    if not groups:
        return None, {}
    best = max(groups, key=lambda group: group[1])
    return best[0], {str(answers[first]): total for first, total in groups}


def published_vote(answers: Sequence[object | None]) -> object | None:
    """SoftCoT++'s counting: ``None`` counts as 1 each time, and may win a tie (Q13)."""
    counts: dict[object | None, int] = {}
    for answer in answers:
        counts[answer] = 1 if answer is None else counts.get(answer, 0) + 1
    return max(counts, key=lambda one: counts[one]) if counts else None
