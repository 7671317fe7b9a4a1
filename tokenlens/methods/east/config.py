"""What steering by a vector can be asked for (EAST, arXiv 2406.00244)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.named_file import FileName
from tokenlens.spec.base import MethodBase, Needs
from tokenlens.spec.needs import Need


class East(MethodBase):
    """Adds a vector to what one decoder layer leaves, while the model writes."""

    family: ClassVar[tuple[str, ...]] = ("steering",)
    published: ClassVar[Mapping[str, Any]] = {"where": "all"}

    method: Literal["east"] = "east"
    file: FileName = "east"
    layer: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="the decoder layer, from 1, behind which it is added; null = the file's own",
    )
    beta: float = Field(
        1.0,
        ge=-1e4,
        le=1e4,
        description="how much of the vector; above 0 explores, below 0 commits, 0 is exactly none",
    )
    where: Literal["thinking", "answer", "all"] = Field(
        "thinking", description="the positions that are generated in which it is added"
    )

    def needs(self) -> Needs:
        way_out = "forking_temperature, which needs the logits alone"
        return {Need.LAYER_SHIFT: ("method", self.method, way_out)}


CONFIG = East
