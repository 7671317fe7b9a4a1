"""What a request asks for: pydantic models, presets, JSON Schema. Knows no tensors, no engine."""

from tokenlens.spec.budgets import S1, AlphaOne, ThinkingBudget
from tokenlens.spec.controls import AnswerNow, NoThinking, RandomRoute, Top1
from tokenlens.spec.decoding import DecodingSpec, TraceConfig
from tokenlens.spec.errors import SpecError, SpecProblem
from tokenlens.spec.families import FAMILIES
from tokenlens.spec.feedback import Coconut, LatentMas
from tokenlens.spec.gate import Blend, Gate, SwitchControl
from tokenlens.spec.latent import Lead, Selar, SwiReasoning, ThinkRouter
from tokenlens.spec.load import load_spec, parse_spec
from tokenlens.spec.markers import Tokenizer, encode_text, resolve_marker
from tokenlens.spec.needs import NEEDS, Need, needs_of, refuse_needs
from tokenlens.spec.noise import DirichletNoise, GumbelNoise
from tokenlens.spec.penalties import NoWait, Tip
from tokenlens.spec.phase import PhaseConfig
from tokenlens.spec.presets import RECIPES, preset, preset_names
from tokenlens.spec.registry import METHOD_CONFIGS, MethodConfig
from tokenlens.spec.rollouts import Cot2, LatentGrpo, SoftGrpoNoise, SoftTokens
from tokenlens.spec.samplers import Edt, Hapo, MinP, TopH, TopNSigma
from tokenlens.spec.schedules import CyclicReflex, StaticWindow
from tokenlens.spec.soft_thinking import ColdStop, ConceptTokens, SoftThinking
from tokenlens.spec.vocabulary import Vocabulary

__all__ = [
    "FAMILIES",
    "METHOD_CONFIGS",
    "NEEDS",
    "RECIPES",
    "S1",
    "AlphaOne",
    "AnswerNow",
    "Blend",
    "Coconut",
    "ColdStop",
    "ConceptTokens",
    "Cot2",
    "CyclicReflex",
    "DecodingSpec",
    "DirichletNoise",
    "Edt",
    "Gate",
    "GumbelNoise",
    "Hapo",
    "LatentGrpo",
    "LatentMas",
    "Lead",
    "MethodConfig",
    "MinP",
    "Need",
    "NoThinking",
    "NoWait",
    "PhaseConfig",
    "RandomRoute",
    "Selar",
    "SoftGrpoNoise",
    "SoftThinking",
    "SoftTokens",
    "SpecError",
    "SpecProblem",
    "StaticWindow",
    "SwiReasoning",
    "SwitchControl",
    "ThinkRouter",
    "ThinkingBudget",
    "Tip",
    "Tokenizer",
    "Top1",
    "TopH",
    "TopNSigma",
    "TraceConfig",
    "Vocabulary",
    "encode_text",
    "load_spec",
    "needs_of",
    "parse_spec",
    "preset",
    "preset_names",
    "refuse_needs",
    "resolve_marker",
]
