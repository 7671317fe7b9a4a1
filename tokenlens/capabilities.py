"""What works where: one table, printed by ``tokenlens doctor`` and shown in the README."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import ValidationError

from tokenlens import versions
from tokenlens.spec.base import MethodBase
from tokenlens.spec.installed import installed
from tokenlens.spec.needs import NEEDS, Need
from tokenlens.spec.registry import METHOD_CONFIGS

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


HOSTED: dict[versions.Engine, Need] = {
    "hf": Need.OF_ENGINE | Need.OF_LAYERS,
    "vllm": Need.OF_ENGINE | Need.LAYER_SHIFT | Need.LAYER_STATES | Need.PROMPT_STATE,
    "sglang": Need.OF_ENGINE | Need.LAYER_SHIFT | Need.LAYER_STATES | Need.PROMPT_STATE,
}
"""What an engine can host beyond concept tokens; a model of it may lack some."""


def hosts(engine: versions.Engine, need: Need) -> Status:
    """What an engine does with a request that needs something of it."""
    return "yes" if need in HOSTED[engine] else "refused"


@dataclass(frozen=True)
class Capability:
    """One thing that a user may want, and what each engine does with it."""

    name: str
    hf: Status
    note: str = ""
    vllm: Status = "planned"
    sglang: Status = "planned"

    @classmethod
    def of(cls, need: Need, name: str, note: str) -> "Capability":
        """A row that follows from what engines host."""
        vllm, sglang = hosts("vllm", need), hosts("sglang", need)
        return cls(name, hosts("hf", need), note, vllm, sglang)


CAPABILITIES = (
    Capability(
        "Soft Thinking, Cold Stop, Gumbel and Dirichlet noise", "yes", vllm="yes", sglang="yes"
    ),
    Capability("ThinkRouter, LEAD, SwiReasoning, SeLaR: one gate", "yes", vllm="yes", sglang="yes"),
    Capability("Latent-SFT, Latent-GRPO, SofT-GRPO noise, CoT2", "yes", vllm="yes", sglang="yes"),
    Capability.of(
        Need.DENSE_MIXTURE | Need.EMBEDDING_NOISE,
        "full-vocabulary mixtures, Soft Tokens' noise on embeddings",
        "transformers: where the input embedding is a plain table; others: bounded by vectors_mib",
    ),
    Capability.of(
        Need.HIDDEN_STATE,
        "hidden-state feedback: Coconut, LatentMAS",
        "transformers: dynamic cache; others: bounded by vectors_mib",
    ),
    Capability.of(
        Need.LAYER_SHIFT,
        "a vector added behind a decoder layer: EAST",
        "files of the operator's; on servers those that are named at the start, of a known layer",
    ),
    Capability.of(
        Need.PROMPT_STATE,
        "the last hidden state behind the prompt: DiffAdapt",
        "files of the operator's; on servers those that are named at the start",
    ),
    Capability.of(
        Need.LAYER_STATES,
        "the hidden states of all layers: Budget Guidance",
        "files of the operator's; on servers models that EAGLE-3 can speculate for",
    ),
    Capability.of(
        Need.PROMPT_ROWS,
        "learned rows: SoftCoT++, ConciseHint-T; a second pass: Think-at-Hard",
        "files of the operator's; vLLM and SGLang have no place for such rows, nor for a second"
        " pass's keys",
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
    Capability("one spec per request, mixed batches, traces", "yes", vllm="yes", sglang="yes"),
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
        "vLLM: latent methods only; its adapter's part is the visible token's alone",
        vllm="refused",
        sglang="refused",
    ),
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
        "vLLM: n-grams, draft models, none for latent requests; elsewhere not row by row",
        "yes",
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
        "prefix caching, preemption, chunked prefill, async, tensor parallel",
        "n/a",
        vllm="yes",
        sglang="yes",
    ),
    Capability(
        "several front ends",
        "n/a",
        "vLLM's `--api-server-count`, SGLang's `--tokenizer-worker-num`",
        vllm="yes",
        sglang="yes",
    ),
    Capability(
        "data parallel",
        "n/a",
        "SGLang: its controller does not say if its schedulers have tokenlens; several servers"
        " behind its router do",
        vllm="yes",
        sglang="refused",
    ),
    Capability(
        "Ray",
        "n/a",
        "its actors do not inherit by what engines know the requests that were admitted",
        vllm="refused",
        sglang="refused",
    ),
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
        "behind the thinking, with the engine's reasoning parser; nothing is forced in it",
        vllm="yes",
        sglang="yes",
    ),
    Capability(
        "multimodal models, with images and without",
        "yes",
        "latent methods on vLLM: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Gemma 3 and 4, Mistral 3,"
        " InternVL, Llama 4, GLM-V; on SGLang: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Gemma 3,"
        " Mistral 3, GLM-V; others with `TOKENLENS_ANY_MODEL=1`",
        vllm="yes",
        sglang="yes",
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
        "use_cache=False, classifier-free guidance",
        "refused",
        "mixtures fed before would turn into tokens; a second pass is not fed any",
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


OURS = "tokenlens"
"""Where a method comes from that comes with the library."""


class MethodRow(NamedTuple):
    """One method of the registry, with the engines that carry its default settings out."""

    name: str
    package: str
    cells: Mapping[versions.Engine, Status]
    note: str


def methods() -> list[MethodRow]:
    """Every method that a spec may name here, those from outside included."""
    return [_row(name, config) for name, config in METHOD_CONFIGS.items()]


def _row(name: str, config: type[MethodBase]) -> MethodRow:
    if config.__module__.startswith("tokenlens."):
        package = OURS
    else:
        package = installed().get(name, "this process")
    needs: Mapping[Need, tuple[str, object, str]] = {}
    if config.needs is not MethodBase.needs:
        try:
            needs = config.model_validate({"method": name}).needs()
        except ValidationError:
            # A field of it must be given, and what it needs may depend on that.
            return MethodRow(name, package, dict.fromkeys(ENGINES, "n/a"), "depends on its fields")
    need = Need.NOTHING
    for one in needs:
        need |= one
    notes = [
        f"{field}: {value} needs {NEEDS[one]}; else {way_out}"
        for one, (field, value, way_out) in needs.items()
    ]
    return MethodRow(name, package, {e: hosts(e, need) for e in ENGINES}, "; ".join(notes))


def markdown() -> str:
    """The table as the README shows it, and a row for each method from outside that is let in."""
    lines = [
        "| | " + " | ".join(ENGINES.values()) + " | |",
        "|---|" + "---|" * len(ENGINES) + "---|",
    ]
    for row in CAPABILITIES:
        cells = [SYMBOLS[getattr(row, engine)] for engine in ENGINES]
        lines.append(f"| {row.name} | " + " | ".join(cells) + f" | {row.note} |")
    for one in methods():
        if one.package != OURS:
            cells = [SYMBOLS[cell] for cell in one.cells.values()]
            name = f"{one.name}, of {one.package}"
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {one.note} |")
    return "\n".join(lines)
