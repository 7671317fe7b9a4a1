"""tokenlens: decoding methods for reasoning models, inside the engines that people already run.

Importing this package imports pydantic and nothing heavier. The engines have packages of their own
(``tokenlens.hf``, ``tokenlens.vllm``, ``tokenlens.sglang``), which import torch themselves.
"""

from tokenlens.spec import DecodingSpec, SpecError, load_spec, parse_spec, preset

__version__ = "0.1.0"

__all__ = ["DecodingSpec", "SpecError", "__version__", "load_spec", "parse_spec", "preset"]
