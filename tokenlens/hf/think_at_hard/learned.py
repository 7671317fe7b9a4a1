"""What Think-at-Hard has learned: the decider, and the LoRA of second passes, of one file.

The decider looks at the largest logits of a position and at some of its hidden states, and says
whether the position is to be run again. Knows no passes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenlens.errors import SpecError
from tokenlens.hf.layers import shape_of
from tokenlens.methods.files import OperatorFile, find, tensor_of

FIELD = "think_at_hard.file"
DECIDER = "decider."
THRESHOLD = "decider.threshold"
LORA = re.compile(r"((?:base_model\.model\.)?(.+))\.lora_[AB]\.weight")
MAX_BLOCKS = 64


class Learned(NamedTuple):
    """A file that fits a model.

    Attributes
    ----------
    layers
        Of the hidden states that the decider reads; 0 is the embeddings, the last is normed.
    top
        How many logits it reads.
    decider
        Its tensors by name.
    adapters
        By module of the model: ``A`` ``[rank, in]``, and ``B`` ``[out, rank]`` times alpha / rank.
    threshold
        The file's own, if it has one.
    """

    layers: tuple[int, ...]
    top: int
    decider: Mapping[str, Tensor]
    adapters: Mapping[str, tuple[Tensor, Tensor]]
    threshold: float | None


def learned_of(model: Any, name: str) -> Learned:
    """What the file that is allowed under a name holds for a model.

    Raises
    ------
    SpecError
        Names the tensor or the metadata that does not fit.
    """
    file = find(FIELD, name)
    layers = _layers(file, shape_of(model).num_layers)
    top = _check_decider(file, len(layers), model)
    adapters = _adapters(file, model)
    decider = {
        key.removeprefix(DECIDER): tensor
        for key, tensor in file.tensors.items()
        if key.startswith(DECIDER)
    }
    own = file.tensors.get(THRESHOLD)
    if own is not None and (own.numel() != 1 or not 0 <= float(own) <= 1):
        raise SpecError.of(FIELD, f"{file.name} with {THRESHOLD} {own}", "a number from 0 to 1")
    return Learned(layers, top, decider, adapters, None if own is None else float(own))


def decide(learned: Learned, logits: Tensor, states: Sequence[Tensor]) -> Tensor:
    """The logit of running a position again, of any leading dimensions.

    Parameters
    ----------
    logits
        ``[..., vocab]``: of the first pass.
    states
        ``[..., hidden]`` each: those of :attr:`Learned.layers`.
    """
    w = {name: tensor.to(logits.device) for name, tensor in learned.decider.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    largest = linear(logits.topk(learned.top, dim=-1).values.float(), "logits_projection")
    # [..., (layers + 1) * hidden]
    x = torch.cat([*(one.to(logits.device).float() for one in states), largest], dim=-1)
    x = linear(linear(x, "combined_projection"), "backbone.input_projection")
    for block in range(_blocks(w, "")):
        at = f"backbone.blocks.{block}."
        inside = F.gelu(linear(norm(x, f"{at}layer_norm"), f"{at}mlp.0"))
        x = x + linear(inside, f"{at}mlp.3")
    x = norm(x, "backbone.output_layer.0")
    return linear(x, "backbone.output_layer.1")[..., 0]


def _blocks(names: Mapping[str, Tensor], prefix: str) -> int:
    number = 0
    while f"{prefix}backbone.blocks.{number}.layer_norm.weight" in names:
        number += 1
    return number


def _layers(file: OperatorFile, num_layers: int) -> tuple[int, ...]:
    said = file.about.get("layers", "")
    right = re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4}){0,63}", said)
    layers = tuple(int(one) for one in said.split(",")) if right else ()
    if not layers or list(layers) != sorted({*layers}) or layers[-1] > num_layers:
        raise SpecError.of(
            FIELD, f"{file.name} with layers {said!r}",
            f"metadata layers such as '2,10,18,26': ascending, 0 (embeddings) to {num_layers}",
        )  # fmt: skip
    return layers


def _check_decider(file: OperatorFile, num_states: int, model: Any) -> int:
    """How many logits it reads; every tensor of the file is one that is used."""
    hidden = shape_of(model).hidden_size
    known = {THRESHOLD} | {key for key in file.tensors if LORA.fullmatch(key)}

    def held(name: str, shape: tuple[int | None, ...]) -> int:
        known.add(f"{DECIDER}{name}")
        return tensor_of(file, FIELD, f"{DECIDER}{name}", shape).shape[-1]

    def linear(name: str, out: int | None, into: int | None) -> tuple[int, int]:
        into = held(f"{name}.weight", (out, into))
        out = file.tensors[f"{DECIDER}{name}.weight"].shape[0]
        held(f"{name}.bias", (out,))
        return out, into

    _, top = linear("logits_projection", hidden, None)
    joined, _ = linear("combined_projection", None, (num_states + 1) * hidden)
    width, _ = linear("backbone.input_projection", None, joined)
    blocks = _blocks(file.tensors, DECIDER)
    if blocks > MAX_BLOCKS:
        raise SpecError.of(FIELD, f"{file.name} with {blocks} blocks", f"at most {MAX_BLOCKS}")
    for block in range(blocks):
        at = f"backbone.blocks.{block}."
        held(f"{at}layer_norm.weight", (width,))
        held(f"{at}layer_norm.bias", (width,))
        inside, _ = linear(f"{at}mlp.0", None, width)
        linear(f"{at}mlp.3", width, inside)
    held("backbone.output_layer.0.weight", (width,))
    held("backbone.output_layer.0.bias", (width,))
    linear("backbone.output_layer.1", 1, width)
    if unknown := sorted(file.tensors.keys() - known):
        allowed = f"{DECIDER}* and MODULE.lora_A.weight, MODULE.lora_B.weight, all of them used"
        raise SpecError.of(FIELD, f"{file.name} with {', '.join(unknown[:4])}", allowed)
    vocab_size = model.config.get_text_config().vocab_size
    if not 1 <= top <= vocab_size:
        got = f"{file.name} with a decider of {top} logits"
        raise SpecError.of(FIELD, got, f"1 to {vocab_size}, this vocabulary")
    return top


def _adapters(file: OperatorFile, model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    said = file.about.get("lora_alpha", "")
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", said) or not float(said):
        got = f"{file.name} with lora_alpha {said!r}"
        raise SpecError.of(FIELD, got, "metadata lora_alpha, a number above 0 such as '64'")
    modules = dict(model.named_modules())
    found = {}
    matches = [match for key in file.tensors if (match := LORA.fullmatch(key))]
    for prefix, name in sorted({(match[1], match[2]) for match in matches}):
        module = modules.get(name)
        if not isinstance(module, nn.Linear) or name in found:
            kind = "nothing" if module is None else type(module).__name__
            raise SpecError.of(
                FIELD, f"{file.name} with LoRA of {name}, which is {kind} here",
                "LoRA of modules of this model that are nn.Linear, once each",
            )  # fmt: skip
        into, out = module.in_features, module.out_features
        rank = tensor_of(file, FIELD, f"{prefix}.lora_A.weight", (None, into)).shape[0]
        b = tensor_of(file, FIELD, f"{prefix}.lora_B.weight", (out, rank))
        found[name] = file.tensors[f"{prefix}.lora_A.weight"], b * (float(said) / max(rank, 1))
    if not found or not all(bool(b.isfinite().all()) for _, b in found.values()):
        got = f"{file.name} with LoRA of {len(found)} modules, scaled by {said}"
        raise SpecError.of(FIELD, got, "LoRA of some modules, finite once it is scaled")
    return found
