"""The methods that a spec may name: whatever registered its config, in the order of registration.

The configs of the methods that come with tokenlens lie beside their steps, above this package;
``tokenlens/__init__.py`` has them registered before anybody can look here. Everything that lists
methods (the union of a spec, its JSON Schema, presets, pages, ``tokenlens validate``) reads this.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union, get_args

from pydantic import BaseModel, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from tokenlens.spec.base import MethodBase, Recipe, StrictModel

METHOD_CONFIGS: dict[str, type[MethodBase]] = {}
"""Config class by the name that goes into the field ``method``."""

RECIPES: dict[str, Recipe] = {}
"""What the methods bring as presets, by the name behind the model family's."""

_EXPORTS: dict[str, type[BaseModel]] = {}
_LISTENERS: list[Callable[[], None]] = []

AnyMethod: TypeAlias = MethodBase


class _Registered:
    """Makes pydantic look the registry up when it builds the schema of a spec."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        union: Any = Union[tuple(METHOD_CONFIGS.values())]  # noqa: UP007
        annotated: Any = Annotated
        tagged = annotated[union, Field(discriminator="method")]
        return handler.generate_schema(tagged)


if TYPE_CHECKING:
    MethodConfig = MethodBase
else:
    MethodConfig = Annotated[MethodBase, _Registered()]


def register(config: type[MethodBase], *, built_in: bool = False) -> None:
    """Let specs name a method.

    Parameters
    ----------
    config
        Its field ``method`` is a ``Literal`` of its name, and has that name as its default.
    built_in
        Whether ``tokenlens.spec`` has the class, and the models in its fields, by their names.

    Raises
    ------
    ValueError
        Another config has the name.
    """
    name = config.model_fields["method"].default
    if METHOD_CONFIGS.get(name, config) is not config:
        raise ValueError(f"got a second method {name}; allowed: one")
    recipes = {key for key in config.recipes if RECIPES.get(key) is not config.recipes[key]}
    if known := recipes.intersection(RECIPES):
        raise ValueError(f"got the recipes {sorted(known)} again; allowed: names of their own")
    METHOD_CONFIGS[name] = config
    # People try the methods first, and their controls then.
    both = sorted({**RECIPES, **config.recipes}.items(), key=lambda item: item[1].is_control)
    RECIPES.clear()
    RECIPES.update(both)
    if built_in:
        models = (*reversed(config.__mro__), *models_of(config))
        _EXPORTS.update(
            (model.__name__, model) for model in models if issubclass(model, StrictModel)
        )
    _changed()


def forget(name: str) -> None:
    """Take a method out again: a start that failed leaves nothing behind."""
    config = METHOD_CONFIGS.pop(name, None)
    for key in config.recipes if config else ():
        RECIPES.pop(key, None)
    _changed()


def on_change(listener: Callable[[], None]) -> None:
    """Have something called whenever the methods change, such as a cache cleared."""
    _LISTENERS.append(listener)


def _changed() -> None:
    for listener in _LISTENERS:
        listener()


def members(family: str) -> list[str]:
    """The names of the methods of a family."""
    return [name for name, config in METHOD_CONFIGS.items() if family in config.family]


def exported(name: str) -> type[BaseModel] | None:
    """A config class that comes with tokenlens, or a model in its fields, by its class's name."""
    return _EXPORTS.get(name)


def exports() -> list[str]:
    """The names of all of them."""
    return sorted(_EXPORTS)


def models_of(config: type[BaseModel]) -> Iterator[type[StrictModel]]:
    """The models that a config's fields hold, in order; one that several hold comes again."""
    for info in config.model_fields.values():
        for model in models_in(info.annotation):
            yield model
            yield from models_of(model)


def models_in(annotation: Any) -> Iterator[type[StrictModel]]:
    """The models that a field's annotation names, in order."""
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def __getattr__(name: str) -> Any:
    # Names that were constants once.
    if name == "LATENT_METHODS":
        return frozenset(members("latent"))
    if name == "GATED_METHODS":
        return tuple(members("gate"))
    if name == "NEEDS_LATENT":
        return {
            name: rule.because
            for name, config in METHOD_CONFIGS.items()
            for rule in config.requires
            if rule.other == "latent"
        }
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
