"""Keyword arguments that carry a spec into ``generate()``, and the traces that come back."""

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from tokenlens.core import Request, bind
from tokenlens.core.tape import Tape
from tokenlens.hf.refusals import (
    PAGED,
    UnsupportedError,
    arguments_of,
    check,
    generate_calls,
    stopped_rows,
)
from tokenlens.hf.run import Run
from tokenlens.hf.seeds import torch_seed
from tokenlens.spec import DecodingSpec, Tokenizer, needs_of, parse_spec
from tokenlens.spec.registry import LATENT_METHODS
from tokenlens.spec.seeds import is_open, with_seed
from tokenlens.spec.texts import holes, vocabulary_size
from tokenlens.trace import Trace

SpecLike = DecodingSpec | Mapping[str, Any] | str

_LAST = threading.local()


class Runs(LogitsProcessorList):
    """The user's processors and ours: a fresh run for every list that ``generate()`` makes."""

    def __init__(
        self,
        model: nn.Module,
        specs: Sequence[DecodingSpec],
        tokenizer: Tokenizer | None,
        processors: Sequence[LogitsProcessor],
    ) -> None:
        # A list that is not empty, or generate() would not look into it.
        super().__init__([*processors, LogitsProcessor()])
        self.tape: Tape | None = None
        self._processors = list(processors)
        self._model = model
        self._specs = list(specs)
        self._tokenizer = tokenizer
        self._latent = any(
            config.method in LATENT_METHODS for spec in specs for config in spec.methods
        )
        self._live: dict[int, weakref.ref[Run]] = {}
        # Errors in a spec come before generate() has begun.
        self._bind({})

    def __iter__(self) -> Iterator[LogitsProcessor]:
        calls = generate_calls()
        arguments = arguments_of(calls)
        check(arguments, self._latent)
        requests = self._bind(arguments)
        run = Run(
            arguments.get("self", self._model),
            lambda rows, device: self._rows(requests, rows, device, arguments),
            self._vocab_size(),
            self._begin,
            id(calls[0]) if calls else None,
            any("hidden_state" in needs_of(spec) for spec in self._specs),
            holes(self._tokenizer, self._vocab_size()),
        )
        self._live[threading.get_ident()] = weakref.ref(run)
        return iter([*self._processors, run])

    def current(self) -> Run | None:
        """The run of the ``generate()`` call in the calling thread."""
        reference = self._live.get(threading.get_ident())
        return reference() if reference is not None else None

    def _begin(self, tape: Tape) -> None:
        self.tape = _LAST.tape = tape

    def _vocab_size(self) -> int:
        width = int(self._model.config.get_text_config().vocab_size)  # type: ignore[operator, union-attr]
        return vocabulary_size(self._tokenizer, width)

    def _bind(self, arguments: Mapping[str, Any]) -> list[Request]:
        config = arguments.get("generation_config") or self._model.generation_config
        eos_ids = _ids(getattr(config, "eos_token_id", None))
        vocab_size = self._vocab_size()
        return [
            bind(spec, tokenizer=self._tokenizer, vocab_size=vocab_size, eos_ids=eos_ids)
            for spec in self._specs
        ]

    def _rows(
        self,
        requests: Sequence[Request],
        num_rows: int,
        device: torch.device,
        arguments: Mapping[str, Any],
    ) -> list[Request]:
        """A request for each row: ``num_return_sequences`` repeats rows, each with its own seed.

        A seed that the spec gives is for all rows with this spec, and the samples of a prompt have
        theirs from it. Where it is open, every row of the call has another.
        """
        config = arguments.get("generation_config")
        samples = getattr(config, "num_return_sequences", None) or 1
        prompts = num_rows // samples
        if len(requests) not in (1, prompts):
            raise UnsupportedError(
                f"spec: got {len(requests)} specs; allowed: one for all rows, or one for each of"
                f" the {prompts} prompts"
            )
        chosen = requests if len(requests) == prompts else [requests[0]] * prompts
        rows = [chosen[row // samples] for row in range(num_rows)]
        seed = 0
        if any(is_open(one.spec) for one in rows):
            seed = torch_seed(device, bool(getattr(config, "do_sample", False)))
        return [
            one.seeded(with_seed(one.spec, seed, row))
            if is_open(one.spec)
            else one.sample(row % samples)
            for row, one in enumerate(rows)
        ]


class CommitTokens(StoppingCriteria):
    """Stops nothing: it is where ``generate()`` first shows the tokens that it sampled."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        # What it answers, kept from step to step
        self._none = torch.zeros(0, dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        run = self._runs.current()
        if run is not None:
            run.commit(input_ids, stopped_rows())
        none = self._none
        if len(none) != len(input_ids) or none.device != input_ids.device:
            none = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
            self._none = none
        return none

    def __repr__(self) -> str:
        # Continuous batching refuses stopping criteria and prints them: all that it says is this.
        return f"<tokenlens: {PAGED}>"


def generate_kwargs(
    model: nn.Module,
    tokenizer: Tokenizer | None,
    spec: SpecLike | Sequence[SpecLike],
    *,
    logits_processor: Sequence[LogitsProcessor] = (),
    stopping_criteria: Sequence[StoppingCriteria] = (),
) -> dict[str, Any]:
    """Arguments that make ``model.generate()`` decode as a spec says.

    Parameters
    ----------
    model
        A stock causal language model of transformers, or a PEFT model around one.
    tokenizer
        The model's tokenizer. ``None`` where the spec gives its think markers as token ids.
    spec
        A spec, a mapping, the name of a preset, or a list with one of them for each prompt.
    logits_processor, stopping_criteria
        Your own; ``generate()`` takes each argument once. Your processors run before ours.

    Returns
    -------
    dict
        ``logits_processor`` and ``stopping_criteria``. It can be used for any number of calls; each
        begins afresh. Use a dict of its own in every thread.

    Notes
    -----
    ``model.generate_batch()`` drops every argument that it does not know, and answers as if no spec
    had been given; nothing that is passed to it can notice. :func:`traces` then raises LookupError.

    Raises
    ------
    SpecError
        The spec cannot be carried out with this model and tokenizer.
    UnsupportedError
        The model cannot host it; ``generate()`` raises the same for its own settings.

    Examples
    --------
    >>> kwargs = generate_kwargs(model, tokenizer, "qwen3-soft")  # doctest: +SKIP
    >>> output = model.generate(**inputs, **kwargs)  # doctest: +SKIP
    >>> traces(kwargs)[0].counts.latent_steps  # doctest: +SKIP
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if getattr(base.config, "is_encoder_decoder", False):
        raise UnsupportedError(
            f"model: got {type(base).__name__}, an encoder-decoder; allowed: a causal language"
            " model. Its decoder embeds through a module of its own."
        )
    one = isinstance(spec, (DecodingSpec, Mapping, str))
    specs = [parse_spec(item) for item in ([spec] if one else spec)]  # type: ignore[arg-type]
    if not specs:
        raise UnsupportedError("spec: got an empty list; allowed: one spec, or one for each prompt")
    runs = Runs(base, specs, tokenizer, list(logits_processor))
    return {
        "logits_processor": runs,
        # Not empty also because continuous batching refuses it, which would ignore our processor.
        "stopping_criteria": StoppingCriteriaList([*stopping_criteria, CommitTokens(runs)]),
    }


def traces(kwargs: Mapping[str, Any] | None = None) -> list[Trace | None]:
    """Traces of the last ``generate()`` call, one for each row.

    Parameters
    ----------
    kwargs
        What :func:`generate_kwargs` returned; ``None`` means the calling thread's last call.

    Returns
    -------
    list of Trace or None
        ``None`` for rows whose spec says ``trace.level: off``.

    Raises
    ------
    LookupError
        No call was made.
    """
    tape = getattr(_LAST, "tape", None) if kwargs is None else kwargs["logits_processor"].tape
    if tape is None:
        raise LookupError(
            "no generate() call with a spec has been made; call it first (generate_batch() drops"
            " these arguments without looking at them)"
        )
    return list(tape.traces())


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if isinstance(value, Tensor):
        value = value.tolist()
    return tuple(int(i) for i in (value if isinstance(value, (list, tuple)) else [value]))
