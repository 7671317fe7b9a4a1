"""What DiffAdapt can be asked for (arXiv 2510.19669)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tokenlens.methods._shared.named_file import FileName
from tokenlens.methods._shared.samplers import EntropyTemperature
from tokenlens.methods._shared.words import MAX_TOKENS
from tokenlens.spec.base import LEAST, Needs, StrictModel
from tokenlens.spec.needs import Need

Temperature = Annotated[float, Field(ge=LEAST, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]


class Strategy(StrictModel):
    """How questions of one difficulty are thought about."""

    temperature: Temperature = Field(1.0, description="of the sampled tokens")
    share: Share = Field(1.0, description="of the budget, after which thinking ends")


class DiffAdapt(EntropyTemperature):
    """A probe behind the prompt tells how hard it is; temperature and length follow.

    The strategies' own prompts are not: a request's prompt is its client's.
    """

    family: ClassVar[tuple[str, ...]] = ("temperature",)

    method: Literal["diffadapt"] = "diffadapt"
    file: FileName = "diffadapt"
    budget: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="thinking tokens at a share of 1; null = no bound"
    )
    confidence: float = Field(
        0.0, ge=0, le=1, description="of the probe; below it a question is taken to be normal"
    )
    easy: Strategy = Field(
        Strategy(temperature=0.5, share=0.4), description="where the probe says easy"
    )
    normal: Strategy = Field(
        Strategy(temperature=0.8, share=1.0), description="where the probe says normal"
    )
    hard: Strategy = Field(
        Strategy(temperature=0.4, share=0.5), description="where the probe says hard"
    )

    @property
    def is_budget(self) -> bool:
        """Ends thinking, where it has a budget."""
        return self.budget is not None

    def needs(self) -> Needs:
        return {Need.PROMPT_STATE: ("method", self.method, "edt, which needs the logits alone")}


CONFIG = DiffAdapt
