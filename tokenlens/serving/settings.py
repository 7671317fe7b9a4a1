"""What the operator allows, and how much memory tokenlens may take. Knows no engine.

Given to vLLM as ``additional_config={"tokenlens": {...}}`` or, on the command line,
``--additional-config '{"tokenlens": {"allow": ["soft_thinking"]}}'``; to SGLang by flags that begin
with ``--tokenlens-``, or by ``tokenlens.sglang.engine(tokenlens={...})``.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from tokenlens.errors import SpecError
from tokenlens.methods import door, files
from tokenlens.methods._shared.named_file import NAME
from tokenlens.spec import METHOD_CONFIGS, DecodingSpec
from tokenlens.spec.base import MAX_ENTRIES, StrictModel
from tokenlens.spec.errors import translated
from tokenlens.spec.installed import how_to_allow

SETTINGS_KEY = "tokenlens"


def vector_bytes(hidden_size: int) -> int:
    """Device memory of one vector of the history, float32."""
    return hidden_size * 4


class Settings(StrictModel):
    """Bounds for every request of an engine; clients cannot widen them."""

    methods: tuple[str, ...] = Field(
        (), max_length=64, description="methods from outside, by the names of their entry points"
    )
    allow: tuple[str, ...] | None = Field(None, description="method names; null = all")
    files: Mapping[Annotated[str, Field(pattern=NAME)], str] = Field(
        default_factory=dict,
        max_length=files.MAX_FILES,
        description="safetensors files that methods read, by the names that specs give them",
    )
    max_entries: Annotated[int, Field(ge=1, le=MAX_ENTRIES)] = Field(
        MAX_ENTRIES, description="entries of a concept token"
    )
    full_traces: bool = Field(True, description="whether a request may ask for every step")
    max_trace_steps: int = Field(
        4096, ge=1, le=1_000_000, description="steps of a full trace; later ones are counted"
    )
    history_mib: float = Field(
        64.0,
        gt=0,
        le=65_536,
        description="device memory for concept tokens that a preempted request is fed again",
    )

    vectors_mib: float = Field(
        32.0,
        gt=0,
        le=65_536,
        description="device memory for vectors (hidden states, mixtures of the whole vocabulary)"
        " that a preempted request is fed again",
    )

    @field_validator("methods", "allow", mode="before")
    @classmethod
    def _accept_lists(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("methods")
    @classmethod
    def _let_in(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # Known before `allow` names them, and in every process that reads the settings.
        return door.allow(value)

    @field_validator("allow")
    @classmethod
    def _known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            if name not in METHOD_CONFIGS:
                raise ValueError(f"got {name!r}; allowed: {', '.join(METHOD_CONFIGS)}")
        return value

    @classmethod
    def of(cls, additional_config: Any) -> "Settings":
        """Settings from a mapping that may hold them, such as vLLM's ``additional_config``.

        Raises
        ------
        SpecError
            Names the wrong setting.
        MethodError
            A method from outside that is missing or broken: its name, and the reason.
        """
        given = isinstance(additional_config, Mapping)
        values = additional_config.get(SETTINGS_KEY) if given else None
        if not values or isinstance(values, Mapping):
            values = dict(values or {})
            if values.get("methods") is None:
                values["methods"] = door.from_environment()
            if values.get("files") is None:
                values["files"] = files.from_environment()
        named = values.get("methods") if isinstance(values, Mapping) else None
        if isinstance(named, (list, tuple)) and all(isinstance(name, str) for name in named):
            # Not by the validator alone: its errors are those of a field.
            door.allow(named)
        try:
            return cls.model_validate(values or {})
        except ValidationError as error:
            raise translated(cls, error) from None

    def read_files(self) -> None:
        """Read the files, once in each process that binds specs.

        Raises
        ------
        SpecError
            One that cannot be: its name, and what is wrong with it.
        """
        files.allow(self.files)

    def check(self, spec: DecodingSpec) -> None:
        """Refuse a spec that goes beyond the bounds.

        Raises
        ------
        SpecError
            Names the field and the operator's bound.
        """
        for index, config in enumerate(spec.methods):
            if config.method in door.outside() and config.method not in self.methods:
                # Another engine of this process has let it in.
                allowed = f"{', '.join(self.methods) or 'none'}, of those from outside"
                hint = how_to_allow(config.method)
                raise SpecError.of(f"methods[{index}].method", config.method, allowed, hint)
            if self.allow is not None and config.method not in self.allow:
                allowed = ", ".join(self.allow) or "none"
                raise SpecError.of(
                    f"methods[{index}].method", config.method, f"on this server: {allowed}"
                )
            field, entries = config.entries()
            if entries > self.max_entries:
                raise SpecError.of(
                    f"methods[{index}].{field}",
                    entries,
                    f"at most {self.max_entries} on this server",
                )
        if spec.trace.level == "full" and not self.full_traces:
            raise SpecError.of("trace.level", "full", "on this server: 'off', 'summary'")

    def vectors(self, hidden_size: int) -> int:
        """Vectors of a width that requests can have together."""
        return max(1, int(self.vectors_mib * 2**20) // vector_bytes(hidden_size))

    def width(self, vocab_size: int) -> int:
        """Entries that the engine keeps of every concept token."""
        return min(self.max_entries, vocab_size)
