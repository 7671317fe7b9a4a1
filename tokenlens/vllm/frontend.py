"""vLLM's front end: what is admitted. What comes back is in :mod:`tokenlens.vllm.outputs`."""

from collections.abc import Sequence
from copy import copy
from typing import Any

from tokenlens.core import Request
from tokenlens.errors import SpecError
from tokenlens.serving import metrics, structure
from tokenlens.serving.admission import marked
from tokenlens.serving.arguments import (
    MARKERS_KEY,
    SAMPLE_KEY,
    asks,
    refuse_internal,
    seeded,
    spec_of,
)
from tokenlens.serving.binding import check_room
from tokenlens.serving.layer_files import check_seats
from tokenlens.serving.off_loop import off_loop
from tokenlens.serving.places import check_place
from tokenlens.serving.refusals import check_vectors
from tokenlens.serving.settings import Settings
from tokenlens.vllm.binding import binder_of, reasoning_of
from tokenlens.vllm.doors import refused, serving
from tokenlens.vllm.drafts import drafts_of, refuse_beside_drafts
from tokenlens.vllm.grammars import GrammarsOf, told
from tokenlens.vllm.outputs import markers_in_use
from tokenlens.vllm.refusals import asked_for, check_request, check_spec
from tokenlens.vllm.traces import ENGINE

ADMISSION = "_tokenlens"
"""Attribute of input processors whose engine names our class: their :class:`VllmFrontEnd`."""


class VllmFrontEnd:
    """What the front end of one engine knows: its settings and its model."""

    def __init__(self, processor: Any) -> None:
        config = processor.vllm_config
        metrics.begin(ENGINE)
        self.settings = Settings.of(config.additional_config)
        self.settings.read_files()
        self.grammars = GrammarsOf(config, processor.tokenizer)
        self.bind = binder_of(
            config.model_config,
            processor.tokenizer,
            reasoning_of(config, processor.tokenizer),
            self.grammars.facts,
        )
        self._processor = processor
        self._drafts = drafts_of(config) > 0

    def prepare(self, params: Any, used: Sequence[Any] = ()) -> Request | None:
        """Read and bind a spec; :meth:`check` then finds what was made, and is quick.

        Parameters
        ----------
        used
            Markers of several tokens that are in use.

        Returns
        -------
        Request or None
            ``None`` if there is no spec.

        Raises
        ------
        SpecError
        """
        refuse_internal(params.extra_args)
        spec = spec_of(params.extra_args)
        if spec is None:
            return None
        check_spec(spec, self.settings)
        if self._drafts:
            refuse_beside_drafts(spec, params.structured_outputs is not None)
        # The ids that end this request, as vLLM will add them to a copy of its parameters
        params = params.clone()
        params.update_from_generation_config(
            self._processor.generation_config_fields,
            self._processor.renderer.get_eos_token_id(),
        )
        request = self.bind.prepare(spec, params)
        check_room(self.bind.found({}, request).get(MARKERS_KEY), used)
        return request

    def why_unstructured(self, params: Any) -> str | None:
        """Why the methods of a spec cannot be beside a grammar, whatever the prompt is.

        Raises
        ------
        SpecError
            Names a field of the spec.
        """
        request = self.prepare(params)
        return None if request is None else structure.conflict(request, self.grammars.facts)

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
            if self._drafts:
                refuse_beside_drafts(spec, params.structured_outputs is not None)
            # vLLM has copied the parameters, perhaps not what they hold.
            params.extra_args = seeded(params.extra_args, spec, params.seed)
            bound = self.bind(params)
            self._check_vectors(bound, request)
            if bound is not None:
                dtype = self._processor.vllm_config.model_config.dtype
                check_seats(bound, self.settings, dtype)
            if params.structured_outputs is not None and bound is not None:
                self._check_structure(bound, request.prompt_token_ids or ())
            params.extra_args = self.bind.found(params.extra_args, bound)

    def _check_vectors(self, bound: Request | None, request: Any) -> None:
        if bound is not None:
            config = self._processor.vllm_config
            model, parallel = config.model_config, config.parallel_config
            most = int(model.max_model_len) - len(request.prompt_token_ids or ())
            most = min(most, request.sampling_params.max_tokens or most)
            size, ranks = int(model.get_hidden_size()), int(parallel.tensor_parallel_size)
            check_vectors(bound, most, self.settings, size, ranks)

    def _check_structure(self, bound: Request, prompt: Sequence[int]) -> None:
        why = structure.conflict(bound, self.grammars.facts)
        if why is None and structure.begins_early(bound, prompt):
            why = structure.EARLY if self.grammars.hold_from_start(prompt) else None
        if why is not None:
            name = "structured_outputs"
            raise SpecError.of(name, "one", f"null {why}")


def init_processor(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """Make what admission needs, the texts of the vocabulary above all, before any request."""
    original(self, *args, **kwargs)
    if asked_for(self.vllm_config):
        setattr(self, ADMISSION, VllmFrontEnd(self))


async def add_request(
    original: Any, self: Any, request_id: Any, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    """Bind a spec before vLLM looks at its request, which it does on the event loop."""
    admission = vars(self.input_processor).get(ADMISSION)
    if admission is None or not asks(getattr(params, "extra_args", None)):
        return await original(self, request_id, prompt, params, *args, **kwargs)
    with refused():
        await off_loop(lambda: admission.prepare(params))
    with told(kwargs.get("reasoning_ended"), kwargs.get("reasoning_parser_kwargs")):
        return await original(self, request_id, prompt, params, *args, **kwargs)


async def create(original: Any, self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse a spec before a stream begins: behind its headers there is no HTTP 400 any more."""
    processor = getattr(self.engine_client, "input_processor", None)
    admission = None if processor is None else vars(processor).get(ADMISSION)
    params = getattr(request, "sampling_params", None)
    if params is None and asks(getattr(request, "vllm_xargs", None)):
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        # What of the request decides how its spec is bound; vLLM looks at the rest.
        params = SamplingParams(
            stop_token_ids=getattr(request, "stop_token_ids", None),
            ignore_eos=bool(getattr(request, "ignore_eos", False)),
            extra_args=dict(request.vllm_xargs),
        )
        if structure.asked(request):
            # Bound for a grammar, whichever it will be
            params.structured_outputs = StructuredOutputsParams(regex=".")
    if admission is not None and asks(getattr(params, "extra_args", None)):
        used = list(markers_in_use(self.engine_client.output_processor))
        with refused():
            await off_loop(lambda: admission.prepare(params, used))
        with serving(admission):
            return await original(self, request, *args, **kwargs)
    return await original(self, request, *args, **kwargs)


def process_inputs(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Admit a request; a spec that cannot be carried out is the client's error."""
    from vllm.exceptions import VLLMValidationError

    for value in (*args, *kwargs.values()):
        with refused():
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
        admission = VllmFrontEnd(self)
        setattr(self, ADMISSION, admission)
    with refused():
        try:
            request = original(self, *args, **kwargs)
            params = request.sampling_params
            if params is not None and asks(params.extra_args):
                admission.check(request)
                params.extra_args = marked(params.extra_args)
        except SpecError:
            raise
        except Exception:
            if _mentions(args, kwargs):
                metrics.count_refusal(ENGINE)
            raise
    return request


def _mentions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(asks(getattr(value, "extra_args", None)) for value in (*args, *kwargs.values()))


def child_sampling_params(original: Any, self: Any, index: int, *args: Any, **kwargs: Any) -> Any:
    """Parameters of the n-th sample of a prompt: its own noise if it has a spec."""
    params = original(self, index, *args, **kwargs)
    if not asks(params.extra_args):
        return params
    # vLLM may hand the same object out for all samples.
    params = copy(params)
    params.extra_args = {**params.extra_args, SAMPLE_KEY: index}
    return params
