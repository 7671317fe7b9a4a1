"""What comes back through vLLM's output processor: reports of steps, traces, counts."""

from collections.abc import Iterator
from typing import Any

from tokenlens.serving import metrics
from tokenlens.serving.arguments import MARKERS_KEY, asks, sample_of
from tokenlens.serving.binding import check_room
from tokenlens.serving.faults import contained
from tokenlens.serving.traces import RequestRecorder
from tokenlens.vllm.doors import refused
from tokenlens.vllm.traces import ENGINE, FIELD

RECORDER = "_tokenlens"
"""Attribute of the states of requests with a spec."""

OURS = "tokenlens: "
"""How a ``stop_reason`` of ours begins: why a request ended as an error."""

MAX_REASONS = 256
_REASONS: dict[str, str] = {}
"""The same for those of which a server has yet to tell its client, by request."""

MARKERS = "_tokenlens_markers"
"""Attribute of the states of requests with markers of several tokens: which."""


def add_request(original: Any, self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse what the worker may have no room for, before it is sent there."""
    if request.request_id not in self.request_states:
        with refused():
            check_room(markers_of(request.sampling_params), markers_in_use(self))
    return original(self, request, *args, **kwargs)


def markers_of(params: Any) -> Any:
    """Which markers of several tokens sampling parameters that were admitted have."""
    return None if params is None else (params.extra_args or {}).get(MARKERS_KEY)


def markers_in_use(processor: Any) -> Iterator[Any]:
    """The same of all requests that have not ended."""
    return (vars(state).get(MARKERS) for state in processor.request_states.values())


def from_new_request(
    original: Any, cls: Any, tokenizer: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    """Give the state of a request with a spec its recorder."""
    made = original(cls, tokenizer, request, *args, **kwargs)
    params = request.sampling_params
    if params is not None and asks(params.extra_args):
        found = sample_of(params.extra_args)
        assert found is not None
        prompt = getattr(request, "prompt_token_ids", None)
        setattr(made, RECORDER, RequestRecorder(found[0], ENGINE, found[1], prompt))
        setattr(made, MARKERS, markers_of(params))
    return made


def abort_requests(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Notice requests that were aborted."""
    before = dict(self.request_states)
    result = original(self, *args, **kwargs)
    _close(before, self.request_states)
    return result


def _close(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Notice requests that ended."""
    for name, state in before.items():
        if name not in now:
            metrics.close(vars(state).get(RECORDER))


def process_outputs(
    original: Any, self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any
) -> Any:
    """Take the reports off the engine core's outputs, and notice requests that ended."""
    before = {}
    for one in engine_core_outputs:
        if one.request_id in self.request_states:
            before[one.request_id] = self.request_states[one.request_id]
        params = one.kv_transfer_params
        if params is None or FIELD not in params:
            continue
        report = params[FIELD]
        rest = {key: value for key, value in params.items() if key != FIELD}
        one.kv_transfer_params = rest or None
        state = self.request_states.get(one.request_id)
        recorder = None if state is None else vars(state).get(RECORDER)
        if recorder is not None:
            with contained(f"a report of request {one.request_id} is lost"):
                metrics.observe(recorder, report)
    result = original(self, engine_core_outputs, *args, **kwargs)
    _close(before, self.request_states)
    return result


def new_completion_output(
    original: Any, self: Any, token_ids: Any, finish_reason: Any, *args: Any, **kwargs: Any
) -> Any:
    """Put the trace on a completion that is finished."""
    output = original(self, token_ids, finish_reason, *args, **kwargs)
    recorder = vars(self).get(RECORDER)
    if recorder is not None and str(finish_reason) == "error":
        reason = str(getattr(output, "stop_reason", None) or "")
        if reason.startswith(OURS):
            whole = getattr(self, "parent_req", None) or self
            _REASONS[whole.external_req_id] = reason
            while len(_REASONS) > MAX_REASONS:
                del _REASONS[next(iter(_REASONS))]
    if recorder is not None and finish_reason is not None:
        with contained("a trace is lost"):
            setattr(output, FIELD, recorder.trace())
    return output


def raise_if_error(
    original: Any, self: Any, finish_reason: Any, request_id: Any, *args: Any, **kwargs: Any
) -> Any:
    """Say in the HTTP response why a request of ours ended; vLLM would say that it did."""
    if finish_reason == "error":
        # A completion's prompts have numbers behind the request's name.
        known = [k for k in _REASONS if k == request_id or k.startswith(f"{request_id}-")]
        reasons = [_REASONS.pop(key) for key in known]
        if reasons:
            from vllm.exceptions import GenerationError

            raise GenerationError(reasons[0])
    return original(self, finish_reason, request_id, *args, **kwargs)


def new_request_output(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Put the traces of a request where the HTTP response has them."""
    output = original(self, *args, **kwargs)
    completions = getattr(output, "outputs", None)
    if not isinstance(completions, list):  # a pooling request's
        return output
    found = [getattr(one, FIELD, None) for one in completions]
    if any(trace is not None for trace in found):
        traces = [None if trace is None else trace.model_dump(mode="json") for trace in found]
        # The one field of vLLM's own that reaches the HTTP response.
        output.kv_transfer_params = {
            **(output.kv_transfer_params or {}),
            FIELD: traces[0] if len(traces) == 1 else traces,
        }
    return output
