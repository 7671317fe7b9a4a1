"""The base of every model of a spec, and the profiles of methods."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tokenlens.spec.needs import Need

Profile = Literal["default", "published"]

MAX_ENTRIES = 64
"""The most entries of a concept token, and the largest top-k that a method may ask for."""

LEAST = 1e-6
"""The smallest temperature, concentration, nucleus or scale.

Numbers of a spec are kept as float32. From here up a reciprocal, and what a step multiplies or
divides with it, is far from both ends of float32; below it they turn into 0, infinity or NaN.
"""

SMALLEST = 2.0**-126
"""The smallest number above 0 that every device keeps in float32: a bound above 0 is no smaller."""

BELOW_ONE = 1 - 2.0**-24
"""The largest number beneath 1 in float32."""

MAX_NOISE = 20.0
"""The largest scale of a noise with a log-probability, which is its exponential: Gumbel draws begin
at -3.1, and e to 62 fits float32."""

Needs = Mapping[Need, tuple[str, Any, str]]
"""What a config needs of an engine: by need, the field that asks, its value, and the way out."""


class StrictModel(BaseModel):
    """A frozen model that refuses unknown fields and quiet conversions such as ``"3"`` for 3."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Requires(NamedTuple):
    """A method that means nothing without another one: a method's name, or a family's, and why."""

    other: str
    because: str


class Excludes(NamedTuple):
    """Methods that cannot stand beside this one: a method's name, or a family's, and why.

    Attributes
    ----------
    field, value
        Only where the other's field has this value.
    instead
        What to write for it.
    """

    other: str
    because: str
    field: str = ""
    value: Any = None
    instead: str = ""


class Recipe(NamedTuple):
    """Methods with their settings, and where the settings come from."""

    description: str
    methods: tuple[Mapping[str, Any], ...]

    @property
    def is_control(self) -> bool:
        """There so that a claim about another method can be checked."""
        return self.description.startswith("control:")


QUIRKS: Any = Field(
    None,
    exclude_if=lambda quirks: quirks is None,
    description="what the authors' code does beside the paper; profile: published fills it",
)
"""The field of a config that holds its quirks; nothing is shown of it where none is set."""


class ProfiledModel(StrictModel):
    """Settings with a profile that decides the defaults of the other fields.

    ``default`` does what the paper means; ``published`` does what the authors' code does, quirks
    included. A field that the user gives wins over both.

    Attributes
    ----------
    published
        What the profile of that name sets.
    """

    published: ClassVar[Mapping[str, Any]] = {}

    profile: Profile = "default"

    @model_validator(mode="before")
    @classmethod
    def _fill_profile(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("profile") == "published":
            return {**cls.published, **data}
        return data


class MethodBase(ProfiledModel):
    """What every method's config has. What only ``published`` sets stands in a model of its own.

    That is the field ``quirks``. Beside it a method declares how it goes with others.

    Attributes
    ----------
    family
        Groups that the method is in, by name (:mod:`tokenlens.spec.combine`): ``latent`` feeds
        mixtures, ``gate`` decides which steps are latent, ``noise`` changes concept weights, ...
    requires, excludes
        What must, and what cannot, stand beside it in a spec.
    recipes
        Presets that it brings, by the name behind the model family's.
    """

    family: ClassVar[tuple[str, ...]] = ()
    requires: ClassVar[tuple[Requires, ...]] = ()
    excludes: ClassVar[tuple[Excludes, ...]] = ()
    recipes: ClassVar[Mapping[str, Recipe]] = {}

    if TYPE_CHECKING:
        method: str

    else:

        def __getattr__(self, name: str) -> Any:
            quirks = type(self).quirks_model()
            if quirks is None or name not in quirks.model_fields:
                return super().__getattr__(name)
            _warn_moved(self.method, [name])
            return getattr(self.rules, name)

    @classmethod
    def quirks_model(cls) -> type[StrictModel] | None:
        """The model of the quirks, ``None`` where the method has none."""
        info = cls.__pydantic_fields__.get("quirks")
        return None if info is None else next(iter(get_args(info.annotation)), None)

    @classmethod
    def new_place(cls, path: Sequence[str]) -> list[str]:
        """Where a field stands, from the method's name on, that may be named by its old place."""
        model = cls.quirks_model()
        if model is None or path[1] not in model.model_fields:
            return list(path)
        _warn_moved(path[0], [path[1]])
        return [path[0], "quirks", *path[1:]]

    @property
    def rules(self) -> Any:
        """The quirks in force: those that are set, and the paper's rule elsewhere."""
        model = type(self).quirks_model()
        assert model is not None
        given = getattr(self, "quirks", None)
        return model() if given is None else given

    @property
    def vector_steps(self) -> int | None:
        """The most latent steps that feed a vector of the engine's; ``None``: every one may."""
        return None

    def needs_whole_table(self) -> tuple[str, Any, str] | None:
        """What it does only where one rank has the whole table: the field, its value, a way out."""
        return None

    @property
    def is_latent(self) -> bool:
        """Feeds mixtures; a spec has at most one such method."""
        return "latent" in self.family

    @property
    def is_budget(self) -> bool:
        """Ends thinking after a number of tokens; a spec has one such method."""
        return "budget" in self.family

    @property
    def families(self) -> frozenset[str]:
        """The groups that this config is in: its method's, and ``budget`` if it is one."""
        return frozenset(self.family) | ({"budget"} if self.is_budget else set())

    @property
    def uses_seed(self) -> bool:
        """Draws: what it does depends on the request's seed."""
        return False

    @property
    def ends_text(self) -> bool:
        """Writes an end of the text: the request must be one that it ends, and at any length."""
        return False

    @property
    def from_first_token(self) -> bool:
        """Thinks from the first token on, whatever the prompt says."""
        return False

    @property
    def forced_end_part(self) -> Literal["marker", "last_token", "first_token"]:
        """What of the end marker ends thinking."""
        return "marker"

    @property
    def forced_text(self) -> str | None:
        """A text that the method writes in the request's place, from its field ``text``."""
        text = getattr(self, "text", None)
        return text if isinstance(text, str) else None

    def entries(self) -> tuple[str, int]:
        """The most entries of its concept tokens, behind the name of the field that says so."""
        return "max_entries", getattr(self, "max_entries", 0)

    @model_validator(mode="before")
    @classmethod
    def _fill_profile(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        is_published = data.get("profile") == "published"
        values = {**cls.published, **data} if is_published else dict(data)
        model = cls.quirks_model()
        if model is not None:
            _place_quirks(cls, model, values, data, cls.published if is_published else {})
        return values

    @field_validator("quirks", check_fields=False)
    @classmethod
    def _none_for_no_quirk(cls, quirks: Any, info: ValidationInfo) -> Any:
        # Two ways to write one spec give one spec. Beside `published` they differ: nothing given
        # is filled.
        is_filled = info.data.get("profile") == "published" and "quirks" in cls.published
        plain = quirks is not None and not is_filled
        return None if plain and quirks == type(quirks)() else quirks

    def needs(self) -> Needs:
        """What this config needs of an engine beyond concept tokens; see `tokenlens.spec.needs`."""
        return {}


def _place_quirks(
    config: type[MethodBase],
    model: type[StrictModel],
    values: dict[str, Any],
    given: Mapping[str, Any],
    published: Mapping[str, Any],
) -> None:
    """Put quirks that stand beside the other fields, as they did once, into ``quirks``."""
    moved = [name for name in model.model_fields if name in given]
    flat = {name: values.pop(name) for name in moved}
    quirks = given.get("quirks")
    if isinstance(quirks, model):
        quirks = {name: getattr(quirks, name) for name in quirks.model_fields_set}
    if not (quirks is None or isinstance(quirks, Mapping)):
        return  # pydantic says what is wrong with it
    twice = [name for name in moved if name in (quirks or {})]
    if twice:
        raise PydanticCustomError(
            "inconsistent",
            "got {got}; allowed: {allowed}",
            {
                "got": f"{twice[0]} and quirks.{twice[0]}",
                "allowed": f"one of them, quirks.{twice[0]}",
            },
        )
    if moved:
        _warn_moved(config.model_fields["method"].default, moved)
    merged = {**published.get("quirks", {}), **(quirks or {}), **flat}
    if merged or quirks is not None:
        values["quirks"] = merged


def _warn_moved(method: str, names: list[str]) -> None:
    places = ", ".join(f"{name} -> quirks.{name}" for name in names)
    warnings.warn(
        f"{method}: these fields have moved, and their old places go with the next release:"
        f" {places}",
        DeprecationWarning,
        stacklevel=3,
    )


class DrawingMethod(MethodBase):
    """The config of a method that draws."""

    @property
    def uses_seed(self) -> bool:
        """Draws: what it does depends on the request's seed."""
        return True
