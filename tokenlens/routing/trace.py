"""Who wrote what, and why: the record of one routed request."""

from typing import Literal

from pydantic import Field

from tokenlens.metrics import collector
from tokenlens.routing.settings import Role, RoutingSpec
from tokenlens.spec.base import StrictModel

SCHEMA_VERSION = 1

Handover = Literal["ids", "text"]


class Reading(StrictModel):
    """Text of one model that the other one read through its own tokenizer."""

    reader: Role
    written_tokens: int = Field(description="tokens that its writer used")
    read_tokens: int = Field(description="tokens that its reader makes of it")
    exact: bool = Field(description="whether the reader's tokens spell the same text")


class Piece(StrictModel):
    """Tokens in a row by one writer; ``router`` is text that the loop put in."""

    writer: Literal["small", "large", "router"]
    tokens: int


class RouteStep(StrictModel):
    """One step, or the answer."""

    index: int
    phase: Literal["thinking", "answer"]
    pieces: tuple[Piece, ...]
    text: str
    end: str = Field(description="boundary, think_end, eos, length, duplicate or budget")
    probe_tokens: int = Field(0, description="thrown away")
    draft_tokens: int = Field(0, description="thrown away")
    signal: float | None = Field(None, description="null also where it was not a number")
    signal_name: str | None = None
    threshold: float | None = None
    score: float | None = None
    cue: str | None = None
    fallback: str | None = Field(None, description="the failure that put the other model in")
    readings: tuple[Reading, ...] = ()
    seconds: float = 0.0


class ModelUsage(StrictModel):
    """What one model did for a request."""

    steps: int = Field(0, description="in which it wrote")
    tokens: int = Field(0, description="that are in the text")
    discarded_tokens: int = Field(0, description="probes and drafts that are not")
    calls: int = 0


class RouteTrace(StrictModel):
    """The record of one request."""

    schema_version: int = SCHEMA_VERSION
    spec: RoutingSpec
    handover: Handover
    finish_reason: str
    usage: dict[Role, ModelUsage]
    large_step_share: float = Field(description="of the thinking steps; a step with both counts")
    large_token_share: float
    steps: tuple[RouteStep, ...] = ()
    dropped_steps: int = 0


def report(trace: RouteTrace) -> None:
    """Add a finished request to the process's metrics."""
    metrics = collector("router")
    for role, usage in trace.usage.items():
        metrics.count("routed_steps", usage.steps, model=role)
        metrics.count("routed_tokens", usage.tokens, model=role)
        metrics.count("routed_discarded_tokens", usage.discarded_tokens, model=role)
    metrics.count("route_fallbacks", sum(step.fallback is not None for step in trace.steps))
