"""A spec as the ``custom_params`` of an SGLang request. Knows no SGLang.

SGLang carries ``custom_params`` (any JSON object) from each of its front doors to the engine::

    {"tokenlens": "qwen3-soft"}                                    a preset
    {"tokenlens": {"methods": [{"method": "soft_thinking"}]}}      a spec

The flat fields that :mod:`tokenlens.serving.arguments` describes work as well.
"""

from collections.abc import Mapping
from typing import Any

from tokenlens.serving.arguments import KEY
from tokenlens.spec import DecodingSpec, parse_spec


def custom_params(spec: DecodingSpec | Mapping[str, Any] | str) -> dict[str, Any]:
    """Parameters that make SGLang decode one request as a spec says.

    Parameters
    ----------
    spec
        A spec, a mapping, a JSON text, or the name of a preset.

    Returns
    -------
    dict
        For ``sampling_params["custom_params"]``, and for the field ``custom_params`` of an
        OpenAI-compatible request.

    Raises
    ------
    SpecError
        Names each wrong field.

    Examples
    --------
    >>> list(custom_params("qwen3-soft"))
    ['tokenlens']
    """
    return {KEY: parse_spec(spec).model_dump(mode="json")}
