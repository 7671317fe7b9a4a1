"""Log-probabilities of one event of a stream, in the shapes that servers give them.

* OpenAI's completions, which vLLM and SGLang follow: texts, and one mapping for each token;
* OpenAI's chat, which llama.cpp uses in completions, too: a list of entries, each with its own;
* llama.cpp's own: ``completion_probabilities`` with logarithms, before that with probabilities.

Knows no connection; what it does not know is a :class:`ShapeError`, never a guess.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tokenlens.errors import ShapeError

Ranked = tuple[tuple[str, float], ...]

# a rounding error above certainty is none; more than that is no logarithm of a probability
ROUNDING = 1e-3


def read(event: Mapping[str, Any], choice: Mapping[str, Any]) -> tuple[list[str], list[Ranked]]:
    """Texts of an event's tokens, and the most likely ones in the place of each, largest first.

    The second list is empty where the server gave no alternatives.

    Raises
    ------
    ShapeError
        Says what came instead.
    """
    facts = choice.get("logprobs")
    if facts is None:
        facts = choice.get("completion_probabilities", event.get("completion_probabilities"))
    if not facts:
        return [], []
    if isinstance(facts, Mapping):
        if isinstance(facts.get("content"), list):
            return _entries(facts["content"])
        if isinstance(facts.get("tokens"), list):
            top = facts.get("top_logprobs") or []
            if not isinstance(top, list):
                raise ShapeError(f"top_logprobs is {_name(top)}, not a list")
            words = [one if isinstance(one, str) else "" for one in facts["tokens"]]
            return words, [_ranked(one) for one in top]
        if facts.get("content", 0) is None:
            return [], []
        raise ShapeError(f"an object with the keys {_keys(facts)}")
    if isinstance(facts, list):
        return _entries(facts)
    raise ShapeError(_name(facts))


def _entries(entries: Sequence[Any]) -> tuple[list[str], list[Ranked]]:
    words: list[str] = []
    top: list[Ranked] = []
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise ShapeError(f"an entry is {_name(entry)}, not an object")
        words.append(_text(entry))
        found = next((entry[k] for k in ("top_logprobs", "top_probs", "probs") if k in entry), None)
        top.append(_ranked(found))
    return words, top if any(top) else []


def _ranked(candidates: Any) -> Ranked:
    """One token's alternatives: a mapping, or a list of mappings or entries; nothing where none."""
    pairs: list[tuple[str, float | None]] = []
    if candidates is None:
        return ()
    for one in candidates if isinstance(candidates, list) else [candidates]:
        if not isinstance(one, Mapping):
            raise ShapeError(f"an alternative is {_name(one)}, not an object")
        if "logprob" in one:
            pairs.append((_text(one), _number(one["logprob"])))
        elif "prob" in one:
            share = _number(one["prob"])
            # a share of zero is one that was not kept, whose logarithm nobody has
            pairs.append((_text(one), math.log(share) if share and share > 0 else None))
        else:
            pairs += [(str(text), _number(value)) for text, value in one.items()]
    found = [(text, value) for text, value in pairs if value is not None]
    if any(value > ROUNDING for _, value in found):
        raise ShapeError("a logarithm of a probability above 1")
    return tuple(sorted(((t, min(v, 0.0)) for t, v in found), key=lambda pair: -pair[1]))


def _text(entry: Mapping[str, Any]) -> str:
    text = next((entry[key] for key in ("token", "tok_str", "content", "text") if key in entry), "")
    return text if isinstance(text, str) else ""


def _number(value: Any) -> float | None:
    """A finite number, or nothing: JSON's null and NaN say that there is none."""
    if isinstance(value, Mapping) and "logprob" in value:
        value = value["logprob"]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ShapeError(f"a log-probability is {_name(value)}, not a number")
    number = float(value)
    return number if math.isfinite(number) else None


def _name(value: Any) -> str:
    return f"of the type {type(value).__name__}"


def _keys(facts: Mapping[str, Any]) -> str:
    return ", ".join(repr(str(key)[:20]) for key in list(facts)[:6])
