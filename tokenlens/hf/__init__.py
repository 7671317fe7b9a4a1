"""tokenlens inside stock Hugging Face ``generate()``.

``model.generate(**inputs, **generate_kwargs(model, tokenizer, spec))`` and nothing else: no
subclass, no patched class, nothing left on the model afterwards.
"""

from tokenlens.errors import ProtocolError, UnsupportedError
from tokenlens.hf.generate import generate_kwargs, traces
from tokenlens.hf.routed import routed_generate_kwargs
from tokenlens.hf.steered import steered_generate_kwargs
from tokenlens.hf.think_at_hard.generate import think_at_hard_generate_kwargs
from tokenlens.hf.verify import Verification, verify_trace

__all__ = [
    "ProtocolError",
    "UnsupportedError",
    "Verification",
    "generate_kwargs",
    "routed_generate_kwargs",
    "steered_generate_kwargs",
    "think_at_hard_generate_kwargs",
    "traces",
    "verify_trace",
]
