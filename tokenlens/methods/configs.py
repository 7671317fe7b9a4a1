"""Registers the configs of the methods that come with tokenlens. Imports no torch."""

from tokenlens.spec.budgets import S1, AlphaOne, ThinkingBudget
from tokenlens.spec.controls import AnswerNow, NoThinking, RandomRoute, Top1
from tokenlens.spec.feedback import Coconut, LatentMas
from tokenlens.spec.latent import Lead, Selar, SwiReasoning, ThinkRouter
from tokenlens.spec.noise import DirichletNoise, GumbelNoise
from tokenlens.spec.penalties import NoWait, Tip
from tokenlens.spec.registry import register
from tokenlens.spec.rollouts import Cot2, LatentGrpo, SoftGrpoNoise, SoftTokens
from tokenlens.spec.samplers import Edt, Hapo, MinP, TopH, TopNSigma
from tokenlens.spec.schedules import CyclicReflex, StaticWindow
from tokenlens.spec.soft_thinking import SoftThinking

for _config in (
    SoftThinking, GumbelNoise, DirichletNoise, Top1, RandomRoute, NoThinking, AnswerNow,
    CyclicReflex, StaticWindow, Tip, NoWait, Edt, Hapo, MinP, TopNSigma, TopH,
    ThinkingBudget, S1, AlphaOne,
    ThinkRouter, Lead, SwiReasoning, Selar,
    SoftGrpoNoise, LatentGrpo, Cot2, SoftTokens, Coconut, LatentMas,
):  # fmt: skip
    register(_config, built_in=True)
