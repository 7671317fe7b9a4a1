"""The record of one steered request: who was asked what, what was kept, why it stopped."""

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from tokenlens.metrics import collector
from tokenlens.routing.settings import Role
from tokenlens.routing.trace import ModelUsage
from tokenlens.spec.base import StrictModel

SCHEMA_VERSION = 1
MAX_TEXT = 400
"""Characters of a node's text that are kept."""

Kind = Literal["line", "segment", "probe", "trial", "fork", "hint", "closing", "answer", "verdict"]


class Node(StrictModel):
    """One call, or text that no model wrote."""

    id: int
    parent: int | None
    kind: Kind
    at: int = Field(0, description="tokens of its line that stood before it")
    tokens: int = Field(0, description="that it wrote")
    kept: int = Field(0, description="of them, in the text that was returned")
    end: str = Field(
        "", description="why it ended: think_end, eos, stop, length, trip, pruned, ..."
    )
    text: str = ""
    value: float | None = Field(None, description="what was decided by: a score, an entropy, ...")
    note: str | None = None
    error: str | None = Field(None, description="the failure that ended it")


class SteerUsage(ModelUsage):
    """What one model did for a request; ``discarded_tokens`` are in no text that was returned."""


class SteerTrace(StrictModel):
    """The record of one request."""

    schema_version: int = SCHEMA_VERSION
    spec: Any = Field(description="the controller's spec")
    finish_reason: str
    stopped: str = Field(description="why the thinking, or the search, stopped")
    exact: bool = Field(True, description="false: a server of text was handed text")
    canonical: bool | None = Field(
        None, description="whether the text's own encoding is the ids; null: no ids"
    )
    usage: dict[Role, SteerUsage]
    injected_tokens: int = 0
    probes: int = 0
    forks: int = 0
    vote: dict[str, float] = Field({}, description="weight by answer, where there was a vote")
    nodes: tuple[Node, ...] = ()
    dropped_nodes: int = 0


@dataclass
class Mark:
    """A node while its request runs."""

    id: int
    parent: int | None
    kind: Kind
    at: int = 0
    tokens: int = 0
    kept: int = 0
    end: str = ""
    text: str = ""
    value: float | None = None
    note: str | None = None
    error: str | None = None

    def frozen(self) -> Node:
        """As the trace has it; no number that JSON cannot write."""
        values = dict(vars(self))
        values["text"] = self.text[:MAX_TEXT]
        value = self.value
        if value is not None and not abs(value) < float("inf"):
            values["value"] = None
        return Node(**values)


@dataclass
class Tree:
    """All nodes of one request, in the order in which they began."""

    most: int
    marks: list[Mark] = field(default_factory=list)

    def add(self, kind: Kind, parent: Mark | None, at: int = 0) -> Mark:
        """A new node."""
        mark = Mark(len(self.marks), parent.id if parent is not None else None, kind, at)
        self.marks.append(mark)
        return mark

    def nodes(self) -> tuple[Node, ...]:
        """As the trace has them; ids count in depth first order, whoever was answered first."""
        children: dict[int | None, list[Mark]] = {}
        for mark in self.marks:
            children.setdefault(mark.parent, []).append(mark)
        order: list[Mark] = []
        waiting = list(reversed(children.get(None, ())))
        while waiting:
            mark = waiting.pop()
            order.append(mark)
            waiting += reversed(children.get(mark.id, ()))
        number = {mark.id: at for at, mark in enumerate(order)}
        found = []
        for mark in order[: self.most]:
            node = mark.frozen()
            parent = None if mark.parent is None else number[mark.parent]
            found.append(node.model_copy(update={"id": number[mark.id], "parent": parent}))
        return tuple(found)


def report(trace: SteerTrace) -> None:
    """Add a finished request to the process's metrics."""
    metrics = collector("router")
    for role, usage in trace.usage.items():
        metrics.count("routed_steps", usage.steps, model=role)
        metrics.count("routed_tokens", usage.tokens, model=role)
        metrics.count("routed_discarded_tokens", usage.discarded_tokens, model=role)
    metrics.count("steer_probes", trace.probes)
    metrics.count("steer_forks", trace.forks)
    metrics.count("steer_injected_tokens", trace.injected_tokens)
    if trace.canonical is not None:
        metrics.count("checked_texts")
        metrics.count("uncanonical_texts", not trace.canonical)


def lines(trace: SteerTrace) -> list[str]:
    """The tree as text, a line a node."""
    depth: dict[int, int] = {}
    shown = []
    for node in trace.nodes:
        depth[node.id] = 0 if node.parent is None else depth.get(node.parent, 0) + 1
        facts = [f"{node.tokens} tokens"]
        if node.tokens and node.kept < node.tokens:
            facts.append(f"{node.tokens - node.kept} thrown away")
        facts += [node.end] if node.end else []
        facts += [f"{node.value:.4g}"] if node.value is not None else []
        facts += [one for one in (node.note, node.error) if one]
        text = f" {node.text[:60]!r}" if node.text else ""
        shown.append(f"{'  ' * depth[node.id]}{node.kind} @{node.at}: {', '.join(facts)}{text}")
    return shown
