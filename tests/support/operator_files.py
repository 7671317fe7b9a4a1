"""Files of what methods have learned, for toy models."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from tokenlens.methods import files
from tokenlens.spec.needs import Need


class Layers:
    """Stands for an engine's decoder layers, which nobody shifts."""

    hosts = Need.OF_LAYERS


def allow_toys(hidden_size):
    """Let specs name a file for each method that reads one, by the method's name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        save_file({"vector": torch.ones(hidden_size)}, path, {"layer": "1"})
        files.allow({"east": path})
