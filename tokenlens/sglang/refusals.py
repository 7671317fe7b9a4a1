"""What an engine or a request cannot host, and why. Reads SGLang's arguments, imports no SGLang."""

import os
from typing import Any

from tokenlens import versions
from tokenlens.capabilities import HOSTED
from tokenlens.errors import SpecError, UnsupportedError
from tokenlens.serving.refusals import allows_latent, untested_class
from tokenlens.serving.settings import Settings
from tokenlens.sglang import switch
from tokenlens.spec import DecodingSpec, refuse_needs


def check_engine(args: Any) -> None:
    """Refuse an engine that would carry specs out wrongly.

    Parameters
    ----------
    args
        SGLang's server arguments, resolved.

    Raises
    ------
    UnsupportedError
        One line a reason, each with the way out.
    """
    problem = versions.problem("sglang", versions.installed("sglang"))
    reasons = [] if problem is None else [problem]
    reasons += [reason for found, reason in _facts(args) if found]
    if reasons:
        raise UnsupportedError("\n".join(f"tokenlens: {reason}" for reason in reasons))


def _facts(args: Any) -> list[tuple[bool, str]]:
    def get(name: str, default: Any = None) -> Any:
        return getattr(args, name, default)

    def above_one(name: str) -> bool:
        return (get(name) or 1) > 1

    return [
        (
            above_one("pp_size"),
            f"pp_size: got {get('pp_size')}; allowed: 1, because the embedding is on another rank"
            " than the sampler. Use tp_size.",
        ),
        (
            bool(get("speculative_algorithm")),
            f"speculative_algorithm: got {get('speculative_algorithm')!r}; allowed: none, because"
            " SGLang verifies a tree of drafts without any logits processor, so that a draft would"
            " be judged by the state of the last token that was committed. Leave it out.",
        ),
        (
            bool(get("enable_mixed_chunk")),
            "enable_mixed_chunk: got True; allowed: False, because decoding rows inside a prefill"
            " were not tested. Chunked prefill itself works.",
        ),
        (
            get("disaggregation_mode", "null") not in (None, "null"),
            f"disaggregation_mode: got {get('disaggregation_mode')!r}; allowed: 'null', because"
            " concept tokens do not travel from one server to another.",
        ),
        (
            bool(get("enable_dp_attention")) or above_one("attn_dp_size"),
            "data-parallel attention: got it switched on; allowed: off, because ranks embed other"
            " rows than they sample. Use tp_size.",
        ),
        (
            above_one("dp_size"),
            f"dp_size: got {get('dp_size')}; allowed: 1, because its controller does not say if its"
            " schedulers have tokenlens. Start several servers behind a router.",
        ),
        (
            bool(get("enable_streaming_session")) or bool(get("enable_session_radix_cache")),
            "sessions: got them switched on; allowed: off, because outputs that become prompts lose"
            " their mixtures. Leave enable_streaming_session and enable_session_radix_cache out.",
        ),
        (
            bool(get("dllm_algorithm")),
            "dllm_algorithm: got one; allowed: none, because a diffusion model has no next token.",
        ),
        (
            bool(get("enable_watermark")),
            "enable_watermark: got True; allowed: False, because the watermark chooses tokens after"
            " they were decided.",
        ),
        (
            bool(get("rl_on_policy_target")),
            "rl_on_policy_target: got it set; allowed: none, because it samples from other logits"
            " than those that were decided on.",
        ),
        (
            bool(get("enable_two_batch_overlap")) or bool(get("enable_pdmux")),
            "enable_two_batch_overlap, enable_pdmux: got one of them; allowed: neither, because"
            " they cut the batch, and embeddings would go to the wrong rows.",
        ),
        (
            above_one("attn_cp_size") or above_one("dcp_size"),
            "attn_cp_size, dcp_size: got more than 1; allowed: 1, because they reorder tokens.",
        ),
        (
            bool(get("enable_hisparse")),
            "enable_hisparse: got True; allowed: False, because it retracts requests another way.",
        ),
        (
            bool(get("enable_lmcache")),
            "enable_lmcache: got True; allowed: False, because it may give the KV cache of mixtures"
            " away under the ids of tokens.",
        ),
        *_processes(args),
    ]


def _processes(args: Any) -> list[tuple[bool, str]]:
    """Ways to start SGLang in which some of its processes would not have tokenlens."""

    def get(name: str, default: Any = None) -> Any:
        return getattr(args, name, default)

    workers = get("tokenizer_worker_num") or 1
    application = os.environ.get(switch.APPLICATION, switch.OURS)
    return [
        (
            os.environ.get("SGLANG_RUST_SERVER", "0").lower() not in ("", "0", "false", "no", "n"),
            "SGLANG_RUST_SERVER: got it switched on; allowed: off, because its front end would not"
            " check specs.",
        ),
        (
            bool(get("smg_grpc_mode")) or bool(get("grpc_mode")),
            "smg_grpc_mode, grpc_mode: got one of them; allowed: neither, because that server"
            " passes requests on without checking specs. Use the HTTP server.",
        ),
        (
            get("grpc_port") is not None,
            f"grpc_port: got {get('grpc_port')}; allowed: none, because its answers have no place"
            " for a trace. Use the HTTP server, and unset SGLANG_GRPC_PORT.",
        ),
        (
            bool(get("use_ray")),
            "use_ray: got True; allowed: False, because Ray's actors do not inherit what switches"
            " tokenlens on. Leave --use-ray out.",
        ),
        (
            (get("nnodes") or 1) > 1,
            f"nnodes: got {get('nnodes')}; allowed: 1, because a node cannot see whether others run"
            " with tokenlens and the same settings. Start several servers behind a router.",
        ),
        (
            bool(get("encoder_only")) or bool(get("language_only")),
            "encoder_only, language_only: got one of them; allowed: neither, because embeddings of"
            " the prompt would come from another server.",
        ),
        (
            bool(get("is_embedding")),
            "is_embedding: got True; allowed: False, because such an engine decodes nothing. Leave"
            " --enable-tokenlens out.",
        ),
        (
            bool(get("elastic_ep_backend")) or bool(get("ep_join_mode")),
            "elastic_ep_backend, ep_join_mode: got one of them; allowed: neither, because ranks"
            " that join later were not asked whether they have tokenlens.",
        ),
        (
            workers > 1 and application != switch.OURS,
            f"{switch.APPLICATION}: got {application!r}; allowed: nothing beside"
            f" tokenizer_worker_num {workers}, because it is how tokenizer workers load tokenlens.",
        ),
    ]


MULTIMODAL = frozenset(
    {
        "Gemma3ForConditionalGeneration",
        "Glm4vForConditionalGeneration",
        "Mistral3ForConditionalGeneration",
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
    }
)
"""Multimodal classes that tests/families has seen think in mixtures, with images and without:
docs/families.md."""


def check_model(model_config: Any, settings: Settings) -> None:
    """Refuse a model that latent methods were not tested with.

    Raises
    ------
    UnsupportedError
    """
    if getattr(model_config, "is_encoder_decoder", False):
        raise UnsupportedError(
            "tokenlens: model: got an encoder-decoder; allowed: a decoder, because it embeds its"
            " output through another module."
        )
    if allows_latent(settings) and getattr(model_config, "is_multimodal", False):
        hf_config = getattr(model_config, "hf_config", None)
        refused = untested_class(getattr(hf_config, "architectures", None) or (), MULTIMODAL)
        if refused is not None:
            instead = "Or allow other methods only: --tokenlens-allow."
            raise UnsupportedError(f"tokenlens: {refused} {instead}")


def check_spec(spec: DecodingSpec, settings: Settings) -> None:
    """Refuse what the operator does not allow and what the engine cannot host.

    Raises
    ------
    SpecError
    """
    settings.check(spec)
    refuse_needs(spec, "SGLang", HOSTED["sglang"])


def check_request(spec: DecodingSpec, request: Any, params: Any, settings: Settings) -> None:
    """Refuse a request that would be carried out wrongly.

    Parameters
    ----------
    request
        SGLang's ``GenerateReqInput``.
    params
        Its ``SamplingParams``.

    Raises
    ------
    SpecError
        Names the field and the way out.
    """
    check_spec(spec, settings)
    if not spec.methods:
        return
    spec.refuse_least("min_new_tokens", getattr(params, "min_new_tokens", None))
    _check_rest(request, params)


def _check_rest(request: Any, params: Any) -> None:
    width = getattr(params, "beam_width", None)
    if width is not None and width > 1:
        raise SpecError.of(
            "beam_width",
            width,
            "1 beside a spec: beam search would feed a mixture to another beam. Use n with a"
            " temperature instead",
        )
    for name in ("session_params", "session_id"):
        if getattr(request, name, None):
            raise SpecError.of(
                name,
                getattr(request, name),
                "null beside a spec: outputs that become prompts lose their mixtures",
            )
    for name in ("input_embeds", "positional_embed_overrides", "embed_overrides"):
        if getattr(request, name, None) is not None:
            raise SpecError.of(
                name, "embeddings", "token ids beside a spec: phases are read off the tokens"
            )
    if getattr(request, "return_sampling_mask", False):
        raise SpecError.of(
            "return_sampling_mask", True, "false beside a spec: thinking is not sampled"
        )
