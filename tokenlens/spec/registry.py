"""Every method that a spec may name. A new one adds a line here and a line in tokenlens.methods."""

from typing import Annotated, get_args

from pydantic import Field

from tokenlens.spec.base import MethodBase
from tokenlens.spec.budgets import S1, AlphaOne, ThinkingBudget
from tokenlens.spec.controls import AnswerNow, NoThinking, RandomRoute, Top1
from tokenlens.spec.feedback import Coconut, LatentMas
from tokenlens.spec.latent import Lead, Selar, SwiReasoning, ThinkRouter
from tokenlens.spec.noise import DirichletNoise, GumbelNoise
from tokenlens.spec.penalties import NoWait, Tip
from tokenlens.spec.rollouts import Cot2, LatentGrpo, SoftGrpoNoise, SoftTokens
from tokenlens.spec.samplers import Edt, Hapo, MinP, TopH, TopNSigma
from tokenlens.spec.schedules import CyclicReflex, StaticWindow
from tokenlens.spec.soft_thinking import SoftThinking

AnyMethod = (
    SoftThinking | GumbelNoise | DirichletNoise | Top1 | RandomRoute | NoThinking | AnswerNow
    | CyclicReflex | StaticWindow | Tip | NoWait | Edt | Hapo | MinP | TopNSigma | TopH
    | ThinkingBudget | S1 | AlphaOne
    | ThinkRouter | Lead | SwiReasoning | Selar
    | SoftGrpoNoise | LatentGrpo | Cot2 | SoftTokens | Coconut | LatentMas
)  # fmt: skip
MethodConfig = Annotated[AnyMethod, Field(discriminator="method")]

METHOD_CONFIGS: dict[str, type[MethodBase]] = {
    config.model_fields["method"].default: config for config in get_args(AnyMethod)
}
"""Config class by the name that goes into the field ``method``."""

GATED_METHODS = ("think_router", "lead", "swi_reasoning", "selar")
"""Methods that decide at each step whether it is latent."""

LATENT_METHODS = frozenset(
    {"soft_thinking", *GATED_METHODS}
    | {"latent_grpo", "cot2", "soft_tokens", "coconut", "latent_mas"}
)
"""Methods that feed mixtures; a request has at most one of them."""

NEEDS_LATENT = {
    "gumbel_noise": "it changes concept weights",
    "dirichlet_noise": "it changes concept weights",
    "soft_grpo_noise": "it changes concept weights",
    "top1": "it replaces a mixture by its top entry",
    "random_route": "it decides which steps are latent",
}
"""Methods that mean nothing without a latent one, and why."""

EXCLUSIVE = (
    ("gumbel_noise", "dirichlet_noise", "one kind of noise at a time"),
    ("edt", "hapo", "one adaptive temperature at a time"),
    ("gumbel_noise", "soft_grpo_noise", "one kind of noise at a time"),
    ("dirichlet_noise", "soft_grpo_noise", "one kind of noise at a time"),
    *(("random_route", gated, "two gates would decide one step") for gated in GATED_METHODS),
    *(
        (noise, method, f"{method} has no concept weights for it to change")
        for noise in ("gumbel_noise", "dirichlet_noise", "soft_grpo_noise")
        for method in ("cot2", "coconut", "latent_mas")
    ),
    *(
        (noise, "latent_grpo", "latent_grpo has a noise of its own, in its field noise")
        for noise in ("gumbel_noise", "dirichlet_noise", "soft_grpo_noise")
    ),
    ("no_thinking", "answer_now", "both end thinking; answer_now with after=0 is no_thinking"),
)
"""Pairs that cannot be in one spec, and why."""
