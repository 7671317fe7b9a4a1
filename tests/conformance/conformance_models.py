"""Tiny random models that every engine can load, and the reference's ids for them."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
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
    READ,
    REASONER,
    WORD_METHODS,
    Scenario,
    hosted,
)
from operator_files import predictor
from safetensors.torch import save_file

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


FILES = ("east", "east-last", "probe", "predictor")
"""Names of what files hold: vectors of both layers, a probe, and a predictor of the reasoner's."""


@cache
def _files() -> dict[str, str]:
    """All files that rows name; every model of the table is as wide as the reasoner."""
    folder = Path(tempfile.mkdtemp(prefix="tokenlens-vectors-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    hidden: int = SHAPE["hidden_size"]  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(7)
    for name, layer in (("east", "1"), ("east-last", "2")):
        vector = torch.randn(hidden, generator=generator)
        save_file({"vector": vector}, folder / name, {"layer": layer})
    probe = {"w1": (8, hidden), "b1": (8,), "w2": (3, 8), "b2": (3,)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in probe.items()}
    save_file(made, folder / "probe")
    # As many tokens as the reasoner has.
    save_file(predictor(hidden, 128), folder / "predictor", {"heads": "2"})
    return {name: str(folder / name) for name in FILES}


def vector_files(*names: str) -> dict[str, str]:
    """Files by the names that rows give them; by default vectors of the two layers, and a probe."""
    return {name: _files()[name] for name in names or ("east", "east-last", "probe")}


def wrong_files(folder: Path) -> dict[str, str]:
    """Files that no engine of the table's models may start with: none at all, and two that do not
    fit."""
    (folder / "no-tensors").write_text("no tensors")
    save_file({"vector": torch.ones(63)}, folder / "width", {"layer": "1"})
    save_file({"vector": torch.ones(64)}, folder / "layer", {"layer": "3"})
    return {name: str(folder / name) for name in ("no-tensors", "width", "layer")}


WRONG_FILES = (
    ("refused-no-tensors", ["files.wrong", "a safetensors file that can be read"]),
    ("refused-width", ["files.wrong", "{'vector': [63]}", "vector: [64]"]),
    ("refused-layer", ["files.wrong", "layer 3", "layer 1 to 2 of this model"]),
)
"""The same by the names of jobs, and what is said of them."""


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
    named = [str(method["file"]) for method in scenario.methods or () if "file" in method]
    files = vector_files(*named) if named else {}
    kwargs = {} if spec is None else generate_kwargs(model, tokenizer, spec, files=files)
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
    more = {**METHODS, **WORD_METHODS, **OUTSIDE, **READ}
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
