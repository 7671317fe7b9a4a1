"""A spec's phase for one model: what it leaves open is found, what cannot be right is refused.

Knows no tokenizer library. What was found stands in the spec of the request's trace.
"""

from typing import Any

from tokenlens.spec.errors import SpecError
from tokenlens.spec.families import FAMILIES, TOOLS, Family
from tokenlens.spec.finding import EngineMarkers, Found, find_markers
from tokenlens.spec.markers import Tokenizer, encode_text, stands_alone
from tokenlens.spec.phase import AUTO, MAX_MARKERS, NONE, PhaseConfig, markers_in
from tokenlens.spec.turns import added_tokens


def resolve_phase(
    phase: PhaseConfig,
    tokenizer: Tokenizer | None,
    engine: EngineMarkers | None = None,
    *,
    strict: bool = True,
) -> PhaseConfig:
    """A phase with its markers filled in, as far as they can be found.

    Parameters
    ----------
    engine
        What the engine's reasoning parser says, where it was started with one.
    strict
        Refuse markers that are written out in pieces by a model that has a token for its own.

    Raises
    ------
    SpecError
        A family whose markers this tokenizer does not have, or a marker that it writes in several
        tokens while the model's own is a single one.
    """
    if phase.found is not None or tokenizer is None:
        return phase
    if phase.markers == NONE:
        return phase.model_copy(update={"found": "none"})
    starts = None if phase.opens == "first_token" else phase.think_start
    given = (phase.opens == "first_token" or starts is not None) and phase.think_end is not None
    found = None if given and _are_ids(phase) else find_markers(tokenizer, engine)
    if phase.markers != AUTO:
        if strict:
            _check_family(phase, FAMILIES[phase.markers], tokenizer, found)
        found = _named(FAMILIES[phase.markers], tokenizer)
    elif strict:
        _check_given(phase, tokenizer, found)
    values: dict[str, Any] = {"found": "spec" if given or found is None else found.by}
    if found is not None:
        if starts is None and phase.opens != "first_token" and found.starts:
            values["think_start"] = _folded(found.starts)
        if not found.starts:
            values["opens"] = "first_token"
        if phase.think_end is None:
            values["think_end"] = _folded(found.ends)
    if phase.tool_start is None:
        ends = markers_in(values.get("think_end", phase.think_end))
        begun = markers_in(values.get("think_start", phase.think_start))
        tools = found.tools if found is not None else _tools(tokenizer)
        tools = tuple(one for one in tools if one not in ends and one not in begun)
        if tools:
            values["tool_start"] = _folded(tools)
    if (found is None or given) and len(values) == 1:
        # As it was given; or nothing was found, and what asks for markers says so.
        return phase
    return phase.model_copy(update=values)


def _folded(texts: tuple[str, ...]) -> Any:
    return texts[0] if len(texts) == 1 else texts


def _are_ids(phase: PhaseConfig) -> bool:
    every = (*markers_in(phase.think_start), *markers_in(phase.think_end))
    return not any(isinstance(one, str) for one in every)


def _tools(tokenizer: Tokenizer) -> tuple[str, ...]:
    added = added_tokens(tokenizer)
    return tuple(one for one in TOOLS if one in added)[:MAX_MARKERS]


def _named(family: Family, tokenizer: Tokenizer) -> Found:
    added = added_tokens(tokenizer)
    tools = tuple(one for one in dict.fromkeys((*family.tools, *TOOLS)) if one in added)
    starts, ends = family.starts[:MAX_MARKERS], family.ends[:MAX_MARKERS]
    if family.written != "text":
        # Of several wordings those that this vocabulary has; the usual one in any case.
        starts = tuple(s for s in starts if s == starts[0] or _one(tokenizer, s))
        ends = tuple(e for e in ends if e == ends[0] or _one(tokenizer, e))
    return Found(starts, ends, tools[:MAX_MARKERS], "family")


def _one(tokenizer: Tokenizer, text: str) -> bool:
    return len(tokenizer.encode(text, add_special_tokens=False)) == 1


def _own(found: Found | None) -> str:
    if found is None:
        return "this model has none that can be found"
    starts = " or ".join(map(repr, found.starts)) or "nothing"
    return f"this model's own are {starts} and {' or '.join(map(repr, found.ends))}"


def _check_family(
    phase: PhaseConfig, family: Family, tokenizer: Tokenizer, found: Found | None
) -> None:
    """Refuse a family of single tokens where the tokenizer has to spell one of them."""
    if family.written == "text":
        return
    for marker in (*family.starts[:1], *family.ends[:1]):
        ids = tokenizer.encode(marker, add_special_tokens=False)
        if len(ids) > 1 and not any(stands_alone(tokenizer, int(token)) for token in ids):
            raise SpecError.of(
                "phase.markers",
                phase.markers,
                f"a family whose markers are tokens of this tokenizer ({marker!r} takes"
                f" {len(ids)} of it); {_own(found)}. Say phase: auto for the model's own, or phase:"
                " none for a model without any",
            )


def _check_given(phase: PhaseConfig, tokenizer: Tokenizer, found: Found | None) -> None:
    """Refuse a marker that has to be spelled where the model's own is one token."""
    if found is None:
        return
    for field, given, owns in (
        ("phase.think_start", phase.think_start, found.starts),
        ("phase.think_end", phase.think_end, found.ends),
    ):
        own = next((one for one in owns if _one(tokenizer, one)), None)
        texts = [marker for marker in markers_in(given) if isinstance(marker, str)]
        if own is None or any(own.strip() in text for text in texts):
            continue
        for marker in texts:
            ids = encode_text(tokenizer, marker, field)
            if len(ids) > 1 and not any(stands_alone(tokenizer, token) for token in ids):
                raise SpecError.of(
                    field,
                    marker,
                    f"{own!r}, the model's own marker, which is one token ({marker!r} takes"
                    f" {len(ids)}, which this model was not trained to write); or phase: auto",
                )
