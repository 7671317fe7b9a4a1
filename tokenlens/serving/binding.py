"""A spec bound to the model that a server serves: the same in the front end and in the worker.

The front end binds to find out whether it can be done (a 400 if not), the worker binds to do it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any

from tokenlens.core import Request, bind
from tokenlens.core.layer_access import ModelShape
from tokenlens.core.marker_table import most_markers, too_many
from tokenlens.core.markers import prepare as prepare_markers
from tokenlens.core.request import STOPS_CALLED, possible_ends
from tokenlens.errors import SpecError
from tokenlens.methods.door import active
from tokenlens.serving.arguments import FOUND_KEY, MARKERS_KEY, PHASE_KEY, sample_of
from tokenlens.serving.structure import UNKNOWN, Grammars, agreeing
from tokenlens.spec import DecodingSpec
from tokenlens.spec.bounded import Bounded
from tokenlens.spec.finding import EngineMarkers, find_markers
from tokenlens.spec.texts import holes, texts_of, vocabulary_size

MAX_BOUND = 256
MAX_BOUND_BYTES = 32 << 20
"""Bound specs that are kept: clients repeat theirs."""

BASE_BYTES = 16_384
"""Of a bound spec whose texts and sets are empty."""


class Binder:
    """Resolves specs for one model.

    Parameters
    ----------
    tokenizer
        The model's tokenizer; ``None`` where the engine runs without one.
    width
        Columns of the model's logits.
    turn_ends
        The model's end-of-text tokens, which end turns also where a request ignores them.
    stop_ids
        Given sampling parameters of the engine's: the tokens that end the request, in order.
    arguments
        Given the same: the request's extra arguments, ``None`` if it has none.
    engine
        What the engine's reasoning parser says of the think markers.
    held
        Given parameters of the engine's: whether the answer is held to a grammar.
    grammars
        Where the engine's grammars begin; only a front end knows. Thinking is then over exactly
        there, for good (:func:`tokenlens.serving.structure.agreeing`).
    shape
        The model's, which vectors of files have to fit.
    """

    def __init__(
        self,
        tokenizer: Any,
        width: int,
        turn_ends: Sequence[int] = (),
        stop_ids: Callable[[Any], Sequence[int]] = lambda params: (),
        arguments: Callable[[Any], Mapping[str, Any] | None] = lambda params: None,
        engine: EngineMarkers | None = None,
        held: Callable[[Any], bool] = lambda params: False,
        grammars: Grammars = UNKNOWN,
        shape: ModelShape | None = None,
    ) -> None:
        self.tokenizer, self.width, self.engine = tokenizer, width, engine
        self.held, self.grammars, self.shape = held, grammars, shape
        self.vocab_size = vocabulary_size(tokenizer, width)
        self.max_markers = most_markers(self.vocab_size)
        self.holes = holes(tokenizer, width)
        if tokenizer is not None:
            texts_of(tokenizer, width).prepare()
            prepare_markers(tokenizer, self.vocab_size)
            find_markers(tokenizer, engine)
        self.turn_ends = tuple(turn_ends)
        self.stop_ids, self._arguments = stop_ids, arguments
        self._bound: Bounded[Request] = Bounded(MAX_BOUND, MAX_BOUND_BYTES)

    def __call__(self, params: Any) -> Request | None:
        """The request in sampling parameters of the engine's, ``None`` if they hold no spec.

        Raises
        ------
        SpecError
            What the spec asks for cannot be done with this model.
        """
        arguments = self._arguments(params)
        found = sample_of(arguments)
        if found is None:
            return None
        spec, index = found
        given = (arguments or {}).get(FOUND_KEY)
        return self.prepare(spec, params, given).sample(index)

    def prepare(
        self, spec: DecodingSpec, params: Any, given: Mapping[str, Sequence[int]] | None = None
    ) -> Request:
        """Resolve a spec with what ends a request that has these parameters of the engine's."""
        ends = possible_ends(self.stop_ids(params), self.vocab_size)
        if self.held(params) and spec.methods:
            phase = agreeing(spec.phase, self.tokenizer, self.engine, self.grammars)
            spec = spec.model_copy(update={"phase": phase})
        return self.bind(spec, ends, given)

    def bind(
        self,
        spec: DecodingSpec,
        eos_ids: tuple[int, ...],
        given: Mapping[str, Sequence[int]] | None = None,
    ) -> Request:
        """Resolve a spec, once for all requests that ask for the same but for the seed.

        Parameters
        ----------
        given
            What the front end has found in the vocabulary (:meth:`found`); it is checked.
        """
        key = (spec.model_copy(update={"seed": None}).model_dump_json(), eos_ids)
        request = self._bound.get(key)
        if request is None:
            if given is not None and not isinstance(given, Mapping):
                raise SpecError.of(FOUND_KEY, given, "sets of tokens by field")
            request = bind(
                spec,
                methods=active(),
                tokenizer=self.tokenizer,
                vocab_size=self.vocab_size,
                eos_ids=eos_ids,
                turn_ends=self.turn_ends,
                ends_called=STOPS_CALLED,
                given=given,
                engine=self.engine,
                strict=True,
                shape=self.shape,
            )
            self._bound.put(key, request, size_of(key[0], request))
        return request.seeded(spec)

    def found(self, arguments: Mapping[str, Any], request: Request | None) -> dict[str, Any]:
        """A request's extra arguments with what was found for it, so that a worker need not."""
        found = dict(arguments)
        if request is not None and request.found:
            found[FOUND_KEY] = {key: list(ids) for key, ids in request.found.items()}
        if request is not None and request.spec.phase.found is not None:
            found[PHASE_KEY] = request.spec.phase.model_dump_json(exclude_defaults=True)
        if request is not None and request.markers.automaton is not None:
            found[MARKERS_KEY] = [request.markers.automaton.key, self.max_markers]
        return found


def check_room(own: Sequence[Any] | None, others: Iterable[Sequence[Any] | None]) -> None:
    """Refuse markers of several tokens for which the worker may have no room.

    Parameters
    ----------
    own
        What :meth:`Binder.found` says of the markers of a request that wants to come in; ``None``:
        each is a token of its own.
    others
        The same of the requests of this front end that have not ended. Another front end of the
        same engine has others: the worker, which knows all, ends what it has no room for.

    Raises
    ------
    SpecError
    """
    if own is None:
        return
    key, most = own
    used = {one[0] for one in others if one is not None}
    if key not in used and len(used) >= most:
        raise too_many(most)


def size_of(text: str, request: Request) -> int:
    """Roughly the bytes of a bound spec: its text as key, what was made of it, and the columns."""
    numbers = sum(len(value) for value in request.columns.values() if isinstance(value, Sized))
    automaton = request.markers.automaton
    markers = 0 if automaton is None else automaton.classes.nbytes + automaton.moves.nbytes
    return 8 * len(text) + 40 * numbers + markers + BASE_BYTES
