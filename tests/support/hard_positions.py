"""Files of Think-at-Hard for toy models, and an independent loop: the definition, nothing kept.

The loop runs the whole text for every token: a first pass, then one over the chosen positions put
behind it, under a model of its own into whose weights the LoRA was merged.
"""

import copy

import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import DynamicCache

from tokenlens.routing.hf_cache import cache_argument

ABOUT = {"layers": "0,2", "lora_alpha": "4"}
WIDTH = 4
RANK = 2


def decider_shapes(hidden, top=4, blocks=2):
    """The tensors of a decider of two layers, by name."""
    shapes = {
        "logits_projection.weight": (hidden, top), "logits_projection.bias": (hidden,),
        "combined_projection.weight": (WIDTH, 3 * hidden), "combined_projection.bias": (WIDTH,),
        "backbone.input_projection.weight": (WIDTH, WIDTH),
        "backbone.input_projection.bias": (WIDTH,),
        "backbone.output_layer.0.weight": (WIDTH,), "backbone.output_layer.0.bias": (WIDTH,),
        "backbone.output_layer.1.weight": (1, WIDTH), "backbone.output_layer.1.bias": (1,),
    }  # fmt: skip
    for block in range(blocks):
        at = f"backbone.blocks.{block}."
        shapes |= {
            f"{at}layer_norm.weight": (WIDTH,), f"{at}layer_norm.bias": (WIDTH,),
            f"{at}mlp.0.weight": (2 * WIDTH, WIDTH), f"{at}mlp.0.bias": (2 * WIDTH,),
            f"{at}mlp.3.weight": (WIDTH, 2 * WIDTH), f"{at}mlp.3.bias": (WIDTH,),
        }  # fmt: skip
    return shapes


def drawn(model, modules=("q_proj", "v_proj", "down_proj"), seed=3):
    """Random tensors of a file for a model."""
    generator = torch.Generator().manual_seed(seed)

    def random(shape, scale):
        return torch.randn(shape, generator=generator) * scale

    hidden = model.config.hidden_size
    found = {f"decider.{k}": random(shape, 0.7) for k, shape in decider_shapes(hidden).items()}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in modules:
            at = f"base_model.model.{name}"
            found[f"{at}.lora_A.weight"] = random((RANK, module.in_features), 0.3)
            found[f"{at}.lora_B.weight"] = random((module.out_features, RANK), 0.3)
    return found


def saved(path, tensors, about=None):
    """A file."""
    save_file(tensors, path, ABOUT if about is None else about)
    return path


def decided(tensors, logits, states, top=4):
    """The decider's logits, of one row ``[positions]``."""
    w = {k.removeprefix("decider."): t for k, t in tensors.items() if k.startswith("decider.")}
    parts = [*states, logits.sort(descending=True).values[:, :top] @ w["logits_projection.weight"].T
             + w["logits_projection.bias"]]  # fmt: skip
    x = torch.cat(parts, dim=1)
    for name in ("combined_projection", "backbone.input_projection"):
        x = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def normed(y, name):
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return y * w[f"{name}.weight"] + w[f"{name}.bias"]

    for block in range(2):
        at = f"backbone.blocks.{block}."
        y = normed(x, f"{at}layer_norm") @ w[f"{at}mlp.0.weight"].T + w[f"{at}mlp.0.bias"]
        x = x + F.gelu(y) @ w[f"{at}mlp.3.weight"].T + w[f"{at}mlp.3.bias"]
    out = normed(x, "backbone.output_layer.0") @ w["backbone.output_layer.1.weight"].T
    return (out + w["backbone.output_layer.1.bias"])[:, 0]


def merged(model, tensors, alpha=4.0):
    """A copy of a model with the LoRA in its weights."""
    model = copy.deepcopy(model)
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            b = tensors[key.replace("lora_A", "lora_B")]
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            with torch.no_grad():
                model.get_submodule(name).weight.add_(alpha / len(a) * (b @ a))
    return model


@torch.no_grad()
def reference(model, tensors, ids, *, threshold, soft_top, alpha=4.0):
    """Logits of every position, and which went again: each with all that it may see, one at a time.

    Keys of the two models cannot stand in one forward pass, so that the first passes' are kept and
    the second model writes behind them, one position after the other.
    """
    other = merged(model, tensors, alpha)
    name = cache_argument(model.forward)
    row = torch.tensor([ids])
    out = model(input_ids=row, output_hidden_states=True)
    first = out.logits[0]
    states = [out.hidden_states[layer][0] for layer in (0, 2)]
    said = decided(tensors, first, states)
    again = torch.sigmoid(said) > threshold
    total, entries = first.clone(), []
    table = model.get_input_embeddings().weight
    for at in again.nonzero()[:, 0].tolist():
        values, tokens = first[at].topk(soft_top)
        fed = (values.softmax(0)[:, None] * table[tokens]).sum(0)
        cache = DynamicCache()
        model(input_ids=row[:, : at + 1], use_cache=True, **{name: cache})
        for layer, one in enumerate(cache.layers):
            for keys, v in (entry[layer] for entry in entries):
                one.keys = torch.cat([one.keys, keys], dim=2)
                one.values = torch.cat([one.values, v], dim=2)
        # One query that sees all there is: a mask of zeros.
        length = cache.layers[0].keys.shape[2] + 1
        second = other(
            inputs_embeds=fed[None, None], position_ids=torch.tensor([[at]]), use_cache=True,
            attention_mask=torch.zeros(1, 1, 1, length), **{name: cache},
        )  # fmt: skip
        entries.append([(one.keys[:, :, -1:], one.values[:, :, -1:]) for one in cache.layers])
        total[at] += second.logits[0, 0]
    return total, again, said
