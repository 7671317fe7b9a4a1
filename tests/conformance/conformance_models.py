"""Tiny random models that every engine can load, and the reference's ids for them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conformance_table import (
    EOS,
    EVERY,
    LATER,
    MARKERS,
    METHODS,
    OUTSIDE,
    QUESTION,
    REASONER,
    WORD_METHODS,
    Scenario,
    hosted,
)

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    # Larger values make trajectories chaotic: rounding differences grow until tokens differ.
    "initializer_range": 0.07,
}
MODELS = ("qwen3", "llama-tied", "gemma")
ROUNDING = 1e-6
"""A relative change of a model's parameters, some ten times what rounding amounts to."""

CHANGES = 3
"""How often a model is changed to see what hangs on rounding: one change alone may happen to leave
a value where it was."""


def save(name: str, folder: Path) -> str:
    """Write a model's checkpoint, without a tokenizer, and return its path."""
    import transformers

    torch.manual_seed(3)
    if name == "qwen3":
        config = transformers.Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=False)
    elif name == "llama-tied":
        config = transformers.LlamaConfig(**SHAPE, head_dim=32, tie_word_embeddings=True)
    elif name == "gemma":
        # Tied, and scaled by the square root of the hidden size behind the lookup.
        config = transformers.GemmaConfig(**SHAPE, head_dim=32)
    else:
        raise ValueError(name)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    if not config.tie_word_embeddings:
        with torch.no_grad():
            # A random model hardly changes its mind; this one does, and ends its thinking.
            model.get_output_embeddings().weight.mul_(12)
    path = folder / name
    model.save_pretrained(path)
    return str(path)


class Generated(NamedTuple):
    """A request's ids, their log-probabilities by the model alone, and what holds its trace."""

    ids: list[int]
    logprobs: list[float]
    kwargs: dict[str, Any]


def generated(
    model: Any,
    tokenizer: Any,
    scenario: Scenario,
    markers: dict[str, Any] = MARKERS,
    trace: str = "summary",
) -> Generated:
    """One scenario through ``generate()``, alone, greedy."""
    from tokenlens.hf import generate_kwargs

    ids = torch.tensor([scenario.prompt])
    spec = scenario.spec(markers, trace)
    kwargs = {} if spec is None else generate_kwargs(model, tokenizer, spec)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=scenario.tokens,
        output_logits=True,
        return_dict_in_generate=True,
        **scenario.sampling,
        **kwargs,
    )
    found = output.sequences[0, ids.shape[1] :]
    logprobs = torch.cat(output.logits).log_softmax(dim=1)
    return Generated(found.tolist(), logprobs.gather(1, found[:, None])[:, 0].tolist(), kwargs)


def reference_ids(
    model: Any, tokenizer: Any, scenario: Scenario, markers: dict[str, Any] = MARKERS
) -> list[int]:
    """The ids alone."""
    return generated(model, tokenizer, scenario, markers).ids


def nearby(path: str, amount: float) -> Iterator[Any]:
    """A model, and then some whose parameters are all changed at random, by a relative amount."""
    import transformers

    for seed in range(1 + CHANGES):
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        if seed:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1 + amount * torch.randn(parameter.shape, generator=generator))
        yield model


def references(
    path: str, tokenizer: Any = None, markers: dict[str, Any] = MARKERS, scenarios: Any = EVERY
) -> dict[str, list[int]]:
    """Ids of all greedy scenarios, if models that are a little different agree on them.

    Soft dynamics in random networks can be chaotic: where rounding alone changes the tokens, no
    engine can be asked to give the same. An engine rounds differently for every size of a batch,
    and some batches are as large as it happens.
    """
    found: dict[str, list[int]] = {}
    wrong = set()
    for model in nearby(path, ROUNDING):
        for scenario in scenarios:
            if scenario.greedy:
                ids = reference_ids(model, tokenizer, scenario, markers)
                if ids != found.setdefault(scenario.name, ids):
                    wrong.add(scenario.name)
    assert not wrong, f"chaotic, choose other prompts: {sorted(wrong)}"
    return found


def requests(
    markers: dict[str, Any] = MARKERS, trace: str = "summary", scenarios: Any = EVERY
) -> list[dict[str, Any]]:
    """The table as requests of an engine's process."""
    return [
        {
            "name": scenario.name,
            "prompt": list(scenario.prompt),
            "spec": scenario.spec(markers, trace),
            "sampling": {"max_tokens": scenario.tokens, **scenario.sampling},
            "arrive": scenario.arrive,
        }
        for scenario in scenarios
    ]


REASONER_PATH = Path(__file__).parents[2] / "tokenlens" / "assets" / "tiny-reasoner-small"


QUESTIONS = ("make 24 using 3,5,7,2", "make 6 using 4,11,9", "make 14 using 12,5,8,5")


def reasoner_scenarios(tokenizer: Any, engine: str = "vllm") -> tuple[Scenario, ...]:
    """The table's requests of a model that thinks: markers and phases come from its tokenizer."""
    rows = [(name, row, methods) for row in range(3) for name, methods in REASONER.items()]
    more = {**METHODS, **WORD_METHODS, **OUTSIDE}
    first = [one for one in more if one not in LATER]
    turns = {name: index % 3 for index, name in enumerate(first)}
    rows += [(name, {**turns, **QUESTION}[name], methods) for name, methods in more.items()]
    found = []
    for name, row, methods in rows:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTIONS[row]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        # In the last question the template has opened the thinking.
        prompt = tokenizer.encode(text + ("<think>\n" if row == 2 else ""))
        arrive = len(found) // 2
        found.append(Scenario(f"{name}-{row}", tuple(prompt), methods, tokens=60, arrive=arrive))
    return hosted(engine, tuple(found))
