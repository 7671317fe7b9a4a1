"""A spec as the ``extra_args`` of a vLLM request. Knows no vLLM.

The other ways to ask are described in :mod:`tokenlens.serving.arguments`.
"""

from collections.abc import Mapping
from typing import Any

from tokenlens.serving.arguments import KEY
from tokenlens.spec import DecodingSpec, parse_spec


def extra_args(spec: DecodingSpec | Mapping[str, Any] | str) -> dict[str, Any]:
    """Arguments that make vLLM decode one request as a spec says.

    Parameters
    ----------
    spec
        A spec, a mapping, a JSON text, or the name of a preset.

    Returns
    -------
    dict
        For ``SamplingParams(extra_args=...)``, and for the field ``vllm_xargs`` of a request.

    Raises
    ------
    SpecError
        Names each wrong field.

    Examples
    --------
    >>> list(extra_args("qwen3-soft"))
    ['tokenlens']
    """
    return {KEY: parse_spec(spec).model_dump_json(exclude_defaults=False)}
