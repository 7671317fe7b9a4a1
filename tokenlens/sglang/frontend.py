"""SGLang's front end: how it starts, and what is admitted."""

import copy
import multiprocessing
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tokenlens.core import Request
from tokenlens.errors import SpecError
from tokenlens.serving import metrics, structure
from tokenlens.serving.admission import marked
from tokenlens.serving.arguments import (
    KEY,
    MARKERS_KEY,
    SAMPLE_KEY,
    asks,
    refuse_internal,
    seeded,
    spec_of,
)
from tokenlens.serving.binding import check_room
from tokenlens.serving.layer_files import check_files, check_seats
from tokenlens.serving.off_loop import off_loop
from tokenlens.serving.refusals import check_vectors
from tokenlens.serving.settings import Settings
from tokenlens.sglang import refusals, switch
from tokenlens.sglang.binding import binder_of, reasoning_of, shape_of
from tokenlens.sglang.grammars import FIELDS, grammars_of, holds_from_start, is_held
from tokenlens.sglang.hooks import ADMISSION, HANDSHAKE
from tokenlens.sglang.traces import ENGINE

SAMPLES = "_tokenlens_samples"

WRITTEN = "_tokenlens_written"
"""Attribute of SGLang's request: what the client wrote, where that was another."""

PARAMETERS = "_tokenlens_parameters"
PROMPT_IDS = "_tokenlens_prompt_ids"
"""Attribute of a request's state: its ``custom_params`` as the scheduler got them."""

MAX_OPEN = 1024
"""Prompts whose samples are being sent at the same time."""


class SglangFrontEnd:
    """What the front end of one engine knows: its settings and its model."""

    def __init__(self, manager: Any, settings: Settings) -> None:
        refusals.check_model(manager.model_config, settings)
        metrics.begin(ENGINE)
        self.settings = settings
        settings.read_files()
        check_files(settings, shape_of(manager.model_config))
        args = getattr(manager, "server_args", None)
        self.grammars = grammars_of(args, manager.tokenizer)
        self.bind = binder_of(
            manager.model_config, manager.tokenizer, reasoning_of(args), self.grammars
        )

    def prepare(self, manager: Any, request: Any) -> None:
        """Read and bind a spec; :meth:`admit` then finds what was made, and is quick.

        Raises
        ------
        ValueError
        """
        values = {**(manager.preferred_sampling_params or {}), **(request.sampling_params or {})}
        asked = values.get("custom_params")
        if not isinstance(asked, Mapping) or not asks(asked):
            return
        try:
            spec = spec_of(asked)
            if spec is not None:
                refusals.check_spec(spec, self.settings)
                self.bind.prepare(spec, StopsOf(values))
        except SpecError as error:
            metrics.count_refusal(ENGINE)
            raise ValueError(str(error)) from None

    def admit(self, manager: Any, request: Any, params: Any, prompt: Any = None) -> None:
        """Refuse what cannot be done, and write the spec out in full for the scheduler.

        Parameters
        ----------
        request
            SGLang's ``GenerateReqInput``.
        params
            Its ``SamplingParams``.
        prompt
            Its tokens.

        Raises
        ------
        ValueError
            SGLang answers with a 400 that carries its text.
        """
        try:
            self._check(manager, request, params, prompt)
        except SpecError as error:
            metrics.count_refusal(ENGINE)
            raise ValueError(str(error)) from None
        note_parameters(manager, request.rid, params.custom_params)

    def _check(self, manager: Any, request: Any, params: Any, prompt: Any) -> None:
        refuse_internal(params.custom_params)
        spec = spec_of(params.custom_params)
        assert spec is not None
        refusals.check_request(spec, request, params, self.settings)
        rest = {key: v for key, v in params.custom_params.items() if not asks({key: None})}
        written = {**rest, KEY: spec.model_dump_json()}
        params.custom_params = marked(seeded(written, spec, params.sampling_seed))
        bound = self.bind(params)
        if bound is not None:
            self._check_vectors(manager, bound, params)
            check_seats(bound, self.settings, manager.model_config.dtype)
        if is_held(params) and bound is not None:
            self._check_structure(bound, request, params, list(prompt or ()))
        params.custom_params = self.bind.found(params.custom_params, bound)
        sent = (vars(state).get(PARAMETERS) for state in manager.rid_to_state.values())
        used = ((one or {}).get(MARKERS_KEY) for one in sent)
        check_room(params.custom_params.get(MARKERS_KEY), used)

    def _check_vectors(self, manager: Any, bound: Request, params: Any) -> None:
        model = manager.model_config
        context = int(model.context_len)
        most = min(params.max_new_tokens or context, context)
        size, ranks = int(model.hidden_size), int(manager.server_args.tp_size or 1)
        check_vectors(bound, most, self.settings, size, ranks)

    def _check_structure(
        self, bound: Request, request: Any, params: Any, prompt: Sequence[int]
    ) -> None:
        why = structure.conflict(bound, self.grammars)
        if why is None and holds_from_start(request, params):
            why = structure.EARLY if structure.begins_early(bound, prompt) else None
        if why is not None:
            became = next(name for name in FIELDS if getattr(params, name, None))
            raise structure.problem(vars(request).get(WRITTEN, params), FIELDS, became, why)


class StopsOf:
    """What binds a spec, read off the parameters that SGLang has yet to make of its fields."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        for name in FIELDS:
            setattr(self, name, values.get(name))
        self.ignore_eos = values.get("ignore_eos")
        ids = values.get("stop_token_ids") or ()
        known = isinstance(ids, (list, tuple, set)) and all(type(i) is int for i in ids)
        self.stop_token_ids = ids if known else ()


async def tokenize_one_request(
    original: Any, self: Any, obj: Any, *args: Any, **kwargs: Any
) -> Any:
    await _prepare(self, [obj])
    return await original(self, obj, *args, **kwargs)


async def batch_tokenize_and_process(
    original: Any, self: Any, batch_size: int, obj: Any, *args: Any, **kwargs: Any
) -> Any:
    await _prepare(self, [obj[index] for index in range(batch_size)])
    return await original(self, batch_size, obj, *args, **kwargs)


async def _prepare(manager: Any, requests: Sequence[Any]) -> None:
    """Bind specs before SGLang makes its parameters of them, which it does on the event loop."""
    admission = admission_of(manager)
    if admission is None:
        return
    for request in requests:
        # A default of the server's may be a spec too.
        given = (manager.preferred_sampling_params, getattr(request, "sampling_params", None))
        if any(isinstance(values, Mapping) and values.get("custom_params") for values in given):
            await off_loop(partial(admission.prepare, manager, request))


def admission_of(manager: Any) -> SglangFrontEnd | None:
    """The manager's admission, ``None`` if its engine runs without tokenlens."""
    found = vars(manager).get(ADMISSION)
    return found if isinstance(found, SglangFrontEnd) else None


_starting: list[Any] = []
"""Managers of the start that is under way."""


def init_manager(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    settings = switch.settings()
    if settings is None:
        original(self, *args, **kwargs)
        return
    _starting.append(self)
    original(self, *args, **kwargs)
    setattr(self, ADMISSION, SglangFrontEnd(self, settings))


def launch_subprocesses(original: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
    """A start that fails leaves nothing of its own behind, and other engines alone."""
    if switch.settings() is None:
        return original(cls, *args, **kwargs)
    _starting.clear()
    others = set(multiprocessing.active_children())
    try:
        return original(cls, *args, **kwargs)
    except BaseException:
        from sglang.srt.utils import kill_process_tree

        for process in set(multiprocessing.active_children()) - others:
            kill_process_tree(process.pid, wait_timeout=None)
            process.join()
        for manager in _starting:
            _close_sockets(manager)
        raise
    finally:
        _starting.clear()


def _close_sockets(manager: Any) -> None:
    # Nobody else has them. Collected in one cycle with their context, they would be closed after
    # it, and it waits for them: the process would hang at some later garbage collection.
    import zmq

    for value in vars(manager).values():
        if isinstance(value, zmq.Socket):
            value.close(linger=0)


def wait_for_scheduler_ready(
    original: Any, scheduler_pipe_readers: Any, scheduler_procs: Any
) -> Any:
    """End the start unless every scheduler has tokenlens."""
    infos = original(scheduler_pipe_readers, scheduler_procs)
    if switch.settings() is not None and not all(info.get(HANDSHAKE) for info in infos):
        raise SystemExit(
            "tokenlens: a scheduler of this engine started without tokenlens, and specs would"
            " silently not be carried out. SGLang's log says why its plugin was not loaded."
        )
    return infos


async def send_one_request(original: Any, self: Any, tokenized_obj: Any) -> Any:
    params = getattr(tokenized_obj, "sampling_params", None)
    asked = getattr(params, "custom_params", None)
    # The samples of one prompt share their parameters; each gets its own noise.
    if asked and params is not None and admission_of(self) is not None and asks(asked):
        index = vars(self).setdefault(SAMPLES, _Samples()).next(params)
        if index:
            tokenized_obj.sampling_params = copy.copy(params)
            asked = tokenized_obj.sampling_params.custom_params = {**asked, SAMPLE_KEY: index}
        note_parameters(self, tokenized_obj.rid, asked, getattr(tokenized_obj, "input_ids", None))
    return await original(self, tokenized_obj)


def note_parameters(manager: Any, rid: Any, parameters: Any, prompt_ids: Any = None) -> None:
    """Keep what was sent of a request with its state: its trace has its seed and its prompt."""
    state = manager.rid_to_state.get(rid)
    if state is not None:
        setattr(state, PARAMETERS, parameters)
        setattr(state, PROMPT_IDS, prompt_ids)


def convert_to_internal_request(
    original: Any, self: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    """Remember what the client wrote, for an error about a grammar."""
    adapted, processed = original(self, request, *args, **kwargs)
    asked = getattr(request, "custom_params", None)
    if asked and admission_of(self.tokenizer_manager) is not None and asks(asked):
        setattr(adapted, WRITTEN, request)
    return adapted, processed


class _Samples:
    """Numbers the requests that share one object of sampling parameters."""

    def __init__(self) -> None:
        # Holding the object keeps its identity from being given to another.
        self._open: dict[int, tuple[Any, int]] = {}

    def next(self, params: Any) -> int:
        _, index = self._open.pop(id(params), (params, 0))
        if index + 1 < params.n:
            self._open[id(params)] = params, index + 1
        if len(self._open) > MAX_OPEN:
            # Prompts whose samples were never all sent.
            self._open.pop(next(iter(self._open)))
        return index
