"""tokenlens: decoding methods for reasoning models, inside the engines that people already run.

Importing this package imports pydantic and nothing heavier. The engines have packages of their own
(``tokenlens.hf``, ``tokenlens.vllm``, ``tokenlens.sglang``), which import torch themselves.
"""

from tokenlens.errors import SpecError, TokenlensError, UnsupportedError

# Hands the spec the methods that it may name: the package below knows none of them.
from tokenlens.methods import registry as _registry  # noqa: F401
from tokenlens.spec import DecodingSpec, load_spec, parse_spec, preset

__version__ = "0.1.0"

__all__ = [
    "DecodingSpec",
    "SpecError",
    "TokenlensError",
    "UnsupportedError",
    "__version__",
    "load_spec",
    "parse_spec",
    "preset",
]
