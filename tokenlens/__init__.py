"""tokenlens: decoding methods for reasoning models, inside the engines that people already run.

Importing this package imports pydantic and nothing heavier. The engines live in their own rooms
(``tokenlens.hf``, later ``tokenlens.vllm`` and ``tokenlens.sglang``) and import torch themselves.
"""

from tokenlens.spec import DecodingSpec, SpecError, load_spec, parse_spec, preset

__version__ = "0.1.0"

__all__ = ["DecodingSpec", "SpecError", "__version__", "load_spec", "parse_spec", "preset"]
