"""Specs by name: methods with their settings, for every model.

A model's markers are found from the model (:mod:`tokenlens.spec.finding`), or named by a family
(:mod:`tokenlens.spec.families`): ``{"preset": "soft", "phase": "gemma4"}``. The names of both
together, such as ``qwen3-soft``, are older than that.
"""

from tokenlens.spec.decoding import DecodingSpec
from tokenlens.spec.errors import SpecError
from tokenlens.spec.families import FAMILIES, PRESET_FAMILIES, Family
from tokenlens.spec.phase import PhaseConfig
from tokenlens.spec.registry import RECIPES as RECIPES


def preset_names() -> list[str]:
    """Every preset's name: the recipes, and those of older names, ``family-recipe``."""
    both = [f"{family}-{recipe}" for family in PRESET_FAMILIES for recipe in RECIPES]
    return [*RECIPES, *both]


def preset(name: str) -> DecodingSpec:
    """The spec of a preset, e.g. ``soft``, or ``qwen3-soft`` with a family's markers.

    Raises
    ------
    SpecError
        No preset of that name.
    """
    if name in RECIPES:
        return DecodingSpec.model_validate({"methods": RECIPES[name].methods})
    for family_name, family in FAMILIES.items():
        recipe = RECIPES.get(name.removeprefix(f"{family_name}-"))
        if name.startswith(f"{family_name}-") and recipe is not None:
            phase = PhaseConfig.model_validate(_phase_of(family_name, family))
            return DecodingSpec.model_validate({"methods": recipe.methods, "phase": phase})
    raise SpecError.of(
        "preset",
        name,
        f"RECIPE or FAMILY-RECIPE; recipes: {', '.join(RECIPES)}; families: {', '.join(FAMILIES)}",
    )


def _phase_of(name: str, family: Family) -> dict[str, object]:
    """A family's markers in full: a preset that is printed shows them."""
    if not family.starts:
        return {"markers": name, "opens": "first_token", "think_end": family.ends}
    return {"markers": name, "think_start": family.starts, "think_end": family.ends}
