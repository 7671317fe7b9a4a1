"""A decoding spec for the two models' servers, which a request brings beside its route.

The router carries out none itself. It hands one on to servers that carry it out, in the field that
each of them reads it from, and refuses it before anything is written where one of them would not.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from tokenlens.errors import SpecError
from tokenlens.routing.facts import Fact, Trip
from tokenlens.routing.fields import shown
from tokenlens.routing.settings import Sampling
from tokenlens.spec import parse_spec

SpecField = Literal["vllm_xargs", "custom_params"]
FIELDS: dict[str, SpecField] = {"vllm": "vllm_xargs", "sglang": "custom_params"}
"""Where a server reads specs, by what it says it is."""

KEY, PREFIX = "tokenlens", "tokenlens_"
MAX_ARGUMENTS = 64
PROBE = "tokenlens_router_probe"
"""A method that nobody has: who carries specs out refuses it by its name."""


NO_TOKEN = 10_000_000
"""An id that no vocabulary has: who carries a tripwire out refuses it by the field's name."""


def arguments(given: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """What a request asks of its servers, by either field's name; empty if nothing.

    Raises
    ------
    SpecError
        It is no spec, or asks for what the router cannot hand back.
    """
    asked = {field: value for field, value in given.items() if value}
    if not asked:
        return {}
    if len(asked) > 1:
        raise SpecError.of(" and ".join(asked), "both", "one of them; the router knows its servers")
    ((field, values),) = asked.items()
    assert values is not None
    if len(values) > MAX_ARGUMENTS:
        raise SpecError.of(field, f"{len(values)} keys", f"at most {MAX_ARGUMENTS}")
    for name in values:
        if name != KEY and not name.startswith(PREFIX):
            allowed = f"{KEY} and names that begin with {PREFIX}; others are not known to arrive"
            raise SpecError.of(f"{field}.{shown(name)}", "an unknown key", allowed)
        if name.startswith(PREFIX + "trace"):
            raise _no_trace(f"{field}.{shown(name)}")
    spec = values.get(KEY)
    if spec is not None:
        if not isinstance(spec, (str, Mapping)):
            allowed = "the name of a preset, a spec as JSON text, or a mapping"
            raise SpecError.of(f"{field}.{KEY}", spec, allowed)
        if len(spec if isinstance(spec, str) else json.dumps(spec)) > 64 << 10:
            raise SpecError.of(f"{field}.{KEY}", "a spec that is too long", "at most 64 KiB")
        if parse_spec(spec).trace.level == "full":
            raise _no_trace(f"{field}.{KEY}.trace")
    return dict(values)


def _no_trace(field: str) -> SpecError:
    allowed = "leave it out: the router hands on no trace of its servers' calls"
    return SpecError.of(field, "a trace", allowed)


def written(values: Mapping[str, Any], field: SpecField) -> dict[str, Any]:
    """As one server's request has it: vLLM's field holds texts and numbers only."""
    if field == "custom_params":
        return {field: dict(values)}
    texts = {
        name: json.dumps(value) if isinstance(value, (Mapping, bool)) or value is None else value
        for name, value in values.items()
    }
    return {field: texts}


def tripwire(trip: Trip, how: Sampling, *, warped: bool) -> dict[str, Any]:
    """A condition as a server with tokenlens is asked for it, beside whatever else it is asked.

    Parameters
    ----------
    warped
        Whether it is about the distribution after temperature and filters; greedy requests have
        none.
    """
    fields: dict[str, Any] = {"entropy": trip.entropy}
    if warped and how.temperature != 0:
        fields |= {
            "temperature": 1.0 if how.temperature is None else how.temperature,
            "top_k": how.top_k or 0,
            "top_p": 1.0 if how.top_p is None else how.top_p,
        }
    found = {f"{PREFIX}tripwire.{name}": value for name, value in fields.items()}
    return {**found, f"{PREFIX}trace.level": "summary"}


def tripped(trace: Any) -> Fact | None:
    """The distribution at which a server's tripwire ended its answer, if it did.

    Parameters
    ----------
    trace
        As it came back, ``None`` if none did. Raises what plain look-ups raise where it is not one.
    """
    found = None if trace is None else trace["tripped"]
    if found is None:
        return None
    value = float(found["value"])
    if found["condition"] != "entropy" or not 0 <= value < float("inf"):
        raise ValueError("a tripwire that was not asked for")
    # The token that would have come is nobody's.
    return Fact(-1, 0.0, entropy=value)
