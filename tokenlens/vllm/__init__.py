"""tokenlens inside stock vLLM: ``LLM(model, logits_processors=["tokenlens.vllm:TokenLens"])``.

Importing this package imports neither vLLM nor torch: the class is made when somebody asks for it.
"""

from typing import TYPE_CHECKING, Any

from tokenlens.serving.settings import Settings
from tokenlens.vllm.arguments import extra_args
from tokenlens.vllm.traces import trace

if TYPE_CHECKING:
    from tokenlens.vllm.processor import TokenLens

__all__ = ["Settings", "TokenLens", "extra_args", "trace"]


def __getattr__(name: str) -> Any:
    if name != "TokenLens":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tokenlens.vllm.processor import TokenLens

    return TokenLens
