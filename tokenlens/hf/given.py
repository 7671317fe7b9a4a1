"""What users give where a tokenizer or token ids are asked for."""

from typing import Any

import torch

from tokenlens.errors import UnsupportedError

WRAPPED = "PreTrainedTokenizerFast(tokenizer_object=...) around it"


def tokenizer_of(given: Any) -> Any:
    """The tokenizer of what may be a processor, which has it beside an image or audio processor.

    Raises
    ------
    UnsupportedError
        It is none and has none.
    """
    if given is None:
        return None
    for one in (given, getattr(given, "tokenizer", None), getattr(given, "_tokenizer", None)):
        # Texts have an `encode` too, and classes those of their objects.
        if isinstance(one, (str, bytes, type)) or not hasattr(one, "encode"):
            continue
        if type(one).__module__.partition(".")[0] == "tokenizers":
            raise _refusal(one, WRAPPED)
        if hasattr(one, "decode"):
            return one
    allowed = "the model's tokenizer or processor, as AutoTokenizer or AutoProcessor loads it"
    raise _refusal(given, f"{allowed}; None where the spec gives its markers as token ids")


def ids_of(value: Any) -> tuple[int, ...]:
    """Token ids that came as one, as several, or as a tensor, as ``generate()`` reads them."""
    if value is None:
        return ()
    return tuple(int(i) for i in torch.as_tensor(value).flatten().tolist())


def _refusal(given: Any, allowed: str) -> UnsupportedError:
    name = given.__name__ if isinstance(given, type) else type(given).__name__
    what = "the class " if isinstance(given, type) else "a "
    return UnsupportedError(f"tokenizer: got {what}{name}; allowed: {allowed}")
