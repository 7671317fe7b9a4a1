"""SGLang's front end: what is admitted, what comes back, and what is counted."""

import copy
import json
import os
from typing import Any

from tokenlens.sglang import refusals, switch
from tokenlens.sglang.arguments import KEY, SAMPLE_KEY, asks, spec_of
from tokenlens.sglang.binding import Binder
from tokenlens.sglang.hooks import HANDSHAKE, Around
from tokenlens.sglang.traces import ENGINE
from tokenlens.spec import SpecError
from tokenlens.vllm import metrics
from tokenlens.vllm.settings import Settings
from tokenlens.vllm.traces import Recorder

ADMISSION = "_tokenlens"
RECORDER = "_tokenlens"
SAMPLES = "_tokenlens_samples"

MAX_OPEN = 1024
"""Prompts whose samples are being sent at the same time."""


class Admission:
    """What the front end of one engine knows: its settings and its model."""

    def __init__(self, manager: Any, settings: Settings) -> None:
        self.settings = settings
        self.bind = Binder(manager.model_config, manager.tokenizer)

    def check(self, request: Any, params: Any) -> None:
        """Refuse what cannot be done, and write the spec out in full for the scheduler.

        Raises
        ------
        SpecError
        """
        if SAMPLE_KEY in params.custom_params:
            raise SpecError.of(SAMPLE_KEY, params.custom_params[SAMPLE_KEY], "nothing: it is ours")
        spec = spec_of(params.custom_params)
        assert spec is not None
        refusals.check_request(spec, request, params, self.settings)
        self.bind(params)
        rest = {key: v for key, v in params.custom_params.items() if not asks({key: None})}
        params.custom_params = {**rest, KEY: spec.model_dump_json()}


def admission_of(manager: Any) -> Admission | None:
    """The manager's admission, ``None`` if its engine runs without tokenlens."""
    found = vars(manager).get(ADMISSION)
    return found if isinstance(found, Admission) else None


def _init(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    settings = switch.settings()
    if settings is not None:
        setattr(self, ADMISSION, Admission(self, settings))


def _wait_for_scheduler_ready(original: Any, pipes: Any, processes: Any) -> Any:
    """End the start unless every scheduler has tokenlens."""
    infos = original(pipes, processes)
    if switch.settings() is not None and not all(info.get(HANDSHAKE) for info in infos):
        from sglang.srt.utils import kill_process_tree

        kill_process_tree(os.getpid(), include_parent=False)
        raise SystemExit(
            "tokenlens: a scheduler of this engine started without tokenlens, and specs would"
            " silently not be carried out. SGLang's log says why its plugin was not loaded."
        )
    return infos


def _create_tokenized_object(
    original: Any, self: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    tokenized = original(self, request, *args, **kwargs)
    params = getattr(tokenized, "sampling_params", None)
    if params is None or not asks(getattr(params, "custom_params", None)):
        return tokenized
    admission = admission_of(self)
    if admission is None:
        raise ValueError(
            "custom_params: got a spec for tokenlens, but this engine was started without it; start"
            " it with --enable-tokenlens, or with tokenlens.sglang.engine(...)"
        )
    try:
        admission.check(request, params)
    except SpecError as error:
        metrics.count("refusals", engine="sglang")
        # SGLang answers a ValueError with a 400 that carries its text.
        raise ValueError(str(error)) from None
    return tokenized


async def _send_one_request(original: Any, self: Any, tokenized: Any) -> Any:
    params = getattr(tokenized, "sampling_params", None)
    asked = getattr(params, "custom_params", None)
    # The samples of one prompt share their parameters; each gets its own noise.
    if asked and params is not None and admission_of(self) is not None and asks(asked):
        index = vars(self).setdefault(SAMPLES, _Samples()).next(params)
        if index:
            tokenized.sampling_params = copy.copy(params)
            tokenized.sampling_params.custom_params = {**asked, SAMPLE_KEY: index}
    return await original(self, tokenized)


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


def _update_request_meta_info(
    original: Any,
    self: Any,
    meta_info: Any,
    state: Any,
    customized_info: Any,
    index: int,
    finish_reason: Any,
) -> Any:
    if admission_of(self) is None or KEY not in customized_info:
        return original(self, meta_info, state, customized_info, index, finish_reason)
    rest = {key: values for key, values in customized_info.items() if key != KEY}
    result = original(self, meta_info, state, rest, index, finish_reason)
    reports = [report for report in customized_info[KEY][index] if report is not None]
    recorder = vars(state).get(RECORDER)
    if recorder is None and reports:
        spec = spec_of((state.obj.sampling_params or {}).get("custom_params"))
        if spec is None:
            return result
        recorder = Recorder(spec, ENGINE)
        setattr(state, RECORDER, recorder)
    for report in reports:
        before = recorder.switches
        grown = recorder.add(report)
        metrics.observe(grown, report[1], recorder.switches - before, engine="sglang")
    if recorder is not None and finish_reason is not None:
        found = recorder.trace()
        if found is not None:
            meta_info[KEY] = found.model_dump(mode="json")
    return result


def _build_response(original: Any, self: Any, request: Any, ret: Any, *args: Any) -> Any:
    """Put traces where ``/generate`` has them: into each choice's ``meta_info``."""
    response = original(self, request, ret, *args)
    traces = [(one.get("meta_info") or {}).get(KEY) for one in ret]
    if not any(trace is not None for trace in traces):
        return response
    from fastapi.responses import JSONResponse

    if hasattr(response, "model_dump"):
        content = response.model_dump(mode="json")
    else:
        content = json.loads(response.body)
    for choice in content.get("choices", ()):
        trace = traces[choice["index"]]
        if trace is not None:
            choice["meta_info"] = {**(choice.get("meta_info") or {}), KEY: trace}
    return JSONResponse(content)


TARGETS: dict[str, dict[str, Around]] = {
    "sglang.srt.entrypoints.engine": {"_wait_for_scheduler_ready": _wait_for_scheduler_ready},
    "sglang.srt.managers.tokenizer_manager": {
        "TokenizerManager.__init__": _init,
        "TokenizerManager._create_tokenized_object": _create_tokenized_object,
        "TokenizerManager._send_one_request": _send_one_request,
        "TokenizerManager.update_request_meta_info": _update_request_meta_info,
    },
    "sglang.srt.entrypoints.openai.serving_completions": {
        "OpenAIServingCompletion._build_completion_response": _build_response,
    },
    "sglang.srt.entrypoints.openai.serving_chat": {
        "OpenAIServingChat._build_chat_response": _build_response,
    },
}
"""What is wrapped."""
