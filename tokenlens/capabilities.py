"""What works where: one table, printed by ``tokenlens doctor`` and shown in the README."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["yes", "refused", "planned"]
ENGINES = {"hf": "Hugging Face", "vllm": "vLLM", "sglang": "SGLang"}
TESTED = {"hf": "transformers 4.57.6 and 5.19.0"}
"""Versions that the tests run on. An engine that is missing here is not there yet."""

SYMBOLS: dict[Status, str] = {"yes": "yes", "refused": "refused", "planned": "planned"}


@dataclass(frozen=True)
class Capability:
    """One thing that a user may want, and what each engine does with it."""

    name: str
    hf: Status
    note: str = ""
    vllm: Status = "planned"
    sglang: Status = "planned"


CAPABILITIES = (
    Capability("Soft Thinking, Cold Stop", "yes"),
    Capability("Gumbel and Dirichlet noise", "yes"),
    Capability("controls: top1, random_route, no_thinking, answer_now", "yes"),
    Capability("one spec per row, mixed batches, left padding", "yes"),
    Capability("greedy, sampling, num_return_sequences, streamers, stop strings", "yes"),
    Capability("static cache with torch.compile", "yes", "two graphs, no graph breaks"),
    Capability("tied and scaled embeddings, LoRA on the embedding", "yes"),
    Capability("traces", "yes"),
    Capability("beam search", "refused", "rows are reordered after they were decided"),
    Capability("assisted decoding, prompt lookup", "refused", "a draft cannot foresee a mixture"),
    Capability(
        "paged and continuous batching",
        "refused",
        "by generate(); generate_batch() drops our arguments, and traces() then says so",
    ),
    Capability("use_cache=False", "refused", "mixtures fed before would turn into tokens"),
    Capability("classifier-free guidance", "refused", "its second pass is not fed mixtures"),
    Capability("encoder-decoder models", "refused", "the decoder embeds through its own module"),
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
