"""The spec of one request: its methods, its seed, its think markers, its trace."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tokenlens.spec.base import MAX_ENTRIES, StrictModel
from tokenlens.spec.errors import shorten
from tokenlens.spec.phase import PhaseConfig
from tokenlens.spec.registry import EXCLUSIVE, LATENT_METHODS, NEEDS_LATENT, MethodConfig

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

    @model_validator(mode="after")
    def _compose(self) -> "DecodingSpec":
        names: list[str] = [config.method for config in self.methods]
        for name in names:
            if names.count(name) > 1:
                raise _problem(f"{name} twice", f"each method at most once; remove one {name}")
        if len(LATENT_METHODS.intersection(names)) > 1:
            raise _problem(", ".join(names), f"one of {sorted(LATENT_METHODS)}")
        for name, reason in NEEDS_LATENT.items():
            if name in names and not LATENT_METHODS.intersection(names):
                allowed = f"{name} beside one of {sorted(LATENT_METHODS)}, because {reason}"
                raise _problem(f"{name} alone", allowed)
        for first, second, reason in EXCLUSIVE:
            if first in names and second in names:
                raise _problem(f"{first} and {second}", f"one of the two: {reason}")
        budgets = [config.method for config in self.methods if config.is_budget]
        if len(budgets) > 1:
            raise _problem(" and ".join(budgets), "one of them: each ends thinking")
        latent = next((c for c in self.methods if c.method in LATENT_METHODS), None)
        if "dirichlet_noise" in names and getattr(latent, "top_k", 0) == 0:
            raise _problem(
                f"dirichlet_noise with {latent.method}.top_k = 0",  # type: ignore[union-attr]
                "a top_k of 1 to 64, because the draw is over the entries that the filters keep",
            )
        noises = [name for name in names if name.endswith("_noise")]
        if noises and getattr(latent, "mixture", "top_k") == "full":
            raise _problem(
                f"{noises[0]} with {latent.method}.mixture = full",  # type: ignore[union-attr]
                "mixture = top_k beside it, because the noise is on a concept token's entries",
            )
        return self


def _writable(item: Any) -> Any:
    """A method whose name can be written: pydantic writes it into its error, whatever it is."""
    if isinstance(item, Mapping) and isinstance(item.get("method"), int):
        return {**item, "method": shorten(item["method"])}
    return item


def _problem(got: str, allowed: str) -> PydanticCustomError:
    return PydanticCustomError(
        "method_combination",
        "methods: got {got}; allowed: {allowed}",
        {"got": got, "allowed": allowed},
    )
