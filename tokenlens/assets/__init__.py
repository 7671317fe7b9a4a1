"""Models that ship with the package: the tiny reasoner, trained by ``examples/tiny_reasoner``."""

from pathlib import Path

PREFIX = "tiny-reasoner-"


def names() -> list[str]:
    """Every embedded model's name."""
    return sorted(path.name for path in Path(__file__).parent.glob(f"{PREFIX}*") if path.is_dir())


def path_of(model: str) -> str:
    """The folder of an embedded model, or the argument itself where it is not one's name."""
    return str(Path(__file__).parent / model) if model in names() else model
