"""Files of what methods have learned, for toy models, and what stands for their layers."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from tokenlens.methods import files
from tokenlens.spec.needs import Need

WIDTH = 4


def predictor(hidden_size, vocab_size, seed=4):
    """Budget Guidance's tensors: a random encoder of one block."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator) * 0.5

    found = {"cls": random(hidden_size), "proj.weight": random(WIDTH, hidden_size)}
    found["proj.bias"] = random(WIDTH)
    shapes = dict.fromkeys(("query", "key", "value", "out"), (WIDTH, WIDTH))
    for name, shape in {**shapes, "up": (8, WIDTH), "down": (WIDTH, 8)}.items():
        found[f"blocks.0.{name}.weight"] = random(*shape)
        found[f"blocks.0.{name}.bias"] = random(shape[0])
    for name in ("norm1", "norm2"):
        found[f"blocks.0.{name}.weight"] = torch.ones(WIDTH)
        found[f"blocks.0.{name}.bias"] = random(WIDTH)
    for name, size in (("alpha", 20), ("rate", 8)):
        found[f"{name}.weight"] = random(vocab_size, WIDTH) * size
    return found


def allow_toys(hidden_size, vocab_size):
    """Let specs name a file for each method that reads one, by the method's name."""
    probe = {"w1": (3, hidden_size), "b1": (3,), "w2": (3, 3), "b2": (3,)}
    toys = {
        "east": ({"vector": torch.ones(hidden_size)}, {"layer": "1"}),
        "budget_guidance": (predictor(hidden_size, vocab_size), {"heads": "2"}),
        "softcotpp": ({"rows": torch.ones(1024, 2, hidden_size)}, None),
        "diffadapt": ({name: torch.ones(shape) for name, shape in probe.items()}, None),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (tensors, about) in toys.items():
            path = Path(folder) / name
            save_file(tensors, path, about)
            files.allow({name: path})


class Layers:
    """Stands for an engine's decoder layers, which nobody shifts and which hold anything."""

    hosts = Need.OF_LAYERS

    def __init__(self, num_rows, hidden_size, device="cpu"):
        self._shape, self._device = (num_rows, 3, hidden_size), device

    def states(self):
        if self._device == "meta":
            return torch.empty(self._shape, device="meta")
        return torch.randn(self._shape, generator=torch.Generator().manual_seed(1))

    def prompt_state(self):
        return self.states()[:, -1]
