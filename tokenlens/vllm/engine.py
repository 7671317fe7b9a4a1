"""The engine core: hashes of cached blocks, and reports on their way to the front end."""

import logging
import uuid
from typing import Any

from tokenlens.serving import admission
from tokenlens.serving.arguments import asks, spec_of
from tokenlens.serving.places import ours
from tokenlens.serving.refusals import is_own
from tokenlens.serving.settings import Settings
from tokenlens.trace.reports import RequestReport
from tokenlens.vllm.drafts import drafts_of, hold_drafts
from tokenlens.vllm.refusals import asked_for
from tokenlens.vllm.traces import ATTRIBUTE, FAILED, FIELD

logger = logging.getLogger("vllm.tokenlens")

SALT = "_tokenlens_salt"


def extra_keys(
    original: Any,
    request: Any,
    start_token_idx: int,
    end_token_idx: int,
    start_mm_idx: int,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Make blocks behind the prompt of a latent or shifted request their own request's."""
    keys, next_mm = original(request, start_token_idx, end_token_idx, start_mm_idx, *args, **kwargs)
    salt = _salt(request)
    if salt is None or end_token_idx <= request.num_prompt_tokens:
        return keys, next_mm
    return (*(keys or ()), (FIELD, salt)), next_mm


def _salt(request: Any) -> str | None:
    """What keeps a request's generated blocks apart: random, because hashes may leave the host."""
    if SALT not in vars(request):
        params = request.sampling_params
        try:
            spec = None if params is None else spec_of(params.extra_args)
            own = spec is not None and is_own(spec)
        except Exception:
            # The worker fails this request; until then its blocks are its own.
            own = True
        setattr(request, SALT, uuid.uuid4().hex if own else None)
    salt: str | None = vars(request)[SALT]
    return salt


def init_scheduler(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """Let the methods from outside in that the operator allows, or end the start."""
    original(self, *args, **kwargs)
    if asked_for(self.vllm_config):
        Settings.of(self.vllm_config.additional_config)


def add_request(original: Any, self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Fail a request, and no other, whose spec nobody has checked or nobody would carry out.

    vLLM has front ends that load no plugins, and engines apart from their front end.
    """
    params = request.sampling_params
    asked = {} if params is None else params.extra_args or {}
    fails = asks(asked)
    if fails and asked_for(self.vllm_config) and admission.is_admitted(asked):
        fails = False
    if fails:
        logger.error("%s (request %s)", admission.UNADMITTED, request.request_id)
        params.extra_args = {key: value for key, value in asked.items() if not ours(key)} or None
    if drafts_of(self.vllm_config) and _salt(request) is not None:
        hold_drafts(request)
    result = original(self, request, *args, **kwargs)
    if fails:
        # Ended as an error with the next step, in which it is an ordinary request.
        _end_as_errors(self, [request.request_id])
    return result


def _end_as_errors(scheduler: Any, req_ids: list[str]) -> None:
    """Have vLLM end requests as errors with this step."""
    known = scheduler.grammar_compile_error_reqs
    # Up to 0.32 a set; since then with what is wrong, which is said in `stop_reason` here.
    known.update(dict.fromkeys(req_ids) if isinstance(known, dict) else req_ids)


def update_from_output(
    original: Any,
    self: Any,
    scheduler_output: Any,
    model_runner_output: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Pass a step's reports on, and end requests that cannot go on."""
    failed = getattr(model_runner_output, FAILED, None)
    if failed:
        # The scheduler ends these as errors, and the engine goes on.
        _end_as_errors(self, [one for one in failed if one in self.requests])
    outputs = original(self, scheduler_output, model_runner_output, *args, **kwargs)
    if failed:
        for of_client in outputs.values():
            for one in of_client.outputs:
                if one.request_id in failed and str(one.finish_reason) == "error":
                    # Offline it is read there; a server says it in its response.
                    one.stop_reason = f"tokenlens: {failed[one.request_id]}"
    reports = getattr(model_runner_output, ATTRIBUTE, None)
    if reports:
        for of_client in outputs.values():
            for one in of_client.outputs:
                report = reports.get(one.request_id)
                if report is not None and one.new_token_ids:
                    # A stop token or the most tokens may lie among drafts that were accepted.
                    report = RequestReport.of(report).of_first(len(one.new_token_ids))
                    one.kv_transfer_params = {**(one.kv_transfer_params or {}), FIELD: report}
    return outputs
