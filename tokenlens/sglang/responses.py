"""What comes back from SGLang's front end: traces in responses and streams, and counts."""

import contextlib
import copy
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

from tokenlens.serving import metrics
from tokenlens.serving.arguments import KEY, asks, sample_of
from tokenlens.serving.faults import contained
from tokenlens.serving.streams import with_traces
from tokenlens.serving.traces import RequestRecorder
from tokenlens.sglang.frontend import PARAMETERS, PROMPT_IDS, admission_of
from tokenlens.sglang.traces import ENGINE

RECORDER = "_tokenlens"

OPEN = "_tokenlens_open"
"""Attribute of managers: recorders of requests that have not ended, by their ids."""


def update_request_meta_info(
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
    with contained(f"a report of request {meta_info.get('id')} is lost"):
        _record(self, meta_info, state, customized_info[KEY][index] or (), finish_reason)
    return result


def _record(
    manager: Any, meta_info: Any, state: Any, reported: Iterable[Any], finish_reason: Any
) -> None:
    # Routers between SGLang's processes leave an entry empty where a request had none.
    reports = [report for report in reported if report is not None]
    recorder = vars(state).get(RECORDER)
    if recorder is None and reports:
        asked = sample_of(vars(state).get(PARAMETERS))
        if asked is None:
            return
        recorder = RequestRecorder(asked[0], ENGINE, asked[1], vars(state).get(PROMPT_IDS))
        setattr(state, RECORDER, recorder)
        vars(manager).setdefault(OPEN, {})[meta_info["id"]] = recorder
    for report in reports:
        metrics.observe(recorder, report)
    if recorder is not None and finish_reason is not None:
        found = recorder.trace()
        if found is not None:
            meta_info[KEY] = found.model_dump(mode="json")
        _end(manager, meta_info["id"])


def _end(manager: Any, rid: str) -> None:
    metrics.close(vars(manager).get(OPEN, {}).pop(rid, None))


def _sweep(manager: Any, rids: Iterable[str]) -> None:
    """Notice requests that ended without a last report."""
    open_ones = vars(manager).get(OPEN)
    for rid in rids if open_ones else ():
        if rid in open_ones and rid not in manager.rid_to_state:
            _end(manager, rid)


async def handle_batch_output(original: Any, self: Any, recv_obj: Any) -> Any:
    try:
        return await original(self, recv_obj)
    finally:
        _sweep(self, recv_obj.rids)


def handle_abort_req(original: Any, self: Any, recv_obj: Any) -> Any:
    try:
        return original(self, recv_obj)
    finally:
        _sweep(self, [recv_obj.rid])


def build_response(original: Any, self: Any, request: Any, ret: Any, *args: Any) -> Any:
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


async def stream(
    original: Any, self: Any, adapted_request: Any, request: Any, raw_request: Any
) -> AsyncIterator[str]:
    """Put traces into the chunks that end the choices of a stream."""
    manager = self.tokenizer_manager
    traces: dict[int, Any] = {}
    params = adapted_request.sampling_params
    if admission_of(manager) is not None and asks((params or {}).get("custom_params")):
        self = copy.copy(self)
        self.tokenizer_manager = _Listener(manager, traces)
    async with contextlib.aclosing(original(self, adapted_request, request, raw_request)) as chunks:
        async for chunk in chunks:
            yield with_traces(chunk, traces, _put) if traces else chunk


class _Listener:
    """A manager whose outputs are read on their way."""

    def __init__(self, manager: Any, traces: dict[int, Any]) -> None:
        self._manager, self._traces = manager, traces

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    async def generate_request(self, *args: Any) -> AsyncIterator[Any]:
        async with contextlib.aclosing(self._manager.generate_request(*args)) as outputs:
            async for output in outputs:
                if KEY in output["meta_info"]:
                    self._traces[output.get("index", 0)] = output["meta_info"][KEY]
                yield output


def _put(content: dict[str, Any], choice: dict[str, Any], trace: Any) -> None:
    choice["meta_info"] = {KEY: trace}
