"""Where a text's answer is: after the thinking, in a box, or behind an answer phrase.

Knows no task and no tokenizer, and computes nothing: whether an answer is right is said elsewhere.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from tokenlens.spec import PhaseConfig
from tokenlens.spec.phase import NONE, markers_in

END_MARKS = re.compile(
    r"<\|[A-Za-z_]+\|>|</?s>|<｜[^｜]+｜>|<(?:start|end)_of_turn>|<turn\|>|<eos>"
)
"""Ends of turn of the usual chat templates: no part of an answer."""

TURN_ENDS = ("<|end|>", "<|eom|>", "<|im_end|>", "<|end_message|>", "<|eot_id|>")
"""Markers of the end of a thought that end an answer as well."""

FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
"""Opens what a model that writes in channels means for its reader."""


BoxUse = Literal["first", "last", "none"]
"""Whether a box is looked for before phrases, after them, or not at all."""


class AnswerMarkers(NamedTuple):
    """What opens and what ends a thought, as text."""

    start: str | tuple[str, ...] = "<think>"
    end: str | tuple[str, ...] = "</think>"


class Answer(str):
    """A text whose thinking has been cut off: it is not looked for again."""

    __slots__ = ()


def markers_of(phase: PhaseConfig, decode: Callable[[Sequence[int]], str] | None) -> AnswerMarkers:
    """A phase's markers as text; where it does not say, those of most families.

    A phase without markers has none but the text that ends its thinking, if it names one.

    Raises
    ------
    ValueError
        They are token ids, and there is no tokenizer to write them.
    """
    texts: dict[str, list[str]] = {"start": [], "end": []}
    for name, given in (("start", phase.think_start), ("end", phase.think_end)):
        for marker in markers_in(given):
            if isinstance(marker, str):
                texts[name].append(marker)
                continue
            if decode is None:
                raise ValueError(
                    f"phase.think_{name}: got {list(marker)}; allowed: a text, because this engine"
                    " has no decode() that says what these ids write"
                )
            texts[name].append(decode(list(marker)))
    several = {name: tuple(found) for name, found in texts.items() if found}
    if phase.opens == "first_token":
        several.setdefault("start", ())
    if phase.markers == NONE:
        several.setdefault("end", ())
        return AnswerMarkers(**several)
    return AnswerMarkers(**{name: f[0] if len(f) == 1 else f for name, f in several.items()})


def is_open(prompt: str, message: str, markers: AnswerMarkers) -> bool:
    """Whether a rendered prompt opens a thought behind the user's message and leaves it open."""
    own = prompt.rpartition(message.strip())[2] if message.strip() else prompt
    places = [mark.end for mark in _marks(own, markers)]
    return bool(places) and not places[-1]


NO_MARKERS = AnswerMarkers()


def answer_part(text: str, markers: AnswerMarkers = NO_MARKERS, opened: bool = False) -> Answer:
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
            opened
            or not set(_all(markers.end)) & set(TURN_ENDS)
            or END_MARKS.sub("", text[mark.after :]).strip()
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


def _all(marker: str | tuple[str, ...]) -> tuple[str, ...]:
    return (marker,) if isinstance(marker, str) else marker


def _marks(text: str, markers: AnswerMarkers) -> Iterator[_Mark]:
    """Every marker of a text; of two that begin at one place the longer is meant."""
    both = {_pattern(one): False for one in _all(markers.start)}
    both |= {_pattern(one): True for one in _all(markers.end)}
    if not both:
        return
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


BRACES = re.compile(r"\\(?:boxed|f(?:rame)?box)\s*\{|\\.|[{}]", re.DOTALL)
BETWEEN = re.compile(r"[\s$.&]*(?:,|;|\band\b|\bor\b|\\text\{\s*(?:and|or)\s*\})[\s$,&]*")
"""What stands between boxes that are one answer of several values."""

_DRESS = r"[\s*_`\"'$:=#]|\\\(|\\\[|\\(?:quad|,|;|!| )"
_ANSWER = (
    r"(?:(?<![A-Za-z])answer\b|\b(?:respuesta|réponse|antwort|risposta|resposta|ответ)\b|答案|答え|정답|正解)"
    r"[\"']?(?:\s+(?:correct[ae]?|corretta|correta|finale?))?"
    r"(?:\s*\([^()\n]{0,40}\))?(?:\s+(?:to|of|for)\b[^.\n]{0,80}?)?"
)
_WOULD = (
    r"(?:(?:will|would|must|should|could|might|may|has to|seems to|appears to|turns out to)\s+)?"
)
_IS = (
    r"(?:(?:is|are|was|equals|be|becomes|es|est|ist)\b(?!n't)|è\s|é\s|[:=]>?|[→⇒]|->|应为|應為|是|为|為"
    r"|は|은|는)"
)
_SURELY = (
    r"(?:(?:indeed|therefore|thus|hence|then|clearly|simply|exactly|just|actually|definitely"
    r"|certainly|obviously|precisely|probably|approximately|(?:most )?likely|given by)\b"
    r"[\s,:*_]*){0,3}"
)
# A line of its own above the answer, or "Answer - " before it.
_HEADING = (
    r"(?:^|\n)[ \t#>*_`-]*(?:(?:the|my|final|correct)\s+){0,2}answer"
    r"(?:[ \t*_`]*\n|[ \t*_`]*[-–—][ \t]+|[ \t*_`]+(?=[-+−]?\d|\\|\$))"
)
PHRASE = re.compile(
    rf"(?:{_ANSWER}[\s*_`]*{_WOULD}{_IS}|{_HEADING}|(?<!\#)\#{{4}}(?!\#|\s*\d+[.)]\s))(?:{_DRESS})*[\s,]*{_SURELY}"
    rf"(?:{_DRESS})*"
    # A value: a number, LaTeX, or an expression that begins with a name. What comes behind it on
    # its line may hold a later phrase.
    r"(?=(?P<value>(?:[A-Za-z]\s*=\s*)?(?:[-+]\s*|(?:negative|minus)\s+)?(?:\\?[$€£¥]\s*)?"
    r"(?:[-+]\s*)?(?:\.?\d|\\[A-Za-z]|[(\[{]|[A-Za-z]\s*(?:\^|[-+*/]\s*[\dA-Za-z]\b))[^\n]*))",
    re.IGNORECASE,
)
BARE = re.compile(
    rf"(?:{_DRESS})*(?:[A-Za-z]\s*=\s*)?"
    r"([-+]?\s*(?:\\[dt]?frac\s*(?:\d|\{\d+\})\s*(?:\d|\{\d+\})|\.?\d(?:[\d,./]|\{,\})*))"
    rf"(?:{_DRESS}|\.|\\\)|\\\])*"
)
FALSE_OF = re.compile(
    r"\b(?:wrong|incorrect|false|bad|no)\s+(?:final\s+)?$|\bwrong to say\b[^.\n]*$", re.IGNORECASE
)
TAKEN_BACK = re.compile(
    r"[^.,;(\n?]{0,24}?\b(?:is|are|was)(?:\s+not\b|n't\b|\s+(?:wrong|incorrect|false)\b)",
    re.IGNORECASE,
)
NUMBER = re.compile(
    r"(-?)\s*(?:\\?[$€£¥])?\s*(-?(?:\d[\d,]*(?:\.\d+)?|\.\d+))(?!,?\s*-?\d|,?\s*(?:and|or)\b)(?=\s*(?:[(°,;]|[A-Za-z]{2}|$)|\s+[A-Za-z])"
)


def math_answer(text: str, box: BoxUse = "first") -> str | None:
    """What a mathematical text gives as its answer, as LaTeX or plain text; None without one.

    The last box (several joined by commas or "and" are one answer); else the value directly behind
    the last answer phrase, such as "the final answer is", "**Answer:**" or "####"; else the text
    itself where it is nothing but a number. A number elsewhere is no answer. ``box`` puts the box
    behind these, or takes it away; one that stands behind a phrase is that phrase's value.
    """
    text = tidy(text)
    found = boxes(text)
    if found and box == "first":
        return _boxed(text, found)
    phrases = [one for one in PHRASE.finditer(text) if _stands(text, one)]
    if phrases:
        return _value(phrases[-1]["value"])
    bare = BARE.fullmatch(text)
    if bare is not None:
        return _value(bare[1])
    return _boxed(text, found) if found and box == "last" else None


def _boxed(text: str, found: Sequence[tuple[int, int, str]]) -> str:
    """The last box, with those that are one answer with it."""
    group = [found[-1]]
    for one in reversed(found[:-1]):
        if not BETWEEN.fullmatch(text[one[1] : group[0][0]]):
            break
        group.insert(0, one)
    contents = list(dict.fromkeys(plain(content) for _, _, content in group))
    return ", ".join(f"\\boxed{{{content}}}" for content in contents)


def _stands(text: str, phrase: "re.Match[str]") -> bool:
    """Whether a phrase is said of the answer: it is no wrong one, and not taken back."""
    before = text[max(0, phrase.start() - 40) : phrase.start()]
    return not FALSE_OF.search(before) and not TAKEN_BACK.match(phrase["value"])


def _value(value: str) -> str:
    """What a phrase gives, as the parser reads it."""
    value = re.sub(r"^(?:negative|minus)\s+", "-", value, flags=re.IGNORECASE)
    value = re.sub(r"^([-+]?)\s*\\?[$€£¥]\s*", r"\1", value)
    value = re.split(r"\$|\\\)|\\\]|[*_`]{2}|[\"。<]|[.?!](?=\s|$)|,\s+(?=[a-z])", value)[0]
    value = plain(value.rstrip("*_`, "))
    number = NUMBER.match(value)
    if number is not None:
        # What follows is a unit, or goes on about it.
        return number[1] + number[2]
    # An outcome without spaces in words is an expression.
    return f"${value}$" if "\\" in value or not re.search(r"[A-Za-z]{3}", value) else value


def plain(latex: str) -> str:
    """An expression without spacing, units with powers and a full stop, which parsers trip over."""
    latex = re.sub(r"(?<=\d)(?:\\[,!;: ]|\{,\}|\\ )(?=\d{3}(?!\d))", "", latex)
    latex = re.sub(
        r"^\s*[-+]?\d{1,3}(?: \d{3})+\s*$", lambda found: found[0].replace(" ", ""), latex
    )
    latex = re.sub(rf"\\{COLOURS}\s*\{{\w+\}}", "", latex).replace("{-}", "-")
    latex = re.sub(
        r"^\s*(?:\\text\s*\{)?\s*(?:the\s+)?(?:final\s+)?answer\s*(?:is|[:=])\s*\}?",
        "",
        latex,
        flags=re.IGNORECASE,
    )
    latex = latex.strip().strip("*")
    latex = re.sub(
        r"(?<=[\d}])\s*~?\s*\\(?:text|mathrm)\{[^{}]*\}\s*\^\s*(?:\{\d\}|\d)$", "", latex
    )
    return latex.strip().rstrip(".").strip()


COLOURS = r"(?:text)?color(?:box)?"
QUOTES = str.maketrans(
    dict.fromkeys("“”„‟«»‹›‘‚‛’", '"') | {"’": "'"} | dict.fromkeys("−﹣‑‒", "-")
)
# Characters without width; pictures; what is struck out; elements of HTML that only dress.
UNSEEN = re.compile(r"[\u00ad\u200b-\u200f\u2060-\u2064\ufeff\ufe0e\ufe0f]")
PICTURES = re.compile(
    r"[\u2600-\u27bf\U0001f000-\U0001f0ff\U0001f200-\U0001faff]|~~[^~\n]{1,80}~~"
    r"|</?(?:b|i|u|em|strong|code|mark|span|p|br|div|center)\b[^<>\n]{0,80}>",
    re.IGNORECASE,
)


def tidy(text: str) -> str:
    """The usual characters for others of their meaning, and no long runs of dress or blanks."""
    text = "".join(map(_usual, UNSEEN.sub("", text))).translate(QUOTES)
    text = PICTURES.sub(" ", text)
    text = re.sub(r"√\s*(?:\(([^()\n]{1,80})\)|(\d+|\w))", r"\\sqrt{\1\2}", text)
    text = re.sub(r"<(?:final_?)?answer>", "\nanswer: ", text, flags=re.IGNORECASE)
    text = re.sub(r"</(?:final_?)?answer>", "\n", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=[^\w)])[–—](?=\d)", "-", text)
    # LaTeX takes one character without braces.
    text = re.sub(
        r"\\(?:boxed|f(?:rame)?box)\s*(?:(?<=\s)|(?=\d))([-+]?\d[\d,./]*(?<=\d)|[A-J]\b)",
        r"\\boxed{\1}",
        text,
    )
    # Patterns below try every way to share a run; with short ones that costs nothing.
    return re.sub(r"([\s*_`$({\[])\1{2,}", r"\1\1", re.sub("#{5,}", "#####", text))


def _usual(c: str) -> str:
    if c < "\x80":
        return c
    if "！" <= c <= "～":
        return chr(ord(c) - 0xFEE0)
    if c in "\xa0\u2009\u202f\u2007":
        return " "
    known = {
        "π": "\\pi ",
        "∞": "\\infty ",
        "⁄": "/",
        "÷": "/",
        "×": "\\times ",
        "·": "\\cdot ",
        "°": "^\\circ",
    }
    if c in known:
        return known[c]
    # Letters and digits in bold, in circles and the like; fractions.
    if (
        "\U0001d400" <= c <= "\U0001d7ff"
        or "\u2474" <= c <= "\u24ea"
        or "\U0001f110" <= c <= "\U0001f149"
    ):
        return unicodedata.normalize("NFKC", c)
    if c in "¼½¾" or "⅐" <= c <= "⅞":
        over, under = unicodedata.normalize("NFKC", c).split("⁄")
        return f"\\frac{{{over}}}{{{under}}}"
    return c


_FONT = (
    r"\\(?:(?:text)?color(?:box)?\s*\{\w+\}|left|text[a-z]*|math[a-z]+|[mh]box|operatorname\*?|bf|rm|it|sf|tt|boldsymbol|bm|underline|emph"
    r"|huge|large|normalsize|displaystyle|textstyle)"
)
_WRAP = rf"(?:[\s*_`\"'$(\[{{<]|\\\(|\\\[|{_FONT}\s*\{{?|\\[,;! ]){{0,8}}"
# Behind the letter comes its dress, an end of the sentence, or a word that goes on about it: the
# article of "a quark" and the pronoun of "I think" are no letters.
_AFTER = (
    r"(?=\s*(?:$|[)\]}*_`\"'$.:,;!?\n|<>]|[。、）】」぀-ヿ一-鿿가-힯]|\\|[-–—](?!\w)|because\b|since\b|as\b|and\b"
    r"|for\b|which\b|with\b|due\b|is\b|option\b|so\b|but\b|rather than\b|instead of\b"
    r"|(?:must|should) be\b|[(=]))"
)
_ALONE = (
    r"(?![0-9A-Za-zÀ-ɏͰ-ӿ₀-₉⁰-⁹]|[’'](?=\w)|[/&+])(?!\s*[,/&]\s*[A-J]\b|\s+(?:and|or)\s+[A-J]\b)"
)
_LETTER = rf"{_WRAP}(?P<letter>[A-J]){_ALONE}{_AFTER}"
_LINE_END = r"(?=[\s)\]}*_`\"'$.!]*(?:$|\n))"
_NAMED = r"(?:(?:(?:answer\s+)?(?:option|choice|letter|answer)\b|选项|選項)[\s:*_]*)?"
_SAYS = rf"(?:\s*(?:letter|choice|option))?[\s*_`]*{_WOULD}{_IS}"
LETTER_PHRASES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?:{_ANSWER}|\b(?:correct|right|best|closest|final|chosen|selected)\s+(?:option|choice|letter|answer|match)\b"
        rf"|[\"']?\b(?:option|choice|letter|selection|selected|conclusion)\b[\"']?(?=\s*(?:is\b|:)\s*)|正确选项|正確選項)"
        rf"{_SAYS}[\s:*_`,]*{_SURELY}"
        rf"(?:the\s+)?{_WRAP}{_NAMED}{_LETTER}",
        r"(?:\b(?:choose|select|pick|chose|selected|picked|go(?:ing)? with|go for)\s+(?:the\s+)?"
        rf"|(?:答案|故|应|應|因此|所以|我)[,\s]*(?:选择|選擇|选|選)\s*:?\s*|(?:^|\n)\s*(?:选择|选)\s*:?\s*)"
        rf"{_WRAP}{_NAMED}{_LETTER}",
        rf"(?:\b(?:option|choice|answer|statement)\s+|(?<![\w])){_LETTER}[)\]}}*_`\"'$\s.]*(?:[^.\n]{{0,60}}?\s)?"
        r"(?:is|(?:must|should) be)\s+(?:therefore\s+|thus\s+|indeed\s+|clearly\s+)?"
        r"(?:the\s+)?(?:only\s+)?(?:(?:correct|right|best)\b|(?:final\s+)?answer\b)",
        rf"{_HEADING}{_WRAP}{_NAMED}{_LETTER}",
        r"(?:^|\n)[ \t#>*_`-]*(?:(?:the|my|final|correct)\s+){0,2}(?:answer|option|choice)"
        rf"[\s*_`]+{_WRAP}(?P<letter>(?-i:[A-J])){_ALONE}{_LINE_END}",
        r"(?:\b(?:so|thus|hence|therefore|corresponds to|matches)\b|因此|所以)[,:\s*_]*"
        rf"(?:it is\s+|it's\s+|the\s+)?{_WRAP}{_NAMED}{_WRAP}(?P<letter>(?-i:[A-J])){_ALONE}"
        rf"{_LINE_END}",
    )
)
ONLY_A_LETTER = re.compile(
    rf"{_WRAP}{_NAMED}{_WRAP}(?P<letter>[A-J])[\s)\]}}*_`\"'$.\\]*", re.IGNORECASE
)
OPENS_WITH_ONE = re.compile(rf"{_WRAP}(?P<letter>[A-J])[\s*_]*[).:\]](?!\w)[^\n]*")
ANOTHER = re.compile(r"\b[A-J][).:\]](?!\w)")
IN_A_BOX = re.compile(
    rf"{_WRAP}(?:(?:option|choice|answer)\b[\s:]*)?{_WRAP}(?P<letter>[A-J]){_ALONE}"
    r"(?=\s*(?:$|[)\]}*_`\"'$.:,;|=(-]|\\|[–—]))",
    re.IGNORECASE,
)


def letter_of(text: str, box: BoxUse = "first") -> str | None:
    """The letter that a text chooses, A to J in upper case; None where it chooses none.

    The last box that holds a letter, in whatever dress and whatever follows it; else the last of
    the usual phrases; else the last line where that, and no line before it, is nothing but a
    letter; else the letter that a text of one line begins with. ``box`` puts the box behind these,
    or takes it away.
    """
    text = tidy(text)
    if box == "first" and (found := _boxed_letter(text)) is not None:
        return found
    found = _unboxed_letter(text)
    return _boxed_letter(text) if found is None and box == "last" else found


def _boxed_letter(text: str) -> str | None:
    for _, _, content in reversed(boxes(text)):
        bare = re.sub(rf"{_FONT}|[{{}}$]", " ", content, flags=re.IGNORECASE)
        if found := IN_A_BOX.match(bare):
            return found["letter"].upper()
        if (said := _said(bare)) is not None:
            return said
    return None


def _unboxed_letter(text: str) -> str | None:
    if (said := _said(text)) is not None:
        return said
    lines = [line for line in text.split("\n") if re.search(r"\w", line)]
    alone = [(i, one) for i, line in enumerate(lines) if (one := ONLY_A_LETTER.fullmatch(line))]
    if len(alone) == 1 and alone[0][0] == len(lines) - 1:
        return alone[0][1]["letter"].upper()
    opens = OPENS_WITH_ONE.fullmatch(text.strip())
    if opens is not None and len(ANOTHER.findall(text)) < 2:
        return opens["letter"].upper()
    return None


def _said(text: str) -> str | None:
    phrases = [
        (one.start("letter"), one["letter"])
        for pattern in LETTER_PHRASES
        for one in pattern.finditer(text)
        if not _negated(text, one)
    ]
    return max(phrases)[1].upper() if phrases else None


def _negated(text: str, phrase: "re.Match[str]") -> bool:
    """Whether a phrase says no: "is not the right one", "I would not choose", "the wrong one"."""
    before = text[max(0, phrase.start() - 24) : phrase.start()]
    return bool(
        re.search(r"\b(?:not|never)\b|n't\b", phrase[0], re.IGNORECASE)
        or re.search(r"(?:\bnot|\bnever|n't|\bcannot)\s*$", before, re.IGNORECASE)
        or FALSE_OF.search(before)
        or TAKEN_BACK.match(text[phrase.end("letter") :])
    )
