"""What a method is to the core: columns of state, and hooks that are called once a step.

Knows neither slots nor engines: a hook sees one step's rows and changes them in place.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tokenlens.spec import DecodingSpec, Vocabulary
from tokenlens.spec.registry import AnyMethod

MAX_FORCED_TOKENS = 32
"""The longest sequence that a method may force."""

FORCED_LOGIT = 1e6
"""Far above any logit, far below float32's precision limit for the logits beside it."""


class Phase(IntEnum):
    """Where a request is. ``PROMPT`` lasts until the model opens its thinking."""

    PROMPT = 0
    THINKING = 1
    ANSWER = 2


Value = float | int | bool | Sequence[int]


@dataclass(frozen=True, eq=False)
class Field:
    """One named column (or run of columns) of the state, the same for every slot.

    A wide field lies in a table of its own, which a step reads only if a hook asks for it.
    ``infinite`` allows infinities: a bound that is off.
    ``fixed`` promises that hooks do not assign it: it is what the request came with, and is read
    once for as long as the batch keeps its requests and their order.
    """

    name: str
    kind: Literal["int", "float", "bool"]
    default: float | int | bool = 0
    size: int = 1
    fixed: bool = False
    infinite: bool = False


class Rows:
    """One step's copy of the state, a row for each row of the batch.

    ``rows[FIELD]`` reads a column as ``[num_rows]`` (``[num_rows, size]`` where the field is
    wide); assigning to it changes the copy, never the slots.

    Attributes
    ----------
    traits
        What the live requests need (see :meth:`Method.traits`), known on the host: a hook skips
        what no row of the batch can need.
    vocab_size
        Columns of the logits that can be tokens; the rest is padding.
    holes
        int64 columns below ``vocab_size`` that are no token, ``None`` if there are none.
    marker_tables
        See :mod:`tokenlens.methods.markers`; there where a request has the trait LONG_MARKERS.
    written
        Columns that were assigned, in that order.
    notes
        What :meth:`note` was told.
    latent, forced
        ``[num_rows]`` bool, in ``commit``'s hooks: what the step intended. A hook may take a latent
        row back.
    """

    vocab_size = 0
    holes: Tensor | None = None
    marker_tables: tuple[Tensor, Tensor]
    latent: Tensor
    forced: Tensor

    def __init__(
        self,
        columns: Mapping[Field, slice],
        ints: Tensor,
        floats: Callable[[], Tensor],
        wide: Callable[[Field], Tensor],
        traits: Collection[str] = (),
        written: Iterable[Field] = (),
        fixed: dict[object, Tensor] | None = None,
    ) -> None:
        self.columns = columns
        self.traits = traits
        # [num_rows, columns] int64, as they were
        self.ints = ints
        self._read_floats, self._wide = floats, wide
        self._floats: Tensor | None = None
        # What was looked at: a step costs what its small calls cost, so nothing else is viewed.
        self._values: dict[Field, Tensor] = {}
        # The same of fixed columns and constants, which other steps have looked at too
        self._fixed: dict[object, Tensor] = {} if fixed is None else fixed
        self.written = dict.fromkeys(written)
        # What is still to be added to columns, all at once
        self._added: dict[Field, Tensor] = {}
        self.notes: dict[str, Tensor] = {}
        # The phases that were compared, and the result
        self._thinking: tuple[Tensor, Tensor] | None = None

    def __getitem__(self, column: Field) -> Tensor:
        known = self._fixed if column.fixed else self._values
        values = known.get(column)
        if values is None:
            if column.fixed:
                # A normal tensor of its own: this step's rows are of the inference mode, and go.
                with torch.inference_mode(False):
                    values = self._read(column).clone()
            else:
                values = self._read(column)
            known[column] = values
        if column in self._added:
            self[column] = values = values + self._added.pop(column)
        return values

    def _read(self, column: Field) -> Tensor:
        if column.size > 1:
            values = self._wide(column)
        else:
            table = self.floats if column.kind == "float" else self.ints
            values = table.select(1, self.columns[column].start)
        return values != 0 if column.kind == "bool" else values

    @property
    def floats(self) -> Tensor:
        """``[num_rows, columns]`` float32, as they were; read when they are first looked at."""
        if self._floats is None:
            self._floats = self._read_floats()
        return self._floats

    def __setitem__(self, column: Field, values: Tensor) -> None:
        if column.fixed:
            raise TypeError(f"{column.name}: got an assignment; allowed: none, the field is fixed")
        self._values[column] = values
        self.written[column] = None

    def constant(self, value: bool | int | float) -> Tensor:
        """``[num_rows]`` bool, int64 or float32 of one value; never changed in place."""
        # True is 1 to a dict.
        key = type(value), value
        values = self._fixed.get(key)
        if values is None:
            dtype = {bool: torch.bool, int: torch.int64, float: torch.float32}[type(value)]
            with torch.inference_mode(False):
                values = torch.full(
                    self.ints.shape[:1], value, dtype=dtype, device=self.ints.device
                )
            self._fixed[key] = values
        return values

    @property
    def thinking(self) -> Tensor:
        """Rows that think, ``[num_rows]`` bool; compared once for all hooks."""
        phase = self[PHASE]
        if self._thinking is None or self._thinking[0] is not phase:
            self._thinking = (phase, phase == int(Phase.THINKING))
        return self._thinking[1]

    def choose(self, column: Field, where: Tensor, values: Tensor | float | int | bool) -> None:
        """Set a column where the mask holds."""
        self[column] = torch.where(
            where if column.size == 1 else where[:, None], values, self[column]
        )

    def add(self, column: Field, amount: Tensor) -> None:
        """Add to a column, e.g. a mask to a counter: now, or with others when it is looked at.

        Parameters
        ----------
        amount
            ``[num_rows]`` bool or int64.
        """
        if column.fixed:
            raise TypeError(f"{column.name}: got an addition; allowed: none, the field is fixed")
        if column in self.written or column in self._added:
            self[column] = self[column] + amount
        else:
            self._added[column] = amount

    def take_added(self) -> dict[Field, Tensor]:
        """What is still to be added, by column; it is the caller's to add from now on."""
        added, self._added = self._added, {}
        return added

    def settle(self) -> None:
        """Add what is still to be added."""
        for column in list(self._added):
            self[column]

    @property
    def traced(self) -> bool:
        """Whether a live request has a full trace, in which notes are kept."""
        return TRACED in self.traits

    def note(self, name: str, amounts: Tensor) -> None:
        """Say for full traces what a method does at this step, in ``step``'s hooks.

        Parameters
        ----------
        name
            One of :data:`tokenlens.methods.registry.NOTES`.
        amounts
            ``[num_rows]``; 0 for nothing.
        """
        if TRACED in self.traits:
            self.notes[name] = amounts


# The columns that are not any single method's.
PHASE = Field("phase", "int", Phase.PROMPT)
POSITION = Field("position", "int")  # of the token that is decided next
GENERATED = Field("generated", "int")
THINKING_TOKENS = Field("thinking_tokens", "int")
PROMPT_THINKING = Field("prompt_thinking", "int")  # thinking tokens that the prompt holds
SEED = Field("seed", "int", fixed=True)
EOS_IDS = Field("eos_ids", "int", -1, size=8, fixed=True)
# the canonical end of thinking
END_IDS = Field("end_ids", "int", -1, size=MAX_FORCED_TOKENS, fixed=True)
END_LENGTH = Field("end_length", "int", fixed=True)
FORCE_IDS = Field("force_ids", "int", -1, size=MAX_FORCED_TOKENS)
FORCE_LENGTH = Field("force_length", "int")  # 0 = nothing is being forced
FORCE_AT = Field("force_at", "int")
# What the request's latent method asks of the logits: a request has one at most.
INVERSE_TEMPERATURE = Field("ask.inverse_temperature", "float", 1.0, fixed=True)
TOP_K = Field("ask.top_k", "int", fixed=True)
TOP_P = Field("ask.top_p", "float", 1.0, fixed=True)
MIN_P = Field("ask.min_p", "float", fixed=True)
MAX_ENTRIES = Field("ask.max_entries", "int", 1, fixed=True)
NOISE_TEMPERATURE = Field("ask.noise_temperature", "float", fixed=True)
# Published quirks: mixtures are fed after the end of thinking too.
ANYWHERE = Field("feed.anywhere", "bool", False)
# The engine's vector (a product with the whole table, a hidden state) and how much of it is fed.
DENSE = Field("feed.dense", "bool", False)
BASE_WEIGHT = Field("feed.base_weight", "float")
# Of the Gaussian noise on what is fed, in units of the embedding's root mean square.
NOISE_SCALE = Field("feed.noise_scale", "float")
# Of the step's noise, for trainers; 0 where there is none.
LOG_PROBABILITY = Field("proposal.log_probability", "float")

MAX_ANCHORS = 3
"""The last entries of a concept token, which blends use."""

FORCES = "force"
"""The trait of requests that may force a sequence of tokens."""
LATENT_TRAIT = "latent"
"""The trait of requests that may be fed mixtures."""
STATISTICS = "statistics"
"""The trait of requests that read the entropy or the maximum probability, or record them."""
RAW_SIGNALS = "raw_signals"
"""The trait of requests that need the signals at temperature 1 beside their own."""
BLENDS = "blends"
"""The trait of requests that may be fed anchors, in the last entries of their concept tokens."""
BASE = "base"
"""The trait of requests that may be fed a vector of the engine's: dense mixtures, hidden states."""
NOISE = "embedding_noise"
"""The trait of requests that are fed embeddings with Gaussian noise."""
QUIRKS = "anywhere"
"""The trait of requests that may be fed mixtures after the end of thinking."""
SCORES = "scores"
"""The trait of requests whose steps have scores and a log-probability."""


TRACED = "trace"
"""The trait of requests with a full trace."""
SWITCH = "switch"
"""The note of a gate: 1 where it goes latent at this step, -1 where it goes discrete."""


class Signals(NamedTuple):
    """Facts of this step, per row; see :func:`tokenlens_kernels.signals_topk`."""

    # [num_rows] float32, nats, of the tempered full-vocabulary distribution; ``None`` where no live
    # request has the trait STATISTICS
    entropy: Tensor | None
    # [num_rows] float32, of the same distribution
    max_probability: Tensor | None
    # [num_rows] bool: False where the logits hold a NaN, +inf, or nothing finite
    valid: Tensor
    # [num_rows, width] float32, filtered, sorted, not cut to max_entries, without noise
    probabilities: Tensor
    # [num_rows, width] int64
    ids: Tensor
    # [num_rows] float32: the first two at temperature 1, if a request has the trait RAW_SIGNALS
    raw_entropy: Tensor | None = None
    raw_max_probability: Tensor | None = None


@dataclass
class Ask:
    """What this step's rows want from the logits: their latent methods' columns, if active."""

    # [num_rows] each
    active: Tensor
    inverse_temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    max_entries: Tensor
    noise_temperature: Tensor

    @classmethod
    def of(cls, rows: Rows) -> "Ask":
        """No row is active yet."""
        columns = (INVERSE_TEMPERATURE, TOP_K, TOP_P, MIN_P, MAX_ENTRIES, NOISE_TEMPERATURE)
        return cls(rows.constant(False), *(rows[column] for column in columns))


@dataclass
class Proposal:
    """What the rows of one step intend, before the engine has sampled."""

    # [num_rows] bool: the next input is a mixture if the recorded token is the one sampled
    latent: Tensor
    # [num_rows] bool: the token is decided here, not by the engine's sampler
    forced: Tensor
    # [num_rows] int64: the token, where forced
    recorded: Tensor
    # [num_rows, width] float32 and int64: the concept token
    weights: Tensor
    ids: Tensor
    # [num_rows, width] float32: a score of each entry, for trainers
    scores: Tensor | None = None
    # [num_rows] bool: a token of a forced sequence is fed as the mixture where the row is latent
    mixes: Tensor | None = None

    def force(self, where: Tensor, ids: Tensor) -> None:
        """Decide the token of some rows; they are discrete unless a method says otherwise."""
        self.forced = self.forced | where
        self.recorded = torch.where(where, ids, self.recorded)


def start_forcing(
    rows: Rows, where: Tensor, ids: Tensor, length: Tensor, at: Tensor | int = 0
) -> None:
    """Begin a forced sequence, or go on with its token ``at``, in rows that are not in one."""
    where = where & (rows[FORCE_LENGTH] == 0) & (length > 0)
    rows.choose(FORCE_IDS, where, ids)
    rows.choose(FORCE_LENGTH, where, length)
    rows.choose(FORCE_AT, where, at)


def is_eos(rows: Rows, ids: Tensor) -> Tensor:
    """Whether each row's token is one of its end-of-text tokens."""
    return (rows[EOS_IDS] == ids[:, None]).any(dim=1)


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


class Method:
    """A decoding method. Every hook defaults to doing nothing, and masks with ``rows[self.on]``.

    Hooks run in the order in which they stand here; within one hook, methods run in the order of
    the registry.
    """

    name: str

    def __init__(self, name: str, *fields: Field) -> None:
        self.name = name
        self.on = Field(f"{name}.on", "bool", False, fixed=True)
        self.fields = (self.on, *fields)

    def serves(self, config: AnyMethod) -> bool:
        """Whether this method carries a config out; several may share one."""
        return config.method == self.name

    def admit(self, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
        """Column values of a new request. Raises SpecError for what this model cannot do."""
        return {}

    def traits(self, config: AnyMethod) -> Collection[str]:
        """What a request with this config needs, so that hooks can skip what nobody needs.

        ``name.edit`` is needed for the ``edit`` hook, which costs a copy of the logits, and
        ``FORCES`` for forced sequences.
        """
        return ()

    def control(self, rows: Rows) -> None:
        """May start a forced sequence, before anything looks at the logits."""

    def edit(self, logits: Tensor, rows: Rows) -> Tensor:
        """Edited logits: the given tensor, a copy that may be changed in place, or another one."""
        return logits

    def ask(self, rows: Rows, ask: Ask) -> None:
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


HOOKS = ("control", "edit", "ask", "reweigh", "propose", "gate", "commit")


def overrides(method: Method, hook: str) -> bool:
    """Whether a method does anything in a hook."""
    return getattr(type(method), hook) is not getattr(Method, hook)
