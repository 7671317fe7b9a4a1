"""Traces on their way back to the caller, in ``meta_info["tokenlens"]``. Knows no tensors."""

from collections.abc import Mapping
from typing import Any

from tokenlens.serving.arguments import KEY
from tokenlens.trace import Trace

ENGINE = "sglang"


def trace(output: Mapping[str, Any]) -> Trace | None:
    """The trace of a finished output.

    Parameters
    ----------
    output
        What ``Engine.generate`` or ``/generate`` gave for one prompt, or a choice of an
        OpenAI-compatible response as a mapping.

    Returns
    -------
    Trace or None
        ``None`` if the request had no spec, its spec says ``trace.level: off``, or it is not
        finished.

    Examples
    --------
    >>> trace({"text": "42", "meta_info": {}}) is None
    True
    """
    found = (output.get("meta_info") or {}).get(KEY)
    return None if found is None else Trace.model_validate_json(_json(found))


def _json(found: Any) -> str:
    import json

    # The models are strict: lists become tuples only on the way in from JSON.
    return json.dumps(found)
