"""What a method is to the core: columns of state, and hooks that are called once a step.

Knows neither slots nor engines: a hook sees one step's rows and changes them in place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from tokenlens.core.columns import Field, Value
from tokenlens.core.layer_access import ModelShape
from tokenlens.core.proposal import Proposal, SignalRequest, Signals
from tokenlens.core.rows import Rows
from tokenlens.spec import DecodingSpec, Vocabulary
from tokenlens.spec.needs import Need
from tokenlens.spec.registry import AnyMethod


@dataclass(frozen=True)
class Admission:
    """What a method needs to know of a request, resolved, on the host."""

    spec: DecodingSpec
    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    vocab_size: int
    vocabulary: Vocabulary
    # whether tokens that are written while thinking leave it
    ends_thinking: Callable[[Sequence[int]], bool]
    # the tokens that end thinking, or that can only begin its end, in some state of the marker
    end_begins: tuple[int, ...]
    # token ids of the texts that the spec's methods force, by method name
    forced_texts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    # token ids of any other text, or a SpecError that names the field
    encode: Callable[[str, str], tuple[int, ...]] | None = None
    # what an operator's file has to fit; None where the engine lends no layers
    shape: ModelShape | None = None


class Method:
    """A decoding method. Every hook defaults to doing nothing, and masks with ``rows[self.on]``.

    Hooks run in the order in which they stand here; within one hook, methods run in the order of
    the registry.
    """

    name: str
    counters: ClassVar[Mapping[str, Field]] = {}
    """Columns that count something, by the name that traces and metrics give it."""
    outside: ClassVar[bool] = False
    """From outside the package: what it leaves behind is looked at before anybody uses it."""

    def __init__(self, name: str, *fields: Field) -> None:
        self.name = name
        self.on = Field(f"{name}.on", "bool", False, fixed=True)
        self.fields = (self.on, *fields)

    @property
    def records(self) -> tuple[str, ...]:
        """What the method may tell :meth:`Rows.record`: its own name, if it edits logits."""
        return (self.name,) if overrides(self, "edit") else ()

    def serves(self, config: AnyMethod) -> bool:
        """Whether this method carries a config out; several may share one."""
        return config.method == self.name

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        """Column values of a new request. Raises SpecError for what this model cannot do."""
        return {}

    def needs(self, config: AnyMethod) -> Need:
        """What a request with this config needs of the step; a step leaves out what none needs.

        What it needs of the engine, the config says itself.
        """
        return Need.NOTHING

    def edits(self, config: AnyMethod) -> bool:
        """Whether a request with this config needs the edit hook.

        It costs a look at every logit, and a copy of them where the engine keeps its own. True for
        every method that has one, unless it says otherwise.
        """
        return overrides(self, "edit")

    def control(self, rows: Rows) -> None:
        """May start a forced sequence, before anything looks at the logits."""

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        """Edited logits: the given tensor, or another one.

        Parameters
        ----------
        logits
            ``[num_rows, >= vocab_size]``, perhaps the engine's own, with rows of requests that
            asked for nothing. It must not be written to: a few logits are changed in the tensor
            that ``rows.edits.writable(logits, ids)`` gives, which keeps what they held; whole rows
            are edited in a new tensor, and ``torch.where(rows[self.on][:, None], ...)`` leaves the
            others alone. A method from outside is handed a copy, which it may write to.
        """
        return logits

    def request_signals(self, rows: Rows, request: SignalRequest) -> None:
        """Say what signals and which concept tokens the rows want."""

    def reweigh(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        """Change the concept weights."""

    def propose(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        """Decide which rows are latent and which tokens are forced.

        A latent row whose token is not forced is latent whatever the engine samples.
        """

    def gate(self, rows: Rows, signals: Signals, proposal: Proposal) -> None:
        """Turn latent rows discrete."""

    def commit(self, rows: Rows, before: Tensor, sampled: Tensor) -> None:
        """Advance the method's own state once the token is known.

        ``rows[PHASE]`` is already the phase after the token; ``before`` is the one it was in.
        ``rows.latent`` may still be taken back.
        """


HOOKS = ("control", "edit", "request_signals", "reweigh", "propose", "gate", "commit")


def overrides(method: Method, hook: str) -> bool:
    """Whether a method does anything in a hook."""
    return getattr(type(method), hook) is not getattr(Method, hook)
