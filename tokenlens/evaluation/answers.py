"""Where a text's answer is: after the thinking, in a box, or behind an answer phrase.

Knows no task and no tokenizer, and computes nothing: whether an answer is right is said elsewhere.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tokenlens.spec import PhaseConfig

END_MARKS = re.compile(
    r"<\|[A-Za-z_]+\|>|</?s>|<｜[^｜]+｜>|<(?:start|end)_of_turn>|<turn\|>|<eos>"
)
"""Ends of turn of the usual chat templates: no part of an answer."""

TURN_ENDS = ("<|end|>", "<|eom|>", "<|im_end|>", "<|end_message|>", "<|eot_id|>")
"""Markers of the end of a thought that end an answer as well."""

FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
"""Opens what a model that writes in channels means for its reader."""


class Markers(NamedTuple):
    """What opens and what ends a thought, as text."""

    start: str = "<think>"
    end: str = "</think>"


class Answer(str):
    """A text whose thinking has been cut off: it is not looked for again."""

    __slots__ = ()


def markers_of(phase: PhaseConfig, decode: Callable[[Sequence[int]], str] | None) -> Markers:
    """A spec's markers as text.

    Raises
    ------
    ValueError
        They are token ids, and there is no tokenizer to write them.
    """
    found = {"start": phase.think_start, "end": phase.think_end}
    texts = {}
    for name, marker in found.items():
        if isinstance(marker, str):
            texts[name] = marker
        elif marker is not None:
            if decode is None:
                raise ValueError(
                    f"phase.think_{name}: got {list(marker)}; allowed: a text, because this engine"
                    " has no decode() that says what these ids write"
                )
            texts[name] = decode(list(marker))
    return Markers(**texts)


def is_open(prompt: str, message: str, markers: Markers) -> bool:
    """Whether a rendered prompt opens a thought behind the user's message and leaves it open."""
    own = prompt.rpartition(message.strip())[2] if message.strip() else prompt
    places = [mark.end for mark in _marks(own, markers)]
    return bool(places) and not places[-1]


def answer_part(text: str, markers: Markers = Markers(), opened: bool = False) -> Answer:  # noqa: B008
    """What follows the thinking; nothing where the thinking never ended.

    Parameters
    ----------
    text
        Everything generated.
    opened
        Whether the prompt ended in an open thought, which ``text`` then goes on with.
    """
    if isinstance(text, Answer):
        return text
    begin = 0
    for mark in _marks(text, markers):
        if not mark.end:
            opened = True
        elif (
            opened or markers.end not in TURN_ENDS or END_MARKS.sub("", text[mark.after :]).strip()
        ):
            # A second end belongs to the thinking too, unless it ends the turn.
            begin, opened = mark.after, False
    if opened:
        return Answer("")
    answer = text[begin:]
    if "<|channel|>" in answer:
        final = list(FINAL_CHANNEL.finditer(answer))
        answer = answer[final[-1].end() :] if final else ""
    return Answer(END_MARKS.sub("", answer).strip())


class _Mark(NamedTuple):
    end: bool
    after: int


def _marks(text: str, markers: Markers) -> Iterator[_Mark]:
    """Every marker of a text; of two that begin at one place the longer is meant."""
    both = {_pattern(markers.start): False, _pattern(markers.end): True}
    patterns = sorted(both, key=len, reverse=True)
    for found in re.finditer("|".join(f"({pattern})" for pattern in patterns), text):
        assert found.lastindex is not None
        yield _Mark(both[patterns[found.lastindex - 1]], found.end())


def _pattern(marker: str) -> str:
    # Tokenizers differ in the blanks that they write around special tokens.
    return r"\s*".join(map(re.escape, marker.split())) or re.escape(marker)


def boxes(text: str) -> list[tuple[int, int, str]]:
    """Begin, end and content of every LaTeX box that closes and is not empty; braces may nest.

    Of a box in a box the inner one counts.
    """
    found: list[tuple[int, int, str]] = []
    # Begin, begin of the content (or -1 where a brace is no box's), boxes that were found before.
    stack: list[tuple[int, int, int]] = []
    for token in BRACES.finditer(text):
        if token[0] == "}":
            if not stack:
                continue
            begin, content, before = stack.pop()
            inside = text[content : token.start()].strip()
            if content >= 0 and inside and len(found) == before:
                found.append((begin, token.end(), inside))
        elif token[0].endswith("{") and token[0] != "\\{":
            is_box = token[0] != "{"
            stack.append((token.start(), token.end() if is_box else -1, len(found)))
    return found


BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
BETWEEN = re.compile(r"[\s$.&]*(?:,|;|\band\b|\bor\b|\\text\{\s*(?:and|or)\s*\})[\s$,&]*")
"""What stands between boxes that are one answer of several values."""

_DRESS = r"[\s*_`\"'$:=#]|\\\(|\\\[|\\(?:quad|,|;|!| )"
_IS = r"(?:is|are|was|equals|be|becomes)\b|[:=]"
PHRASE = re.compile(
    r"(?:\banswer\b(?:\s*\([^()\n]{0,40}\))?(?:\s+(?:to|of|for)\b[^.\n]{0,80}?)?"
    rf"[\s*_`]*(?:(?:will|would|must|should)\s+)?(?:{_IS})|\#\#\#\#)(?:{_DRESS})*"
    # A value: a number, LaTeX, or a name that equals one.
    r"(?P<value>(?:[A-Za-z]\s*=\s*)?(?:[-+−±]\s*)?(?:[$€£]\s*)?"
    r"(?:\.?\d|\\[A-Za-z]|[(\[{√π])[^\n]*)",
    re.IGNORECASE,
)
BARE = re.compile(rf"(?:{_DRESS})*([-+−]?\d[\d,./]*)(?:{_DRESS}|\.|\\\)|\\\])*")


def math_answer(text: str) -> str | None:
    """What a mathematical text gives as its answer, as LaTeX or plain text; None without one.

    The last box (several joined by commas or "and" are one answer); else the value directly behind
    the last answer phrase, such as "the final answer is", "**Answer:**" or "####"; else the text
    itself where it is nothing but a number. A number elsewhere is no answer.
    """
    text = tidy(text)
    found = boxes(text)
    if found:
        group = [found[-1]]
        for one in reversed(found[:-1]):
            if not BETWEEN.fullmatch(text[one[1] : group[0][0]]):
                break
            group.insert(0, one)
        contents = list(dict.fromkeys(plain(content) for _, _, content in group))
        return ", ".join(f"\\boxed{{{content}}}" for content in contents)
    phrases = list(PHRASE.finditer(text))
    if phrases:
        value = re.split(r"\$|\\\)|\\\]|[*_`]{2}|\.(?=\s|$)|,\s+(?=[a-z])", phrases[-1]["value"])[0]
        value = plain(value.rstrip("*_` "))
        return f"${value}$" if "\\" in value else value
    bare = BARE.fullmatch(text)
    return bare[1] if bare else None


def plain(latex: str) -> str:
    """An expression without spacing, units with powers and a full stop, which parsers trip over."""
    latex = re.sub(r"(?<=\d)(?:\\[,!;: ]|\{,\}|\\ )(?=\d{3}(?!\d))", "", latex)
    latex = re.sub(
        r"(?<=[\d}])\s*~?\s*\\(?:text|mathrm)\{[^{}]*\}\s*\^\s*(?:\{\d\}|\d)$", "", latex
    )
    return latex.strip().rstrip(".").strip()


def tidy(text: str) -> str:
    """Full-width characters as the usual ones, and no long runs of dress or blanks."""
    text = "".join(chr(ord(c) - 0xFEE0) if "！" <= c <= "～" else c for c in text)
    # Patterns below try every way to share a run; with short ones that costs nothing.
    return re.sub(r"([\s*_`$#({\[])\1{2,}", r"\1\1", text)


_WRAP = (
    r"(?:[\s*_`\"'$(\[{]|\\\(|\\\[|\\left\s*|\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|bf|rm|"
    r"boldsymbol|bm|underline|emph)\s*\{?|\\[,;! ]){0,8}"
)
# Behind the letter comes its dress, an end of the sentence, or a word that goes on about it: the
# article of "a quark" and the pronoun of "I think" are no letters.
_AFTER = (
    r"(?=\s*(?:$|[)\]}*_`\"'$.:,;!?\n|]|\\|[-–—]|because\b|since\b|as\b|and\b|for\b|which\b|with\b"
    r"|due\b|is\b|option\b|so\b|[(=]))"
)
_ALONE = r"(?![^\W_]|[’'/&+])(?!\s*[,/&]\s*[A-J]\b|\s+(?:and|or)\s+[A-J]\b)"
_LETTER = rf"{_WRAP}(?P<letter>[A-J]){_ALONE}{_AFTER}"
_NAMED = r"(?:(?:option|choice|letter|answer)\b[\s:*_]*)?"
_SAYS = (
    r"(?:\s*(?:letter|choice|option))?[\s*_`]*(?:(?:must|should|would|will)\s+)?"
    r"(?:(?:is|be|are|equals)\b|[:=]|是|为|為)"
)
LETTER_PHRASES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?:\banswer\b(?:\s*\([^()\n]{{0,40}}\))?(?:\s+(?:to|of|for)\b[^.\n]{{0,80}}?)?"
        rf"|\b(?:correct|right|best|final|chosen|selected)\s+(?:option|choice|letter|answer)\b"
        rf"|\b(?:option|choice)(?=\s*(?:is|:)\s)|答案|正确选项|正確選項)"
        rf"{_SAYS}[\s:*_`]*(?:(?:indeed|therefore|thus|clearly|simply|most likely)[\s,:]+)?"
        rf"(?:the\s+)?{_WRAP}{_NAMED}{_LETTER}",
        rf"\b(?:choose|select|pick|chose|selected|picked|go with|going with)\s+(?:the\s+)?"
        rf"{_WRAP}{_NAMED}{_LETTER}",
        rf"(?:\b(?:option|choice|answer|statement)\s+|(?<![\w])){_LETTER}[)\]}}*_`\"'$\s.]*(?:[^.\n]{{0,60}}?\s)?"
        r"is\s+(?:therefore\s+|thus\s+|indeed\s+|clearly\s+)?"
        r"(?:the\s+)?(?:only\s+)?(?:correct|right|best)\b",
    )
)
ONLY_A_LETTER = re.compile(rf"{_WRAP}([A-Ja-j])[\s)\]}}*_`\"'$.\\]*")
IN_A_BOX = re.compile(
    rf"{_WRAP}(?:(?:option|choice|answer)\b[\s:]*)?{_WRAP}(?P<letter>[A-J]){_ALONE}"
    r"(?=\s*(?:$|[)\]}*_`\"'$.:,;|=(-]|\\|[–—]))",
    re.IGNORECASE,
)


def letter_of(text: str) -> str | None:
    """The letter that a text chooses, A to J in upper case; None where it chooses none.

    The last box that holds a letter, in whatever dress and whatever follows it; else the last of
    the usual phrases; else the text itself where it is nothing but a letter.
    """
    text = tidy(text)
    for _, _, content in reversed(boxes(text)):
        if found := IN_A_BOX.match(content):
            return found["letter"].upper()
    phrases = [
        (one.start("letter"), one["letter"])
        for pattern in LETTER_PHRASES
        for one in pattern.finditer(text)
        if not _negated(text, one)
    ]
    if phrases:
        return max(phrases)[1].upper()
    only = ONLY_A_LETTER.fullmatch(text)
    return only[1].upper() if only else None


def _negated(text: str, phrase: "re.Match[str]") -> bool:
    """Whether a phrase says no: "is not the right one", "I would not choose"."""
    before = text[max(0, phrase.start() - 24) : phrase.start()]
    return bool(
        re.search(r"\b(?:not|never)\b|n't\b", phrase[0], re.IGNORECASE)
        or re.search(r"(?:\bnot|\bnever|n't|\bcannot)\s*$", before, re.IGNORECASE)
    )
