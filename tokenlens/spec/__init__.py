"""What a request asks for: pydantic models, presets, JSON Schema. Knows no tensors, no engine.

The configs of single methods (``tokenlens.spec.SoftThinking``, ...) and the models in their fields
can be had here by their names, from whatever is registered (:mod:`tokenlens.spec.registry`).
"""

from typing import Any

from tokenlens.errors import SpecError, SpecProblem
from tokenlens.spec.base import MethodBase
from tokenlens.spec.decoding import DecodingSpec, TraceConfig
from tokenlens.spec.families import FAMILIES
from tokenlens.spec.load import load_spec, parse_spec
from tokenlens.spec.markers import Tokenizer, encode_text, resolve_marker
from tokenlens.spec.needs import NEEDS, Need, needs_of, refuse_needs
from tokenlens.spec.phase import PhaseConfig
from tokenlens.spec.presets import RECIPES, preset, preset_names
from tokenlens.spec.registry import METHOD_CONFIGS, MethodConfig, exported, exports
from tokenlens.spec.vocabulary import Vocabulary

__all__ = [
    "FAMILIES",
    "METHOD_CONFIGS",
    "NEEDS",
    "RECIPES",
    "DecodingSpec",
    "MethodBase",
    "MethodConfig",
    "Need",
    "PhaseConfig",
    "SpecError",
    "SpecProblem",
    "Tokenizer",
    "TraceConfig",
    "Vocabulary",
    "encode_text",
    "load_spec",
    "needs_of",
    "parse_spec",
    "preset",
    "preset_names",
    "refuse_needs",
    "resolve_marker",
]


def __getattr__(name: str) -> Any:
    found = exported(name)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *exports()})
