"""vLLM's front end: what is admitted, what comes back, and what is counted."""

from copy import copy
from types import ModuleType
from typing import Any

from tokenlens.errors import SpecError
from tokenlens.serving import metrics
from tokenlens.serving.admission import marked
from tokenlens.serving.arguments import (
    SAMPLE_KEY,
    asks,
    refuse_internal,
    sample_of,
    seeded,
    spec_of,
)
from tokenlens.serving.faults import contained
from tokenlens.serving.hooks import wrap
from tokenlens.serving.off_loop import off_loop
from tokenlens.serving.places import check_place
from tokenlens.serving.settings import Settings
from tokenlens.serving.traces import Recorder
from tokenlens.vllm import doors
from tokenlens.vllm.binding import Binder
from tokenlens.vllm.refusals import asked_for, check_request, check_spec
from tokenlens.vllm.traces import ENGINE, FIELD

ADMISSION = "_tokenlens"
RECORDER = "_tokenlens"
SETTINGS = "_tokenlens_settings"


class Admission:
    """What the front end of one engine knows: its settings and its model."""

    def __init__(self, processor: Any) -> None:
        config = processor.vllm_config
        self.settings = Settings.of(config.additional_config)
        self.bind = Binder(config.model_config, processor.tokenizer)
        self._processor = processor

    def prepare(self, params: Any) -> None:
        """Read and bind a spec; :meth:`check` then finds what was made, and is quick.

        Raises
        ------
        SpecError
        """
        refuse_internal(params.extra_args)
        spec = spec_of(params.extra_args)
        if spec is not None:
            check_spec(spec, self.settings)
            # The ids that end this request, as vLLM will add them to a copy of its parameters
            params = params.clone()
            params.update_from_generation_config(
                self._processor.generation_config_fields,
                self._processor.renderer.get_eos_token_id(),
            )
            self.bind.prepare(spec, params)

    def check(self, request: Any) -> None:
        """Refuse what cannot be done, and find the seed of what can.

        Raises
        ------
        SpecError
        """
        params = request.sampling_params
        refuse_internal(params.extra_args)
        spec = spec_of(params.extra_args)
        if spec is not None:
            check_request(spec, params, self.settings, request)
            # vLLM has copied the parameters, perhaps not what they hold.
            params.extra_args = seeded(params.extra_args, spec, params.seed)
            params.extra_args = self.bind.found(params.extra_args, self.bind(params))


def init_processor(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """Make what admission needs, the texts of the vocabulary above all, before any request."""
    original(self, *args, **kwargs)
    if asked_for(self.vllm_config):
        setattr(self, ADMISSION, Admission(self))


async def add_request(
    original: Any, self: Any, request_id: Any, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    """Bind a spec before vLLM looks at its request, which it does on the event loop."""
    admission = vars(self.input_processor).get(ADMISSION)
    if admission is not None and asks(getattr(params, "extra_args", None)):
        try:
            await off_loop(lambda: admission.prepare(params))
        except SpecError as error:
            raise refused(error) from None
    return await original(self, request_id, prompt, params, *args, **kwargs)


async def create(original: Any, self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse a spec before a stream begins: behind its headers there is no HTTP 400 any more."""
    processor = getattr(self.engine_client, "input_processor", None)
    admission = None if processor is None else vars(processor).get(ADMISSION)
    params = getattr(request, "sampling_params", None)
    if params is None and asks(getattr(request, "vllm_xargs", None)):
        from vllm import SamplingParams

        # What of the request decides how its spec is bound; vLLM looks at the rest.
        params = SamplingParams(
            stop_token_ids=getattr(request, "stop_token_ids", None),
            ignore_eos=bool(getattr(request, "ignore_eos", False)),
            extra_args=dict(request.vllm_xargs),
        )
    if admission is not None and asks(getattr(params, "extra_args", None)):
        try:
            await off_loop(lambda: admission.prepare(params))
        except SpecError as error:
            raise refused(error) from None
    return await original(self, request, *args, **kwargs)


def refused(error: SpecError) -> Exception:
    """vLLM's own error for a spec that cannot be carried out: HTTP 400."""
    from vllm.exceptions import VLLMValidationError

    metrics.count_refusal(ENGINE)
    refusal: Exception = VLLMValidationError(str(error), parameter="vllm_xargs")
    return refusal


def process_inputs(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Admit a request; a spec that cannot be carried out is the client's error."""
    from vllm.exceptions import VLLMValidationError

    for value in (*args, *kwargs.values()):
        with doors.refused():
            # Directly in there, and nowhere deeper.
            check_place(getattr(value, "extra_args", None), (), "extra_args")
    if not asked_for(self.vllm_config):
        if _mentions(args, kwargs):
            raise VLLMValidationError(
                "vllm_xargs: got a spec for tokenlens, but this engine was started without it;"
                " start it with logits_processors=['tokenlens.vllm:TokenLens']",
                parameter="vllm_xargs",
            )
        return original(self, *args, **kwargs)
    admission = vars(self).get(ADMISSION)
    if admission is None:
        admission = Admission(self)
        setattr(self, ADMISSION, admission)
    try:
        request = original(self, *args, **kwargs)
        params = request.sampling_params
        if params is not None and asks(params.extra_args):
            admission.check(request)
            params.extra_args = marked(params.extra_args)
    except SpecError as error:
        raise refused(error) from None
    except Exception:
        if _mentions(args, kwargs):
            metrics.count_refusal(ENGINE)
        raise
    return request


def _mentions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(asks(getattr(value, "extra_args", None)) for value in (*args, *kwargs.values()))


def to_beam_search_params(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse beams for a request with a spec, which vLLM would not pass on to them."""
    if asks(getattr(self, "vllm_xargs", None)):
        from vllm.exceptions import VLLMValidationError

        metrics.count_refusal(ENGINE)
        raise VLLMValidationError(
            "use_beam_search: got True; allowed: false beside a spec for tokenlens, because beam"
            " search would feed a mixture to another beam. Use n with a temperature instead",
            parameter="use_beam_search",
        )
    return original(self, *args, **kwargs)


def child_sampling_params(original: Any, self: Any, index: int, *args: Any, **kwargs: Any) -> Any:
    """Parameters of the n-th sample of a prompt: its own noise if it has a spec."""
    params = original(self, index, *args, **kwargs)
    if not asks(params.extra_args):
        return params
    # vLLM may hand the same object out for all samples.
    params = copy(params)
    params.extra_args = {**params.extra_args, SAMPLE_KEY: index}
    return params


def install_outputs(module: ModuleType) -> None:
    """Follow reports through the output processor."""
    wrap(module.OutputProcessor, "process_outputs", _process_outputs)
    wrap(module.OutputProcessor, "abort_requests", _abort_requests)
    wrap(module.RequestState, "_new_completion_output", _new_completion_output)
    wrap(module.RequestState, "_new_request_output", _new_request_output)
    state: Any = module.RequestState
    original = state.from_new_request.__func__

    def from_new_request(cls: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(cls, *args, **kwargs)
        request = kwargs.get("request") or next(a for a in args if hasattr(a, "sampling_params"))
        params = request.sampling_params
        if params is not None and asks(params.extra_args):
            found = sample_of(params.extra_args)
            assert found is not None
            prompt = getattr(request, "prompt_token_ids", None)
            setattr(made, RECORDER, Recorder(found[0], ENGINE, found[1], prompt))
        return made

    state.from_new_request = classmethod(from_new_request)


def _abort_requests(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    before = dict(self.request_states)
    result = original(self, *args, **kwargs)
    _close(before, self.request_states)
    return result


def _close(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Notice requests that ended."""
    for name, state in before.items():
        if name not in now:
            metrics.close(vars(state).get(RECORDER))


def _process_outputs(original: Any, self: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
    before = {}
    for one in outputs:
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
    result = original(self, outputs, *args, **kwargs)
    _close(before, self.request_states)
    return result


def _new_completion_output(
    original: Any, self: Any, token_ids: Any, finish_reason: Any, *args: Any, **kwargs: Any
) -> Any:
    output = original(self, token_ids, finish_reason, *args, **kwargs)
    recorder = vars(self).get(RECORDER)
    if recorder is not None and finish_reason is not None:
        with contained("a trace is lost"):
            setattr(output, FIELD, recorder.trace())
    return output


def _new_request_output(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
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
