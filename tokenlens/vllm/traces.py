"""Traces on their way back to the caller, as an attribute of vLLM's outputs. Knows no tensors."""

from typing import Any

from tokenlens.trace import Trace

ENGINE = "vllm"

FIELD = "tokenlens"
"""Name of what we add: an attribute of vLLM's outputs, and a field of HTTP responses."""

ATTRIBUTE = "tokenlens"
"""Name under which a report travels on vLLM's ``ModelRunnerOutput``."""

FAILED = "tokenlens_failed"
"""Name under which requests that cannot go on travel beside it."""


def trace(output: Any) -> Trace | None:
    """The trace of a finished output.

    Parameters
    ----------
    output
        A ``CompletionOutput`` (one of ``request_output.outputs``), or a ``RequestOutput``, whose
        first completion is then meant.

    Returns
    -------
    Trace or None
        ``None`` if the request had no spec, its spec says ``trace.level: off``, or it is not
        finished.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> trace(SimpleNamespace(outputs=[SimpleNamespace()])) is None
    True
    """
    completions = getattr(output, "outputs", None)
    completion = completions[0] if completions else output
    found = getattr(completion, FIELD, None)
    return found if isinstance(found, Trace) else None
