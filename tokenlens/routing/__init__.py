"""Step-level routing between a small and a large model.

The step loop (:class:`Router`) knows neither policies nor engines; backends for Hugging Face, for
OpenAI-compatible servers and for vLLM in this process are imported from their own modules.
"""

from tokenlens.errors import BackendError
from tokenlens.routing.backend import Ask, Backend, Chunk, Context
from tokenlens.routing.router import Routed, Router
from tokenlens.routing.settings import (
    POLICIES,
    AlwaysLarge,
    AlwaysSmall,
    GlimpRouter,
    RandomShare,
    RoutingSpec,
    Sampling,
    SpecReason,
    SpeculativeThinking,
    parse_routing,
)
from tokenlens.routing.signals import FirstTokenSignals
from tokenlens.routing.trace import RouteStep, RouteTrace
from tokenlens.routing.vocabulary import RouterVocabulary, same_vocabulary

Signals = FirstTokenSignals
Vocabulary = RouterVocabulary
"""Their names before 0.2, which go with 0.3."""

__all__ = [
    "POLICIES",
    "AlwaysLarge",
    "AlwaysSmall",
    "Ask",
    "Backend",
    "BackendError",
    "Chunk",
    "Context",
    "FirstTokenSignals",
    "GlimpRouter",
    "RandomShare",
    "RouteStep",
    "RouteTrace",
    "Routed",
    "Router",
    "RouterVocabulary",
    "RoutingSpec",
    "Sampling",
    "Signals",
    "SpecReason",
    "SpeculativeThinking",
    "Vocabulary",
    "parse_routing",
    "same_vocabulary",
]
