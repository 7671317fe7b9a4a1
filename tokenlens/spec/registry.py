"""Every method that a spec may name. A new one adds a line here and a line in tokenlens.methods."""

from typing import Annotated, get_args

from pydantic import Field

from tokenlens.spec.base import MethodBase
from tokenlens.spec.budgets import S1, AlphaOne, ThinkingBudget
from tokenlens.spec.controls import AnswerNow, NoThinking, RandomRoute, Top1
from tokenlens.spec.noise import DirichletNoise, GumbelNoise
from tokenlens.spec.penalties import NoWait, Tip
from tokenlens.spec.samplers import Edt, Hapo, MinP, TopH, TopNSigma
from tokenlens.spec.schedules import CyclicReflex, StaticWindow
from tokenlens.spec.soft_thinking import SoftThinking

AnyMethod = (
    SoftThinking | GumbelNoise | DirichletNoise | Top1 | RandomRoute | NoThinking | AnswerNow
    | CyclicReflex | StaticWindow | Tip | NoWait | Edt | Hapo | MinP | TopNSigma | TopH
    | ThinkingBudget | S1 | AlphaOne
)  # fmt: skip
MethodConfig = Annotated[AnyMethod, Field(discriminator="method")]

METHOD_CONFIGS: dict[str, type[MethodBase]] = {
    config.model_fields["method"].default: config for config in get_args(AnyMethod)
}
"""Config class by the name that goes into the field ``method``."""

LATENT_METHODS = frozenset({"soft_thinking"})
"""Methods that feed mixtures; a request has at most one of them."""

NEEDS_LATENT = {
    "gumbel_noise": "it changes concept weights",
    "dirichlet_noise": "it changes concept weights",
    "top1": "it replaces a mixture by its top entry",
    "random_route": "it decides which steps are latent",
}
"""Methods that mean nothing without a latent one, and why."""

EXCLUSIVE = (
    ("gumbel_noise", "dirichlet_noise", "one kind of noise at a time"),
    ("edt", "hapo", "one adaptive temperature at a time"),
    ("no_thinking", "answer_now", "both end thinking; answer_now with after=0 is no_thinking"),
)
"""Pairs that cannot be in one spec, and why."""
