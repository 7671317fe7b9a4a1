"""How a question is put to a vLLM or an SGLang server, and what its answer says.

Prompts travel as token ids, so that a server sees what the same engine in this process would see.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from tokenlens.errors import AnswerError, NoTraceError
from tokenlens.evaluation.arms import ArmSampling
from tokenlens.serving.arguments import KEY
from tokenlens.spec import DecodingSpec, PhaseConfig
from tokenlens.trace import PHASE_NAMES
from tokenlens.trace.finish import Finish, finish_of
from tokenlens.trace.records import TraceCounts

COUNTS = ("thinking_tokens", "latent_steps", "forced_steps", "cold_stops")
ENDS = {"stop": True, "length": False}
"""Whether an answer ended by itself; any other reason is a failure of the server's."""


class Asked(NamedTuple):
    """One request: the prompt as ids, the spec, and what the engine does with the rest."""

    ids: Sequence[int]
    spec: DecodingSpec
    sampling: ArmSampling
    max_new_tokens: int
    seed: int
    stop: tuple[str, ...] = ()


class Reply(NamedTuple):
    """What came back.

    Attributes
    ----------
    ids, finished
        What was generated, and whether it ended by itself.
    counts, finish, phase
        The trace's totals, how its thinking went, and its markers as the server found them; the
        last two ``None`` where the server does not say.
    """

    ids: list[int]
    finished: bool
    counts: dict[str, int]
    finish: Finish | None = None
    phase: PhaseConfig | None = None


class VLLMDialect:
    """vLLM's ``/v1/completions``."""

    name, path = "vllm", "/v1/completions"
    hint = "start it with --logits-processors tokenlens.vllm:TokenLens"

    def body(self, model: str, asked: Asked) -> dict[str, Any]:
        """The request."""
        from tokenlens.vllm import extra_args

        return {
            "model": model,
            "prompt": list(asked.ids),
            "max_tokens": asked.max_new_tokens,
            **_sampled(asked.sampling),
            "top_k": asked.sampling.top_k,
            "seed": asked.seed,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "stop": list(asked.stop),
            "vllm_xargs": extra_args(asked.spec),
        }

    def reply(self, data: Any, asked: Asked) -> Reply:
        """What the answer says."""
        choice = _at(data, "choices", 0)
        reason = _at(choice, "finish_reason")
        carried = data.get("kv_transfer_params")
        trace = carried.get(KEY) if isinstance(carried, Mapping) else None
        return _reply(_at(choice, "token_ids"), reason, trace, asked)


class SGLangDialect:
    """SGLang's ``/generate``."""

    name, path = "sglang", "/generate"
    hint = "start it with --enable-tokenlens"

    def body(self, model: str, asked: Asked) -> dict[str, Any]:
        """The request; a server of SGLang's has one model."""
        from tokenlens.sglang import custom_params

        return {
            "input_ids": list(asked.ids),
            "sampling_params": {
                **_sampled(asked.sampling),
                "top_k": asked.sampling.top_k or -1,
                "max_new_tokens": asked.max_new_tokens,
                "sampling_seed": asked.seed,
                "skip_special_tokens": False,
                "no_stop_trim": True,
                "stop": list(asked.stop),
                "custom_params": custom_params(asked.spec),
            },
        }

    def reply(self, data: Any, asked: Asked) -> Reply:
        """What the answer says."""
        meta = _at(data, "meta_info")
        reason = _at(meta, "finish_reason")
        if isinstance(reason, Mapping):
            reason = reason.get("type")
        return _reply(_at(data, "output_ids"), reason, meta.get(KEY), asked)


Dialect = VLLMDialect | SGLangDialect
DIALECTS: dict[str, Dialect] = {"vllm": VLLMDialect(), "sglang": SGLangDialect()}


def _sampled(sampling: ArmSampling) -> dict[str, Any]:
    # Everything is named: a server has defaults of its model's own for what is not.
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def _reply(ids: Any, reason: Any, trace: Any, asked: Asked) -> Reply:
    if reason not in ENDS:
        raise AnswerError(f"its answer ended with {reason!r}; allowed: {', '.join(ENDS)}")
    if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
        raise AnswerError("its answer holds no token ids")
    if not 0 < len(ids) <= asked.max_new_tokens:
        raise AnswerError(f"its answer has {len(ids)} tokens; allowed: {asked.max_new_tokens}")
    if trace is None:
        raise NoTraceError("it answers without a trace: tokenlens is not switched on there")
    counts = _at(trace, "counts")
    found = {name: _at(counts, name) for name in COUNTS}
    for name, value in found.items():
        if type(value) is not int or not 0 <= value <= len(ids):
            raise AnswerError(f"its trace counts {name} as {value!r:.40}")
    try:
        phase = PhaseConfig.model_validate(_at(trace, "spec", "phase"))
        spec = asked.spec.model_copy(update={"phase": phase})
        totals = TraceCounts.model_validate({**counts, "tokens": len(ids), "invalid_steps": 0})
        final = _at(trace, "final_phase")
        if final not in PHASE_NAMES:
            raise AnswerError(f"its trace ends in the phase {final!r:.40}")
        return Reply(ids, ENDS[reason], found, finish_of(spec, totals, final), phase)
    except (AnswerError, ValidationError):
        # Of another version.
        return Reply(ids, ENDS[reason], found)


def _at(data: Any, *path: str | int) -> Any:
    for key in path:
        try:
            data = data[key]
        except (LookupError, TypeError):
            raise AnswerError(f"its answer has no {'.'.join(map(str, path))}") from None
    return data
