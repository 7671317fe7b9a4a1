"""Budget Guidance's predictor: how much thinking is left if a token comes next, as a Gamma.

A small encoder of the BERT kind (post-norm, no positions, so that the order of layers is not seen)
reads a learned vector and the hidden states of one position. Knows no requests.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenlens.errors import SpecError
from tokenlens.methods.files import OperatorFile, tensor_of

MAX_BLOCKS = 64
NORM_EPS = 1e-12


def blocks_of(names: Mapping[str, Tensor]) -> int:
    """Blocks of the encoder, counted from 0 without a gap."""
    number = 0
    while f"blocks.{number}.query.weight" in names:
        number += 1
    return number


def check(file: OperatorFile, field: str, hidden_size: int | None, vocab_size: int) -> None:
    """Refuse a file that is no predictor of this model.

    Raises
    ------
    SpecError
        Names the file and the tensor.
    """
    tensor_of(file, field, "cls", (hidden_size,))
    inside = tensor_of(file, field, "proj.weight", (None, hidden_size)).shape[0]
    tensor_of(file, field, "proj.bias", (inside,))
    blocks = blocks_of(file.tensors)
    heads = file.about.get("heads", "")
    if not (heads.isascii() and heads.isdigit() and 0 < len(heads) < 4 and int(heads)):
        raise SpecError.of(field, f"{file.name} with heads {heads!r}", "a file that says its heads")
    if not 0 < blocks <= MAX_BLOCKS or inside % int(heads):
        got = f"{file.name} with {blocks} blocks of width {inside} and {heads} heads"
        raise SpecError.of(field, got, f"1 to {MAX_BLOCKS} blocks, and heads that divide the width")
    for block in range(blocks):
        at = f"blocks.{block}."
        for name in ("query", "key", "value", "out"):
            tensor_of(file, field, f"{at}{name}.weight", (inside, inside))
            tensor_of(file, field, f"{at}{name}.bias", (inside,))
        wide = tensor_of(file, field, f"{at}up.weight", (None, inside)).shape[0]
        tensor_of(file, field, f"{at}up.bias", (wide,))
        tensor_of(file, field, f"{at}down.weight", (inside, wide))
        tensor_of(file, field, f"{at}down.bias", (inside,))
        for norm in ("norm1", "norm2"):
            tensor_of(file, field, f"{at}{norm}.weight", (inside,))
            tensor_of(file, field, f"{at}{norm}.bias", (inside,))
    for head in ("alpha", "rate"):
        rows = tensor_of(file, field, f"{head}.weight", (None, inside)).shape[0]
        if rows < vocab_size:
            got = f"{file.name} with {head}.weight of {rows} tokens"
            raise SpecError.of(field, got, f"at least the {vocab_size} of this vocabulary")


def predict(states: Tensor, weights: Mapping[str, Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """Shape and rate of the Gamma of ``ln(remaining + 1)``, ``[num_rows, vocab]`` each.

    Parameters
    ----------
    states
        ``[num_rows, layers + 1, hidden]``: of one position; the last after the final norm.
    weights
        The tensors of the file.
    """
    w = weights
    # [num_rows, layers + 2, hidden]
    x = torch.cat((w["cls"].expand(len(states), 1, -1), states), dim=1)
    y = F.linear(x, w["proj.weight"], w["proj.bias"])
    for block in range(blocks_of(w)):
        y = _block(y, w, f"blocks.{block}.", heads)
    pooled = y[:, 0]
    return F.softplus(pooled @ w["alpha.weight"].T), F.softplus(pooled @ w["rate.weight"].T)


def _block(y: Tensor, w: Mapping[str, Tensor], at: str, heads: int) -> Tensor:
    rows, places, width = y.shape

    def split(name: str) -> Tensor:
        found = F.linear(y, w[f"{at}{name}.weight"], w[f"{at}{name}.bias"])
        return found.view(rows, places, heads, width // heads).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(split("query"), split("key"), split("value"))
    mixed = mixed.transpose(1, 2).reshape(rows, places, width)
    y = _norm(y + F.linear(mixed, w[f"{at}out.weight"], w[f"{at}out.bias"]), w, f"{at}norm1")
    up = F.gelu(F.linear(y, w[f"{at}up.weight"], w[f"{at}up.bias"]))
    return _norm(y + F.linear(up, w[f"{at}down.weight"], w[f"{at}down.bias"]), w, f"{at}norm2")


def _norm(y: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(y, y.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], NORM_EPS)
