"""What an engine or a request cannot host, and why. Reads vLLM's configuration, imports no vLLM."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenlens import versions
from tokenlens.capabilities import HOSTED
from tokenlens.errors import SpecError, UnsupportedError
from tokenlens.serving.refusals import allows_latent, allows_shifts, is_latent, untested_class
from tokenlens.serving.settings import Settings
from tokenlens.spec import DecodingSpec, refuse_needs
from tokenlens.vllm.drafts import draft_facts

MULTIMODAL = frozenset(
    {
        "Gemma3ForConditionalGeneration",
        "Gemma4ForConditionalGeneration",
        "Glm4vForConditionalGeneration",
        "InternVLForConditionalGeneration",
        "Llama4ForConditionalGeneration",
        "Mistral3ForConditionalGeneration",
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
    }
)
"""Multimodal classes that tests/families has seen think in mixtures, with images and without, on
both model runners: docs/families.md."""

INSTEAD = ' Or allow other methods only: additional_config={"tokenlens": {"allow": [...]}}.'

LOST: list[str] = []
"""What of this vLLM the plugin could not wrap in this process, and why."""


def check_engine(vllm_config: Any) -> Settings:
    """Refuse an engine that would carry specs out wrongly.

    Returns
    -------
    Settings
        What its operator allows.

    Raises
    ------
    UnsupportedError, SpecError
    """
    problem = versions.problem("vllm", versions.installed("vllm"))
    if problem is not None:
        raise UnsupportedError(problem)
    if LOST:
        raise UnsupportedError(
            f"tokenlens: not found as tested in this vLLM: {', '.join(LOST)}. Specs would silently"
            " not be carried out. Install a tested version (tokenlens doctor lists them), or leave"
            " tokenlens out of logits_processors."
        )
    settings = Settings.of(vllm_config.additional_config)
    settings.read_files()
    reasons = [reason for found, reason in _engine_facts(vllm_config) if found]
    reasons += [reason for found, reason in draft_facts(vllm_config) if found]
    drafts = vllm_config.speculative_config is not None
    if allows_latent(settings):
        reasons += [reason for found, reason in _latent_facts(vllm_config) if found]
    if allows_latent(settings) or (allows_shifts(settings) and not drafts):
        reasons += [reason for found, reason in _cache_facts(vllm_config) if found]
    if reasons:
        raise UnsupportedError("\n".join(f"tokenlens: {reason}" for reason in reasons))
    return settings


def _get(config: Any, name: str, default: Any = None) -> Any:
    return getattr(config, name, default)


def _engine_facts(config: Any) -> list[tuple[bool, str]]:
    model, parallel = config.model_config, config.parallel_config
    return [
        (
            bool(_get(parallel, "use_ray")) or _get(parallel, "data_parallel_backend") == "ray",
            "distributed_executor_backend, data_parallel_backend: got 'ray'; allowed: 'mp', because"
            " Ray's actors do not inherit by what engines know the requests that were admitted.",
        ),
        (
            model.runner_type == "pooling",
            "runner_type: got 'pooling'; allowed: 'generate', because a pooling model decodes"
            " nothing. Leave logits_processors out.",
        ),
        (
            parallel.pipeline_parallel_size > 1,
            f"pipeline_parallel_size: got {parallel.pipeline_parallel_size}; allowed: 1, because"
            " the embedding is on another rank than the sampler. Use tensor_parallel_size.",
        ),
        (
            os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"),
            "VLLM_USE_RUST_FRONTEND: got it switched on; allowed: off, because its front end would"
            " not check specs. Unset it.",
        ),
        (
            _get(parallel, "prefill_context_parallel_size", 1) > 1,
            "prefill_context_parallel_size: got"
            f" {_get(parallel, 'prefill_context_parallel_size')}; allowed: 1, because context"
            " parallelism reorders rows.",
        ),
        (
            bool(_get(parallel, "enable_batch_sharded_sampling", False)),
            "enable_batch_sharded_sampling: got True; allowed: False, because each rank would see"
            " only some rows.",
        ),
        (
            bool(_get(parallel, "enable_dbo", False)) or _get(parallel, "ubatch_size", 0) > 1,
            "enable_dbo, ubatch_size: got dual batch overlap; allowed: none, because it cuts the"
            " batch, and embeddings would go to the wrong rows.",
        ),
        (
            bool(_get(model, "is_diffusion", False)),
            "model: got a diffusion model; allowed: a causal one, because it has no next token.",
        ),
        (
            bool(_get(model, "is_encoder_decoder", False)),
            "model: got an encoder-decoder; allowed: a decoder, because it embeds its output"
            " through another module.",
        ),
        (
            bool(_get(model, "enable_trace_replay", False)),
            "enable_trace_replay: got True; allowed: False, because it decides tokens outside of"
            " the sampler.",
        ),
        (
            bool(_get(model, "return_sampling_mask", False)),
            "return_sampling_mask: got True; allowed: False, because it would describe a"
            " distribution that was not sampled from.",
        ),
    ]


def _latent_facts(config: Any) -> list[tuple[bool, str]]:
    model = config.model_config
    refused = None
    if _get(model, "is_multimodal_model", False):
        refused = untested_class(_get(model, "architectures", ()) or (), MULTIMODAL)
    return [
        (
            bool(_get(model, "enable_prompt_embeds", False)),
            "enable_prompt_embeds: got True; allowed: False, because tokens are looked up in"
            " another order than that of the batch." + INSTEAD,
        ),
        (
            refused is not None,
            f"{refused}{INSTEAD}",
        ),
    ]


def _cache_facts(config: Any) -> list[tuple[bool, str]]:
    return [
        (
            config.kv_transfer_config is not None,
            "kv_transfer_config: got a KV connector; allowed: none, because it may give the KV"
            " cache of mixtures and of shifted positions away under the ids of tokens. Leave it"
            " out." + INSTEAD,
        ),
    ]


def check_spec(spec: DecodingSpec, settings: Settings) -> None:
    """Refuse what the operator does not allow and what the engine cannot host.

    Raises
    ------
    SpecError
    """
    settings.check(spec)
    refuse_needs(spec, "vLLM", HOSTED["vllm"])


def check_request(
    spec: DecodingSpec, params: Any, settings: Settings, engine_request: Any = None
) -> None:
    """Refuse a request that would be carried out wrongly.

    Raises
    ------
    SpecError
        Names the field and the way out.
    """
    check_spec(spec, settings)
    if not spec.methods:
        return
    spec.refuse_least("min_tokens", _get(params, "min_tokens"))
    if engine_request is None:
        return
    if _get(engine_request, "prompt_embeds") is not None:
        raise SpecError.of(
            "prompt_embeds", "a tensor", "token ids beside a spec: phases are read off the tokens"
        )
    if _get(engine_request, "resumable", False):
        raise SpecError.of(
            "resumable",
            True,
            "false beside a spec: outputs that become prompts lose their mixtures",
        )
    adapter = _get(engine_request, "lora_request")
    if adapter is not None and is_latent(spec):
        _check_adapter(adapter)


def _check_adapter(adapter: Any) -> None:
    """Refuse an adapter that changes the embedding, which mixtures are taken of."""
    folder = Path(adapter.lora_path).expanduser()
    if not folder.is_dir():
        from vllm.lora.utils import get_adapter_absolute_path

        folder = Path(get_adapter_absolute_path(adapter.lora_path))
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        targets = config["target_modules"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SpecError.of(
            "lora_request",
            adapter.lora_name,
            "an adapter whose adapter_config.json names its target_modules, beside a latent"
            " method: it must be known that the embedding is not one of them",
        ) from None
    # A pattern is a text, a list of names is what it says.
    found = [targets] if isinstance(targets, str) else list(targets or ())
    if any("embed" in str(target) for target in found):
        raise SpecError.of(
            "lora_request",
            adapter.lora_name,
            "an adapter that leaves the embedding alone, beside a latent method: the adapter's"
            f" part of a mixture would be that of one token. Its targets: {', '.join(found)}",
        )


def names_tokenlens(entry: Any) -> bool:
    """Whether an entry of ``logits_processors`` is our class, by name or itself."""
    if isinstance(entry, str):
        module, _, name = entry.partition(":")
        return module.split(".")[:2] == ["tokenlens", "vllm"] and name == "TokenLens"
    return bool(getattr(entry, "is_tokenlens", False))


def asked_for(vllm_config: Any) -> bool:
    """Whether the operator named our class."""
    model = getattr(vllm_config, "model_config", None)
    return any(names_tokenlens(entry) for entry in getattr(model, "logits_processors", None) or ())


def marked(additional_config: Any) -> bool:
    """Whether our plugin has seen the configuration."""
    return isinstance(additional_config, Mapping) and MARK in additional_config


MARK = "tokenlens_version"
"""Key in ``additional_config``: gives engines with tokenlens a compile cache of their own."""

LAYERS = "tokenlens_layers"
"""Key in ``additional_config``: layers that have a seat, which is another graph again."""

READ = "tokenlens_reads"
"""Key in ``additional_config``: whether every layer has one, because files' methods read them."""
