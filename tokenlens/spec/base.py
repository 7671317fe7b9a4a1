"""The base of every model of a spec, and the profiles of methods."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from tokenlens.spec.needs import Need

Profile = Literal["default", "published"]

MAX_ENTRIES = 64
"""The most entries of a concept token, and the largest top-k that a method may ask for."""

LEAST = 1e-6
"""The smallest temperature, concentration, nucleus or scale.

Numbers of a spec are kept as float32. From here up a reciprocal, and what a step multiplies or
divides with it, is far from both ends of float32; below it they turn into 0, infinity or NaN.
"""

MAX_NOISE = 20.0
"""The largest scale of a noise with a log-probability, which is its exponential: Gumbel draws begin
at -3.1, and e to 62 fits float32."""

Needs = Mapping[Need, tuple[str, Any, str]]
"""What a config needs of an engine: by need, the field that asks, its value, and the way out."""


class StrictModel(BaseModel):
    """A frozen model that refuses unknown fields and quiet conversions such as ``"3"`` for 3."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class MethodBase(StrictModel):
    """What every method's config has: a profile that decides the defaults of its other fields.

    ``default`` does what the paper means; ``published`` does what the authors' code does, quirks
    included. A field that the user gives wins over both.
    """

    published: ClassVar[Mapping[str, Any]] = {}

    profile: Profile = "default"

    @property
    def is_budget(self) -> bool:
        """Ends thinking after a number of tokens; a spec has one such method."""
        return False

    @property
    def uses_seed(self) -> bool:
        """Draws: what it does depends on the request's seed."""
        return False

    @model_validator(mode="before")
    @classmethod
    def _fill_profile(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("profile") == "published":
            return {**cls.published, **data}
        return data

    def needs(self) -> Needs:
        """What this config needs of an engine beyond concept tokens; see `tokenlens.spec.needs`."""
        return {}


class DrawingMethod(MethodBase):
    """The config of a method that draws."""

    @property
    def uses_seed(self) -> bool:
        """Draws: what it does depends on the request's seed."""
        return True
