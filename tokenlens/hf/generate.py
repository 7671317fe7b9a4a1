"""Keyword arguments that carry a spec into ``generate()``, and the traces that come back."""

import inspect
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import or_
from os import PathLike
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
from tokenlens.core.recorder import Recorder
from tokenlens.core.request import possible_ends
from tokenlens.errors import ProtocolError, UnsupportedError
from tokenlens.hf.calls import Call, calling
from tokenlens.hf.criterion import CommitTokens, Seen
from tokenlens.hf.given import ids_of, tokenizer_of
from tokenlens.hf.layers import shape_of
from tokenlens.hf.loudness import notice
from tokenlens.hf.refusals import OUTSIDE, check, refuse_embeddings
from tokenlens.hf.run import Run
from tokenlens.hf.seeds import torch_seed
from tokenlens.methods import Method
from tokenlens.methods import files as operator_files
from tokenlens.methods.door import active, allow, allow_from_environment
from tokenlens.spec import DecodingSpec, Tokenizer, needs_of, parse_spec
from tokenlens.spec.needs import Need
from tokenlens.spec.seeds import is_open, with_seed
from tokenlens.spec.texts import holes, vocabulary_size
from tokenlens.trace import Trace

SpecLike = DecodingSpec | Mapping[str, Any] | str

_LAST = threading.local()


class Outside(LogitsProcessor):
    """Stands for ours in the list; whoever calls it has taken the list apart."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        raise ProtocolError(OUTSIDE)


class Runs(LogitsProcessorList):
    """The user's processors and ours: a fresh run for every list that ``generate()`` makes.

    An ordinary list to its owner: what is appended, inserted or taken out counts. Wherever they
    stand, the other processors run before ours, which decides on what they left.
    """

    def __init__(
        self,
        model: nn.Module,
        specs: Sequence[DecodingSpec],
        tokenizer: Tokenizer | None,
        processors: Sequence[LogitsProcessor],
        prompt_ids: Sequence[Sequence[int]] | None = None,
        seen: "Seen | None" = None,
    ) -> None:
        # A list that is not empty, or generate() would not look into it.
        super().__init__([*processors, Outside()])
        self.seen = seen or Seen()
        self._made_of = model, list(specs), tokenizer, prompt_ids
        self._model = model
        self._specs = list(specs)
        self._tokenizer = tokenizer
        self._prompt_ids = prompt_ids
        self._latent = any(spec.latent is not None for spec in specs)
        # Errors in a spec come before generate() has begun.
        self._bind({})

    @property
    def recorder(self) -> Recorder | None:
        """The recorder of the last call."""
        return self.seen.recorder

    @property
    def others(self) -> list[LogitsProcessor]:
        """The user's processors."""
        return [one for one in list.__iter__(self) if not isinstance(one, Outside)]

    def __iter__(self) -> Iterator[LogitsProcessor]:
        call = calling()
        if call is None:
            return list.__iter__(self)
        check(call.arguments, self._latent)
        requests = self._bind(call.arguments)
        if call.shows_no_ids and self._prompt_ids is None:
            refuse_embeddings(requests)
        recorders: list[Recorder] = []

        def begin(recorder: Recorder) -> None:
            recorders.append(recorder)
            self._begin(recorder)

        run = Run(
            call,
            call.arguments.get("self", self._model),
            lambda rows, device: self._rows(requests, rows, device, call),
            self._vocab_size(),
            begin,
            holes=holes(self._tokenizer, self._vocab_size()),
            needs=reduce(or_, (needs_of(spec) for spec in self._specs), Need.NOTHING),
            committed=self._is_told(call.arguments),
            prompt_ids=self._prompt_ids,
            in_place=not self.others and call.hands_over_logits,
        )
        self.seen.add(run)
        # The run lives as long as the call: then its counts can be read without making it wait.
        weakref.finalize(run, notice, weakref.ref(run.model), recorders).atexit = False
        return iter([*self.others, run])

    def __len__(self) -> int:
        # Ours is in it whatever is taken out: of an empty list generate() makes nothing.
        return len(self.others) + 1

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        # generate() calls a list of its own.
        raise ProtocolError(OUTSIDE)

    # A list that this one was put into as if it were a processor looks for arguments to pass on,
    # and complains of those in our signature before it calls.
    __call__.__signature__ = inspect.signature(Outside.__call__)  # type: ignore[attr-defined]

    def __add__(self, others: Any) -> "Runs":
        return self._with([*self.others, *others])

    def __radd__(self, others: Any) -> "Runs":
        return self._with([*others, *self.others])

    def __copy__(self) -> "Runs":
        return self._with(self.others)

    def copy(self) -> "Runs":
        """The same once more; traces of either are those of both."""
        return self._with(self.others)

    def __deepcopy__(self, memo: Any) -> "Runs":
        # Copies of the settings of a call are common; the model is not one of them.
        return self._with(self.others)

    def __reduce__(self) -> Any:
        # For other processes: the model goes along, once, if it is sent as well.
        model, specs, tokenizer, prompt_ids = self._made_of
        return type(self), (model, specs, tokenizer, self.others, prompt_ids, self.seen)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()

    def _with(self, processors: Sequence[LogitsProcessor]) -> "Runs":
        model, specs, tokenizer, prompt_ids = self._made_of
        return Runs(model, specs, tokenizer, processors, prompt_ids, self.seen)

    def _begin(self, recorder: Recorder) -> None:
        self.seen.recorder = _LAST.recorder = recorder

    def _is_told(self, arguments: Mapping[str, Any]) -> bool:
        """Whether our criterion, made the last one, shows the sampled tokens."""
        criteria = arguments.get("stopping_criteria")
        if not isinstance(criteria, list):
            return False
        ours = [one for one in criteria if isinstance(one, CommitTokens) and one.seen is self.seen]
        if ours and criteria[-1] is not ours[-1]:
            # Any order stops at the same step; what raises behind ours would find the model ready
            # for the next one.
            criteria[:] = [*(one for one in criteria if one not in ours), *ours]
        return bool(ours)

    def _vocab_size(self) -> int:
        width = int(self._model.config.get_text_config().vocab_size)  # type: ignore[operator, union-attr]
        return vocabulary_size(self._tokenizer, width)

    def _bind(self, arguments: Mapping[str, Any]) -> list[Request]:
        config = arguments.get("generation_config") or self._model.generation_config
        vocab_size = self._vocab_size()
        eos_ids = possible_ends(ids_of(getattr(config, "eos_token_id", None)), vocab_size)
        for spec in self._specs:
            for name in ("min_new_tokens", "min_length"):
                spec.refuse_least(name, getattr(config, name, None))
        # What ends a turn does so whatever the call is to stop at.
        own = [
            getattr(one, "eos_token_id", None)
            for one in (self._model.generation_config, self._model.config.get_text_config())  # type: ignore[operator, union-attr]
        ]
        turn_ends = possible_ends([i for ids in own for i in ids_of(ids)], vocab_size)
        return [
            bind(
                spec,
                methods=active(),
                tokenizer=self._tokenizer,
                vocab_size=vocab_size,
                eos_ids=eos_ids,
                turn_ends=turn_ends,
                strict=True,
                shape=shape_of(self._model),
            )
            for spec in self._specs
        ]

    def _rows(
        self,
        requests: Sequence[Request],
        num_rows: int,
        device: torch.device,
        call: Call,
    ) -> list[Request]:
        """A request for each row: ``num_return_sequences`` repeats rows, each with its own seed.

        A seed that the spec gives is for all rows with this spec, and the samples of a prompt have
        theirs from it. Where it is open, every row of the call has another.
        """
        config = call.arguments.get("generation_config")
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
            seed = torch_seed(device, bool(getattr(config, "do_sample", False)), call)
        return [
            one.seeded(with_seed(one.spec, seed, row))
            if is_open(one.spec)
            else one.sample(row % samples)
            for row, one in enumerate(rows)
        ]


def generate_kwargs(
    model: nn.Module,
    tokenizer: Tokenizer | None,
    spec: SpecLike | Sequence[SpecLike],
    *,
    logits_processor: Sequence[LogitsProcessor] = (),
    stopping_criteria: Sequence[StoppingCriteria] = (),
    prompt_ids: Sequence[Sequence[int]] | Tensor | None = None,
    methods: Sequence[str | type[Method]] = (),
    files: Mapping[str, str | PathLike[str]] | None = None,
) -> dict[str, Any]:
    """Arguments that make ``model.generate()`` decode as a spec says.

    Parameters
    ----------
    model
        A stock causal language model of transformers, or a PEFT model around one.
    tokenizer
        The model's tokenizer, or the processor that has it. ``None`` where the spec gives its think
        markers as token ids.
    spec
        A spec, a mapping, the name of a preset, or a list with one of them for each prompt.
    logits_processor, stopping_criteria
        Your own; ``generate()`` takes each argument once. Your processors run before ours. What is
        appended to ``kwargs["logits_processor"]`` later counts as well.
    prompt_ids
        Tokens of each prompt, without padding, where ``generate()`` gets ``inputs_embeds`` alone:
        whether the thinking is open is read off the tokens.
    methods
        Methods from outside that specs of this process may name: names of entry points in the group
        ``tokenlens.methods``, or classes. The environment variable ``TOKENLENS_METHODS`` adds some.
    files
        Safetensors files that specs of this process may name, by the name that they use. The
        environment variable ``TOKENLENS_FILES``, a JSON object, adds some.

    Returns
    -------
    dict
        ``logits_processor`` and ``stopping_criteria``. It can be used for any number of calls; each
        begins afresh. Use a dict of its own in every thread. It can be sent to another process;
        send the model with it, or build it there.

    Notes
    -----
    ``model.generate_batch()`` drops every argument that it does not know, and answers as if no spec
    had been given; nothing that is passed to it can notice. :func:`traces` then raises LookupError.

    Raises
    ------
    SpecError
        The spec cannot be carried out with this model and tokenizer.
    MethodError
        A method from outside that is missing or broken.
    UnsupportedError
        The model cannot host it; ``generate()`` raises the same for its own settings.

    Examples
    --------
    >>> kwargs = generate_kwargs(model, tokenizer, "qwen3-soft")  # doctest: +SKIP
    >>> output = model.generate(**inputs, **kwargs)  # doctest: +SKIP
    >>> traces(kwargs)[0].counts.latent_steps  # doctest: +SKIP
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    if not hasattr(base, "config"):
        raise UnsupportedError(
            f"model: got {type(base).__name__}; allowed: a causal language model of transformers."
            " Of a wrapper (DataParallel, DistributedDataParallel) give what it wraps: model.module"
        )
    if getattr(base.config, "is_encoder_decoder", False):
        raise UnsupportedError(
            f"model: got {type(base).__name__}, an encoder-decoder; allowed: a causal language"
            " model. Its decoder embeds through a module of its own."
        )
    allow(methods)
    allow_from_environment()
    operator_files.allow(files or {})
    operator_files.allow_from_environment()
    one = isinstance(spec, (DecodingSpec, Mapping, str))
    specs = [parse_spec(item) for item in ([spec] if one else spec)]  # type: ignore[arg-type]
    if not specs:
        raise UnsupportedError("spec: got an empty list; allowed: one spec, or one for each prompt")
    if isinstance(prompt_ids, Tensor):
        prompt_ids = prompt_ids.tolist()
    runs = Runs(base, specs, tokenizer_of(tokenizer), list(logits_processor), prompt_ids)
    return {
        "logits_processor": runs,
        # Not empty also because continuous batching refuses it, which would ignore our processor.
        "stopping_criteria": StoppingCriteriaList([*stopping_criteria, CommitTokens(runs.seen)]),
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
    recorder = (
        getattr(_LAST, "recorder", None) if kwargs is None else kwargs["logits_processor"].recorder
    )
    if recorder is None:
        raise LookupError(
            "no generate() call with a spec has been made; call it first (generate_batch() drops"
            " these arguments without looking at them)"
        )
    return list(recorder.traces())
