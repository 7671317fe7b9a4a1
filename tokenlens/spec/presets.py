"""Specs by name: a model family's think markers joined with a recipe of methods."""

from collections.abc import Callable
from dataclasses import dataclass

from tokenlens.spec.controls import AnswerNow, NoThinking, RandomRoute, Top1
from tokenlens.spec.decoding import DecodingSpec, PhaseConfig
from tokenlens.spec.errors import SpecError
from tokenlens.spec.noise import DirichletNoise, GumbelNoise
from tokenlens.spec.registry import AnyMethod
from tokenlens.spec.soft_thinking import ColdStop, SoftThinking


@dataclass(frozen=True)
class Family:
    """Models that mark their thinking in the same way."""

    models: str
    think_start: str
    think_end: str


FAMILIES: dict[str, Family] = {
    "qwen3": Family("Qwen3 with thinking enabled", "<think>", "</think>"),
    "r1-qwen": Family("DeepSeek-R1-Distill-Qwen", "<think>", "</think>"),
    "r1-llama": Family("DeepSeek-R1-Distill-Llama", "<think>", "</think>"),
    "qwq": Family("QwQ-32B", "<think>", "</think>"),
    "tiny": Family("the tiny reasoner of this repository", "<think>", "</think>"),
}

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
    """Every preset's name, ``family-recipe``."""
    return [f"{family}-{recipe}" for family in FAMILIES for recipe in RECIPES]


def preset(name: str) -> DecodingSpec:
    """The spec of a preset, e.g. ``qwen3-soft``.

    Raises
    ------
    SpecError
        No preset of that name.
    """
    for family_name, family in FAMILIES.items():
        recipe = RECIPES.get(name.removeprefix(f"{family_name}-"))
        if name.startswith(f"{family_name}-") and recipe is not None:
            phase = PhaseConfig(think_start=family.think_start, think_end=family.think_end)
            return DecodingSpec(methods=recipe.methods(), phase=phase)
    raise SpecError.of(
        "preset",
        name,
        f"FAMILY-RECIPE; families: {', '.join(FAMILIES)}; recipes: {', '.join(RECIPES)}",
    )
