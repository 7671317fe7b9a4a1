"""The spec of one request: its methods, its seed, its think markers, its trace."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tokenlens.errors import SpecError, shorten
from tokenlens.spec import registry
from tokenlens.spec.base import MAX_ENTRIES, MethodBase, StrictModel
from tokenlens.spec.combine import conflict
from tokenlens.spec.errors import forget_schemas
from tokenlens.spec.phase import PhaseConfig
from tokenlens.spec.registry import MethodConfig

MAX_SEED = (1 << 63) - 1


UNFED_ENTRIES = 8
"""Of a step that was fed a token: what else was probable."""


class TraceConfig(StrictModel):
    """What is recorded: nothing, counts for the whole request, or every step."""

    level: Literal["off", "summary", "full"] = Field(
        "summary", description="nothing, counts of the request, or every step"
    )
    max_steps: int = Field(
        16_384, ge=1, le=1_000_000, description="steps kept; later ones are counted"
    )
    max_entries: int | None = Field(
        None,
        ge=1,
        le=MAX_ENTRIES,
        description="entries kept of each step; null: all of a concept token that was fed, so that"
        " it can be replayed, and 8 of the most probable tokens where a token was",
    )

    def most_entries(self, latent: bool) -> int:
        """Entries that are kept of a step that was fed a mixture, or a token."""
        if self.max_entries is not None:
            return self.max_entries
        return MAX_ENTRIES if latent else UNFED_ENTRIES


class DecodingSpec(StrictModel):
    """What decoding should do for one request, on any engine.

    Parameters
    ----------
    methods
        Method configs; they compose, in the order of the stages that ``docs/architecture.md``
        gives, whatever their order here. Empty: plain decoding, bit for bit.
    seed
        Key of the noise, together with the token's position and id. The same request gives the
        same noise whatever else is in the batch, so requests that are equal are one sample.
        ``None``: another for each row, repeat and sample, from the engine's seed for the request
        where it has one (vLLM's ``seed``, SGLang's ``sampling_seed``, torch's generator in
        ``generate()``), else drawn. The trace's spec has the seed that was used.
    phase
        The think markers: found from the model if nothing else is said. ``auto``, ``none``, the
        name of a family, or a :class:`PhaseConfig`.
    trace
        What is recorded.

    Raises
    ------
    pydantic.ValidationError
        Names the field, what was got, and what is allowed. :func:`tokenlens.parse_spec` raises the
        same as a :class:`tokenlens.SpecError` with one line a problem.
    """

    # Built on first use, when the methods are registered.
    model_config = ConfigDict(defer_build=True)

    methods: tuple[MethodConfig, ...] = Field((), max_length=16)
    # The bound stands at the field as well: tools that make forms of a schema look there.
    seed: int | None = Field(None, ge=0, lt=1 << 63, json_schema_extra={"minimum": 0})
    phase: PhaseConfig = PhaseConfig()
    trace: TraceConfig = TraceConfig()

    @field_validator("methods", mode="before")
    @classmethod
    def _accept_lists(cls, value: Any) -> Any:
        return tuple(map(_writable, value)) if isinstance(value, (list, tuple)) else value

    @property
    def uses_seed(self) -> bool:
        """Whether some method draws, so that the seed changes anything."""
        return any(config.uses_seed for config in self.methods)

    @property
    def ends_text(self) -> bool:
        """Whether a method may end the text; then none may be of a least length."""
        return any(config.ends_text for config in self.methods)

    def refuse_least(self, field: str, tokens: int | None) -> None:
        """Refuse a least length beside a method that may end the text.

        Raises
        ------
        SpecError
            Names the field as the engine calls it.
        """
        if tokens and self.ends_text:
            names = ", ".join(config.method for config in self.methods if config.ends_text)
            allowed = f"0 beside {names}, which ends the text where its condition is met"
            raise SpecError.of(field, tokens, allowed)

    @property
    def latent(self) -> MethodBase | None:
        """The method that feeds mixtures, if there is one."""
        return next((config for config in self.methods if config.is_latent), None)

    @model_validator(mode="after")
    def _compose(self) -> "DecodingSpec":
        found = conflict(self.methods, registry.members)
        if found is not None:
            got, allowed = found
            raise PydanticCustomError(
                "method_combination",
                "methods: got {got}; allowed: {allowed}",
                {"got": got, "allowed": allowed},
            )
        return self


def _writable(item: Any) -> Any:
    """A method whose name can be written: pydantic writes it into its error, whatever it is."""
    if isinstance(item, Mapping) and isinstance(item.get("method"), int):
        return {**item, "method": shorten(item["method"])}
    return item


def _models_below(model: type[StrictModel]) -> Iterator[type[StrictModel]]:
    for below in model.__subclasses__():
        yield below
        yield from _models_below(below)


def _rebuild() -> None:
    """Let specs, and the models that hold one, know a method that came after them."""
    forget_schemas()
    held = {model: list(registry.models_of(model)) for model in _models_below(StrictModel)}
    holders = [model for model in held if DecodingSpec in held[model]]
    # What another one holds is built before it. One that is not built yet builds itself when it is
    # used; a holder may be built although the spec, whose schema it has a copy of, is not.
    models: list[type[StrictModel]] = [
        DecodingSpec,
        *sorted(holders, key=lambda one: len(held[one])),
    ]
    for model in models:
        if model.__pydantic_complete__:
            model.model_rebuild(force=True)


registry.on_change(_rebuild)
