"""Specs by name: methods with their settings, for every model.

A model's markers are found from the model (:mod:`tokenlens.spec.finding`), or named by a family
(:mod:`tokenlens.spec.families`): ``{"preset": "soft", "phase": "gemma4"}``. The names of both
together, such as ``qwen3-soft``, are older than that.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tokenlens.spec.controls import AnswerNow, NoThinking, RandomRoute, Top1
from tokenlens.spec.decoding import DecodingSpec
from tokenlens.spec.errors import SpecError
from tokenlens.spec.families import FAMILIES, PRESET_FAMILIES, Family
from tokenlens.spec.noise import DirichletNoise, GumbelNoise
from tokenlens.spec.phase import PhaseConfig
from tokenlens.spec.registry import AnyMethod
from tokenlens.spec.soft_thinking import ColdStop, SoftThinking

COLD_STOP = ColdStop(entropy_threshold=0.01, patience=256)
"""The setting that the README of Soft Thinking gives for QwQ-32B."""


@dataclass(frozen=True)
class Recipe:
    """Methods with their settings, and where the settings come from."""

    description: str
    methods: Callable[[], tuple[AnyMethod, ...]]


def _published(**settings: object) -> SoftThinking:
    return SoftThinking.model_validate({"profile": "published", **settings})


RECIPES: dict[str, Recipe] = {
    "soft": Recipe(
        "Soft Thinking with Cold Stop, as the paper means it",
        lambda: (SoftThinking(cold_stop=COLD_STOP),),
    ),
    "soft-published": Recipe(
        "Soft Thinking as the authors' code does it for QwQ-32B",
        lambda: (_published(min_p=0.001, max_entries=10, cold_stop=COLD_STOP),),
    ),
    "gumbel": Recipe(
        "Soft Thinking with Gumbel-softmax noise (tau 0.5)",
        lambda: (SoftThinking(), GumbelNoise()),
    ),
    "gumbel-published": Recipe(
        "Randomised Soft Thinking, Gumbel, as the authors' code does it",
        lambda: (_published(), GumbelNoise(profile="published")),
    ),
    "dirichlet": Recipe(
        "Soft Thinking with Dirichlet noise (alpha 4)",
        lambda: (SoftThinking(), DirichletNoise()),
    ),
    "dirichlet-published": Recipe(
        "Randomised Soft Thinking, Dirichlet, as the authors' code does it",
        lambda: (
            _published(),
            DirichletNoise.model_validate({"profile": "published"}),
        ),
    ),
    "top1": Recipe(
        "control: every mixture replaced by its top entry", lambda: (SoftThinking(), Top1())
    ),
    "random-route": Recipe(
        "control: half of the thinking steps latent, chosen by chance",
        lambda: (SoftThinking(), RandomRoute()),
    ),
    "no-thinking": Recipe("control: thinking ended at once", lambda: (NoThinking(),)),
    "answer-now": Recipe(
        "control: thinking ended after 128 tokens", lambda: (AnswerNow(after=128),)
    ),
}


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
        return DecodingSpec(methods=RECIPES[name].methods())
    for family_name, family in FAMILIES.items():
        recipe = RECIPES.get(name.removeprefix(f"{family_name}-"))
        if name.startswith(f"{family_name}-") and recipe is not None:
            phase = PhaseConfig.model_validate(_phase_of(family_name, family))
            return DecodingSpec(methods=recipe.methods(), phase=phase)
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
