"""What works where: one table, printed by ``tokenlens doctor`` and shown in the README."""

from dataclasses import dataclass
from typing import Literal

from tokenlens import versions

Status = Literal["yes", "refused", "planned", "n/a"]
ENGINES: dict[versions.Engine, str] = {"hf": "Hugging Face", "vllm": "vLLM", "sglang": "SGLang"}
TESTED = {engine: versions.supported(engine) for engine in versions.NAMES}
"""Versions that the tests run on."""

SYMBOLS: dict[Status, str] = {
    "yes": "yes",
    "refused": "refused",
    "planned": "planned",
    "n/a": "–",
}


@dataclass(frozen=True)
class Capability:
    """One thing that a user may want, and what each engine does with it."""

    name: str
    hf: Status
    note: str = ""
    vllm: Status = "planned"
    sglang: Status = "planned"


CAPABILITIES = (
    Capability("Soft Thinking, Cold Stop", "yes", vllm="yes", sglang="yes"),
    Capability("Gumbel and Dirichlet noise", "yes", vllm="yes", sglang="yes"),
    Capability("ThinkRouter, LEAD, SwiReasoning, SeLaR: one gate", "yes", vllm="yes", sglang="yes"),
    Capability("Latent-SFT, Latent-GRPO, SofT-GRPO noise, CoT2", "yes", vllm="yes", sglang="yes"),
    Capability(
        "full-vocabulary mixtures, Soft Tokens' noise on embeddings",
        "yes",
        "transformers: where the input embedding is a plain table",
        "refused",
        "refused",
    ),
    Capability(
        "hidden-state feedback: Coconut, LatentMAS", "yes", "dynamic cache", "refused", "refused"
    ),
    Capability(
        "controls: top1, random_route, no_thinking, answer_now", "yes", vllm="yes", sglang="yes"
    ),
    Capability(
        "CyclicReflex, TIP, NoWait, S1, AlphaOne, thinking budgets",
        "yes",
        vllm="yes",
        sglang="yes",
    ),
    Capability(
        "EDT, HAPO, min-p, top-n-sigma, top-H as logit edits", "yes", vllm="yes", sglang="yes"
    ),
    Capability("one spec per request, mixed batches", "yes", vllm="yes", sglang="yes"),
    Capability(
        "greedy, sampling, several samples of a prompt, streaming, stop strings",
        "yes",
        vllm="yes",
        sglang="yes",
    ),
    Capability("torch.compile", "yes", "transformers: two graphs, no graph breaks", vllm="yes"),
    Capability("tied and scaled embeddings", "yes", vllm="yes", sglang="yes"),
    Capability(
        "LoRA on the embedding",
        "yes",
        "vLLM: latent methods only; its adapter is applied to a token",
        vllm="refused",
        sglang="refused",
    ),
    Capability("traces", "yes", vllm="yes", sglang="yes"),
    Capability(
        "step routing between two models",
        "yes",
        "vLLM over HTTP or in this process; any other OpenAI-compatible server as text",
        vllm="yes",
    ),
    Capability(
        "beam search",
        "refused",
        "rows are reordered after they were decided",
        "refused",
        sglang="refused",
    ),
    Capability(
        "assisted and speculative decoding",
        "refused",
        "a draft cannot foresee a mixture",
        "refused",
        sglang="refused",
    ),
    Capability(
        "paged and continuous batching",
        "refused",
        "transformers: by generate(); generate_batch() drops our arguments, and traces() says so",
        vllm="yes",
        sglang="yes",
    ),
    Capability(
        "prefix caching, preemption, chunked prefill, asynchronous scheduling",
        "n/a",
        vllm="yes",
        sglang="yes",
    ),
    Capability("tensor parallel", "n/a", vllm="yes", sglang="yes"),
    Capability(
        "pipeline parallel",
        "n/a",
        "embedding and sampler on two ranks",
        vllm="refused",
        sglang="refused",
    ),
    Capability(
        "an engine's own thinking budget, penalties, banned words", "n/a", vllm="yes", sglang="yes"
    ),
    Capability(
        "structured output",
        "n/a",
        "a forced token may break the grammar",
        vllm="refused",
        sglang="refused",
    ),
    Capability(
        "multimodal models, with images and without",
        "yes",
        "latent methods on vLLM: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Gemma 3 and 4, Mistral 3,"
        " InternVL, Llama 4, GLM-V; others with `TOKENLENS_ANY_MODEL=1`",
        vllm="yes",
        sglang="refused",
    ),
    Capability(
        "models that look the token up in a second table or route by it",
        "yes",
        "Gemma 3n and 4: its rows are mixed as well; Qwen4-Exp, DeepSeek-V4: that path sees the"
        " visible token",
        vllm="yes",
    ),
    Capability(
        "prompt embeddings, KV connectors",
        "n/a",
        "latent methods only",
        vllm="refused",
        sglang="refused",
    ),
    Capability(
        "use_cache=False",
        "refused",
        "mixtures fed before would turn into tokens",
        vllm="n/a",
        sglang="n/a",
    ),
    Capability(
        "classifier-free guidance",
        "refused",
        "its second pass is not fed mixtures",
        vllm="n/a",
        sglang="n/a",
    ),
    Capability(
        "encoder-decoder models",
        "refused",
        "the decoder embeds through its own module",
        vllm="refused",
        sglang="refused",
    ),
)


def markdown() -> str:
    """The table as the README shows it."""
    lines = [
        "| | " + " | ".join(ENGINES.values()) + " | |",
        "|---|" + "---|" * len(ENGINES) + "---|",
    ]
    for row in CAPABILITIES:
        cells = [SYMBOLS[getattr(row, engine)] for engine in ENGINES]
        lines.append(f"| {row.name} | " + " | ".join(cells) + f" | {row.note} |")
    return "\n".join(lines)
