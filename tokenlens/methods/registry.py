"""Every method, in the order in which their hooks run. A new method adds one line here."""

from tokenlens.core.method import Method
from tokenlens.methods.alpha_one import AlphaOneMethod
from tokenlens.methods.answer_now import EndThinkingMethod
from tokenlens.methods.cyclic_reflex import ScheduleMethod
from tokenlens.methods.dirichlet_noise import DirichletNoiseMethod
from tokenlens.methods.edt import EdtMethod
from tokenlens.methods.gated import GateMethod
from tokenlens.methods.gumbel_noise import GumbelNoiseMethod
from tokenlens.methods.hapo import HapoMethod
from tokenlens.methods.hidden_feedback import HiddenFeedbackMethod
from tokenlens.methods.nowait import NoWaitMethod
from tokenlens.methods.random_route import RandomRouteMethod
from tokenlens.methods.rollout_noise import (
    Cot2Method,
    EmbeddingNoiseMethod,
    LatentGrpoNoiseMethod,
    SoftGrpoNoiseMethod,
)
from tokenlens.methods.s1 import S1Method
from tokenlens.methods.selar import SelarMethod
from tokenlens.methods.soft_thinking import SoftThinkingMethod
from tokenlens.methods.thinking_budget import ThinkingBudgetMethod
from tokenlens.methods.tip import TipMethod
from tokenlens.methods.top1 import Top1Method
from tokenlens.methods.trace import TraceMethod
from tokenlens.methods.truncations import MinPMethod, TopHMethod, TopNSigmaMethod

METHODS: tuple[Method, ...] = (
    EndThinkingMethod("no_thinking"),
    EndThinkingMethod("answer_now"),
    ThinkingBudgetMethod(),
    ScheduleMethod("cyclic_reflex"),
    ScheduleMethod("static_window"),
    TipMethod(),
    NoWaitMethod(),
    # After the biases: whether a token would be sampled depends on them.
    S1Method(),
    AlphaOneMethod(),
    # The entropy is that of the edited logits, and a truncation cuts what the temperature left.
    EdtMethod(),
    HapoMethod(),
    TopHMethod(),
    TopNSigmaMethod(),
    MinPMethod(),
    SoftThinkingMethod(),
    GumbelNoiseMethod(),
    DirichletNoiseMethod(),
    SoftGrpoNoiseMethod(),
    LatentGrpoNoiseMethod(),
    EmbeddingNoiseMethod(),
    # Its draws are from the edited logits: after every method that edits them.
    Cot2Method(),
    HiddenFeedbackMethod(),
    # After all that changes weights, and after Soft Thinking has proposed.
    SelarMethod(),
    GateMethod(),
    # Before top1: a step that chance makes discrete is the engine's to sample.
    RandomRouteMethod(),
    Top1Method(),
    # Last: it asks only for what no other method has asked.
    TraceMethod(),
)
