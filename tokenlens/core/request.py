"""A spec bound to a model: markers, forced texts and end-of-text tokens resolved, on the host."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tokenlens_kernels import philox

from tokenlens.core import phases, soundness
from tokenlens.core.columns import (
    END_IDS,
    END_LENGTH,
    EOS_IDS,
    MAX_FORCED_TOKENS,
    PHASE,
    POSITION,
    PROMPT_THINKING,
    SEED,
    Field,
    Phase,
    Value,
)
from tokenlens.core.layer_access import ModelShape
from tokenlens.core.marker_columns import STATE
from tokenlens.core.markers import Markers, resolve
from tokenlens.core.method import Admission, Method, overrides
from tokenlens.core.slots import differs, fits, is_float
from tokenlens.spec import (
    DecodingSpec,
    SpecError,
    SpecProblem,
    Tokenizer,
    Vocabulary,
    encode_text,
)
from tokenlens.spec.finding import EngineMarkers
from tokenlens.spec.markers import Marker, marker_of
from tokenlens.spec.needs import Need, needs_of
from tokenlens.spec.phase import (
    MARKERS_DIFFER,
    NONE,
    THINK_END,
    THINK_START,
    PhaseConfig,
    markers_in,
)
from tokenlens.spec.registry import AnyMethod
from tokenlens.spec.resolution import resolve_phase

MAX_EOS_IDS = EOS_IDS.size

EOS_CALLED = (
    "eos_token_id",
    "keep those that this model writes, and stop at other texts with stop_strings=[...] or a"
    " stopping criterion",
)
STOPS_CALLED = (
    "stop_token_ids",
    "with the model's own; keep those that this model writes, and stop at other texts with"
    " stop=[...]",
)


def possible_ends(ids: Iterable[int], vocab_size: int) -> tuple[int, ...]:
    """Each of these ids once, without those that no token has: -1 is a way to say "none"."""
    return tuple(dict.fromkeys(int(token) for token in ids if 0 <= int(token) < vocab_size))


@dataclass(frozen=True)
class Request:
    """What the core needs to admit a request; the same spec and model give the same one.

    Attributes
    ----------
    methods
        Names of the methods that are on.
    needs
        What they need of the step and of the engine.
    edits
        Names of the methods that edit logits for this request.
    columns
        State columns that do not depend on the prompt.
    found
        Sets of tokens that were searched for in the vocabulary, by the field that asks for them.
    index
        Of the sample, where several of one prompt share the seed that their spec gives.
    """

    spec: DecodingSpec
    methods: frozenset[str]
    needs: Need
    edits: frozenset[str]
    columns: Mapping[Field, Value]
    markers: Markers
    from_first_token: bool
    found: Mapping[str, tuple[int, ...]]
    index: int = 0

    def seeded(self, spec: DecodingSpec) -> "Request":
        """The request of a spec that is the same but for its seed."""
        # The markers that were found stay.
        spec = spec.model_copy(update={"phase": self.spec.phase})
        return replace(self, spec=spec, columns={**self.columns, SEED: spec.seed or 0})

    @cached_property
    def used(self) -> frozenset[Field]:
        """Columns with another value than their default."""
        return frozenset(column for column, value in self.columns.items() if differs(column, value))

    @cached_property
    def files(self) -> frozenset[tuple[Field, int]]:
        """Columns that hold the number of an operator's file, by their names, with the number."""
        return frozenset(
            (column, value)
            for column, value in self.columns.items()
            if column.name.endswith(".file") and isinstance(value, int) and value >= 0
        )

    @property
    def start_markers(self) -> tuple[tuple[int, ...], ...]:
        """The tokens of what opens thinking, as they would be written."""
        return tuple(marker.ids for marker in self.markers.starts)

    @property
    def end_markers(self) -> tuple[tuple[int, ...], ...]:
        """The tokens of what ends it; the first is the one that is forced."""
        return tuple(marker.ids for marker in self.markers.ends)

    def sample(self, index: int) -> "Request":
        """The request of the n-th sample of one prompt: the same but for its noise.

        The noise of sample 0 is keyed on the spec's seed, that of sample n on
        ``philox.sample_seed(seed, n)``.
        """
        if index == 0:
            return self
        seed = self.spec.seed or 0
        if self.spec.uses_seed:
            seed = int(philox.sample_seed(seed, index))
        return replace(self, columns={**self.columns, SEED: seed}, index=index)

    @property
    def noise_key(self) -> int | None:
        """What the noise is keyed on; ``None`` where nothing is drawn."""
        seed = self.columns[SEED]
        assert isinstance(seed, int)
        return seed if self.spec.uses_seed else None

    def at_prompt(self, prompt_ids: Sequence[int], position: int) -> dict[Field, Value]:
        """All columns of a slot that is about to decide its first token.

        Parameters
        ----------
        prompt_ids
            The prompt's tokens, without padding; empty where the prompt came as embeddings.
        position
            Index of the first generated token in its sequence, which is the prompt's length.
        """
        phase, thinking, entry = self.markers.after(prompt_ids)
        if self.from_first_token:
            phase = Phase.THINKING
        return {
            **self.columns,
            PHASE: int(phase),
            POSITION: position,
            PROMPT_THINKING: thinking,
            STATE: entry,
        }


def _admitted(method: Method, config: AnyMethod, admission: Admission) -> Mapping[Field, Value]:
    """A method's columns, if the slot table can hold them: what is bound can be admitted."""
    try:
        values = method.admit(config, admission)
    except ArithmeticError as error:
        allowed = f"numbers that can be computed with ({error})"
        raise SpecError.of(config.method, config, allowed) from None
    for column, value in values.items():
        if not fits(column, value):
            kind = "float32" if is_float(column) else "int64"
            allowed = f"numbers for which {column.name} fits {column.size} of {kind}"
            raise SpecError.of(config.method, value, allowed)
    return values


END_TEXTS = ("no_thinking", "answer_now", "thinking_budget")
"""Methods whose text ends the thinking."""


def _named(
    spec: DecodingSpec, tokenizer: Tokenizer | None, engine: EngineMarkers | None, strict: bool
) -> tuple[PhaseConfig, tuple[list[Marker], list[Marker], list[Marker]]]:
    """A spec's phase with what was found, and its starts, ends and begins of tool calls."""

    def read(field: str, default: str = "") -> list[Marker]:
        given = markers_in(getattr(phase, field)) or ((None,) if default else ())
        return [marker_of(tokenizer, m, default=default, field=f"phase.{field}") for m in given]

    phase = spec.phase
    try:
        phase = resolve_phase(phase, tokenizer, engine, strict=strict)
        none = phase.markers == NONE
        starts = read("think_start", "" if phase.opens == "first_token" else THINK_START)
        ends = read("think_end", "" if none else THINK_END)
    except SpecError:
        if spec.methods:
            raise
        # Nothing but a trace was asked for: a model that does not think has one too.
        return phase, ([], [], [])
    tools = [one for one in read("tool_start") if all(one.ids != end.ids for end in ends)]
    # One may be given as a text and another as the ids of that text.
    for start in starts:
        for name, others in (("think_end", ends), ("tool_start", tools)):
            if any(start.ids == other.ids for other in others):
                given = getattr(phase, name)
                got = f"{phase.think_start!r} as think_start and {given!r} as {name}"
                raise SpecError([SpecProblem("phase", got, MARKERS_DIFFER)])
    return phase, (starts, ends, tools)


def bind(
    spec: DecodingSpec,
    *,
    methods: Sequence[Method],
    tokenizer: Tokenizer | None,
    vocab_size: int,
    eos_ids: Sequence[int] = (),
    given: Mapping[str, Sequence[int]] | None = None,
    turn_ends: Sequence[int] = (),
    ends_called: tuple[str, str] = EOS_CALLED,
    engine: EngineMarkers | None = None,
    strict: bool = False,
    shape: ModelShape | None = None,
) -> Request:
    """Resolve a spec for one model.

    Parameters
    ----------
    methods
        Those of the core that the request is for, in their order.
    tokenizer
        May be ``None`` where the spec gives its markers as token ids.
    vocab_size
        Tokens that the tokenizer has; logits beyond it are padding.
    eos_ids
        Tokens that end the request.
    turn_ends
        Tokens that end a turn of a conversation, beside these and those that the tokenizer tells.
    given
        Sets of tokens that were found when it was bound before (:attr:`Request.found`); they are
        checked, and not searched for again.

    ends_called
        What the engine's users call the tokens that end a request, and what they may do instead.
    engine
        What the engine's own reasoning parser says of the markers.
    strict
        Refuse markers that a model with its own was not trained to write; whoever takes specs from
        users does. The core can follow any.
    shape
        The model's, for methods that read an operator's file.

    Notes
    -----
    A spec whose seed is open is bound as if it were 0: an engine finds its seed first (see
    :mod:`tokenlens.spec.seeds`), or gives it to the bound request with :meth:`Request.seeded`.

    Raises
    ------
    SpecError
        A marker or a text that this tokenizer cannot write, ids or sizes beyond the vocabulary.
    """
    names: set[str] = {config.method for config in spec.methods}
    if spec.trace.level == "full":
        names.add("trace")
    phase, named = _named(spec, tokenizer, engine, strict)
    spec = spec.model_copy(update={"phase": phase})
    starts, ends, tools = named
    quiet = phase.markers == NONE
    latent = spec.latent
    forced_end = "marker" if latent is None else latent.forced_end_part
    if forced_end != "marker" and ends:
        # What is forced is then what is looked for: one token.
        ids = ends[0].ids
        ends = [Marker(ids[-1:] if forced_end == "last_token" else ids[:1])]
    for field, markers_of in (
        ("phase.think_start", starts),
        ("phase.think_end", ends),
        ("phase.tool_start", tools),
    ):
        for token in (token for marker in markers_of for token in marker.ids):
            if token >= vocab_size:
                raise SpecError.of(field, token, f"token ids below the vocabulary's {vocab_size}")
    if len(eos_ids) > MAX_EOS_IDS:
        allowed = f"at most {MAX_EOS_IDS} tokens beside a spec; {ends_called[1]}"
        raise SpecError.of(ends_called[0], list(eos_ids), allowed)
    if any(not 0 <= token < vocab_size for token in eos_ids):
        allowed = f"token ids below the vocabulary's {vocab_size}"
        raise SpecError.of(ends_called[0], list(eos_ids), allowed)

    def encode(text: str, field: str) -> tuple[int, ...]:
        if tokenizer is None:
            raise SpecError.of(field, text, "nothing, because no tokenizer was given")
        ids = encode_text(tokenizer, text, field)
        if len(ids) > MAX_FORCED_TOKENS:
            raise SpecError.of(field, text, f"a text of at most {MAX_FORCED_TOKENS} tokens")
        if max(ids) >= vocab_size:
            allowed = f"a text of token ids below the vocabulary's {vocab_size}"
            raise SpecError.of(field, text, allowed)
        return tuple(ids)

    texts: dict[str, tuple[int, ...]] = {}
    for config in spec.methods:
        text = config.forced_text
        if text is not None:
            texts[config.method] = encode(text, f"{config.method}.text")
            if quiet and config.method in END_TEXTS:
                # There is no marker: the text that is forced is what ends the thinking.
                ends.append(Marker(texts[config.method]))
    first_token = latent is not None and latent.from_first_token
    from_first_token = first_token or phase.opens == "first_token"
    markers = resolve(
        starts,
        ends,
        tools,
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        turn_ends=tuple(dict.fromkeys((*eos_ids, *turn_ends))),
        opens=not from_first_token,
        forced=not quiet,
    )
    end = ends[0].ids if ends and not quiet else ()
    vocabulary = Vocabulary(tokenizer, vocab_size, given)
    admission = Admission(
        spec,
        starts[0].ids if starts else (),
        end,
        tuple(eos_ids),
        vocab_size,
        vocabulary,
        lambda ids: (quiet and not ids) or markers.leads(ids) == Phase.ANSWER,
        markers.end_begins,
        texts,
        encode,
        shape,
    )
    columns: dict[Field, Value] = {
        SEED: spec.seed or 0,
        EOS_IDS: list(eos_ids),
        END_IDS: end,
        END_LENGTH: len(end),
        **phases.pack_marks(markers.marks, eos_ids),
    }
    needs = needs_of(spec)
    if latent is not None:
        needs |= Need.LATENT
    if quiet:
        needs |= Need.SILENT_END
        if phase.end_after is not None:
            columns[phases.END_AFTER] = phase.end_after
    if phase.counted == "block":
        needs |= Need.BLOCKS
        columns[phases.BY_BLOCK] = True
    if not phase.reopens:
        needs |= Need.ONE_BLOCK
        columns[phases.ONCE] = True
    if spec.trace.level == "full":
        needs |= Need.FULL_TRACE | Need.STATISTICS
    if markers.automaton is not None:
        needs |= Need.LONG_MARKERS
    edits = set()
    for config in spec.methods:
        if not any(method.serves(config) for method in methods):
            known = ", ".join(method.name for method in methods)
            raise SpecError.of(f"{config.method}.method", config.method, f"one of {known}")
    for method in methods:
        for config in spec.methods:
            if method.serves(config):
                names.add(method.name)
                columns.update(_admitted(method, config, admission))
                needs |= method.needs(config)
                if method.edits(config):
                    edits.add(method.name)
        if method.name in names:
            columns[method.on] = True
            if method.name in edits and not overrides(method, "request_signals"):
                columns[soundness.EDITS] = True
    return Request(
        spec,
        frozenset(names),
        needs,
        frozenset(edits),
        columns,
        markers,
        from_first_token,
        vocabulary.found,
    )
