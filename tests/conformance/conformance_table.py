"""One table of scenarios that every engine is driven through; Hugging Face is the reference.

A scenario is a request: a prompt, a spec or none, how the answer is sampled. Every engine has to
give the reference's ids for all that are greedy, in one batch, whatever else is in it.

A new method adds a line to ``METHODS``, or to ``WORD_METHODS`` if it needs a tokenizer's words; an
engine that cannot host a method says so in ``REFUSED``.
"""

from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

START, END, EOS = 6, 7, 5
"""Token ids that stand for the think markers and the end of text in random models."""

MARKERS = {"think_start": (START,), "think_end": (END,)}


@dataclass(frozen=True)
class Scenario:
    """One request of the table."""

    name: str
    prompt: tuple[int, ...]
    methods: tuple[dict[str, Any], ...] | None
    tokens: int = 48
    seed: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)
    arrive: int = 0

    @property
    def greedy(self) -> bool:
        """Whether its ids can be compared with the reference's."""
        return not self.sampling.get("temperature")

    def spec(self, markers: dict[str, Any], trace: str = "summary") -> dict[str, Any] | None:
        """The spec as plain data, None for a request that asks for nothing."""
        if self.methods is None:
            return None
        return {
            "methods": [dict(method) for method in self.methods],
            "seed": self.seed,
            "phase": {key: list(value) for key, value in markers.items()},
            "trace": {"level": trace},
        }


def soft(**settings: Any) -> dict[str, Any]:
    """A soft_thinking config."""
    return {"method": "soft_thinking", **settings}


LAST = {"selar": 18, "soft-forking-quantile": 11, "soft-hapo": 15, "soft-tokens-full": 60}
"""Last tokens of prompts with which a row's ids do not hang on rounding, where others' do."""

QUESTION = {
    "soft-hapo": 1,
    "latent-sft": 1,
    "soft-forking": 0,
    "soft-forking-quantile": 1,
    "tripwire": 2,
    "pulse-gate": 0,
    "soft-no-echo": 1,
    "coconut": 2,
    "coconut-placeholder": 0,
    "latent-mas": 1,
    "lead-full": 2,
    "soft-tokens": 0,
    "soft-tokens-full": 1,
    "swi-reasoning-full": 1,
    "latent-fusion": 1,
    "budget-guidance": 2,
    "steered-budget": 0,
}
"""The same for the reasoner: which question is asked."""


def thinking_prompt(name: str) -> tuple[int, ...]:
    """A prompt of its own that has opened the thinking."""
    return (1, START, LAST.get(name, 10 + crc32(name.encode()) % 80))


TREND = {"of": "raw", "trend": True, "first": "latent", "dwell_discrete": 2}

VECTORS: dict[str, tuple[dict[str, Any], ...]] = {
    "coconut": ({"method": "coconut", "steps": 5},),
    "coconut-placeholder": ({"method": "coconut", "steps": 6, "placeholder": 9},),
    "latent-mas": ({"method": "latent_mas", "steps": 6},),
    "lead-full": ({"method": "lead", "gate": TREND, "mixture": "full"},),
    "soft-tokens": ({"method": "soft_tokens"},),
    "soft-tokens-full": ({"method": "soft_tokens", "profile": "published"},),
    "latent-fusion": ({"method": "latent_fusion", "alpha": 0.25},),
}
"""Rows that are fed more than concept tokens: hidden states, the whole vocabulary, noise."""

LATER = (
    *("soft-forking", "soft-forking-quantile", "tripwire", "pulse-gate", "soft-no-echo"),
    *("swi-reasoning-full", *VECTORS),
    *("budget-guidance", "steered-budget"),
)
"""Rows that came later: the others' questions go round without them."""

METHODS: dict[str, tuple[dict[str, Any], ...]] = {
    "think-router-gumbel": (
        {"method": "think_router", "gate": {"signal": "max_probability", "enter": 0.1}},
        {"method": "gumbel_noise"},
    ),
    "gumbel-cold": (
        soft(cold_stop={"entropy_threshold": 4.0, "patience": 7}),
        {"method": "gumbel_noise", "temperature": 0.7},
    ),
    "soft-edt": (soft(), {"method": "edt"}),
    "soft-forking": (soft(), {"method": "forking_temperature", "threshold": 0.4}),
    "soft-forking-quantile": (
        soft(),
        {"method": "forking_temperature", "quantile": 0.7, "window": 12, "high": 1.5, "low": 0.8},
    ),
    "soft-hapo": (
        soft(),
        {
            "method": "hapo",
            "median": -1.0,
            "std": 1.0,
            "scale_pos": 1.0,
            "scale_neg": -1.0,
            "strength": 0.3,
        },
    ),
    "soft-min-p-edit": (soft(), {"method": "min_p", "min_p": 0.2}),
    "soft-top-n-sigma": (soft(), {"method": "top_n_sigma"}),
    "soft-top-h": (soft(), {"method": "top_h"}),
    "thinking-budget": (soft(), {"method": "thinking_budget", "budget": 9}),
    "think-router": ({"method": "think_router"},),
    "lead": ({"method": "lead", "gate": TREND},),
    "selar": ({"method": "selar"},),
    "soft-grpo-noise": (soft(), {"method": "soft_grpo_noise"}),
    "latent-sft": ({"method": "latent_grpo"},),
    "cot2": ({"method": "cot2"},),
    **VECTORS,
    "tripwire": (
        {"method": "tripwire", "entropy": 0.5, "temperature": 0.6, "top_p": 0.95, "skip": 9},
    ),
}
"""Specs by name, the methods only: each becomes a row of the random models and of the reasoner.

Where rounding alone changes the ids of a row (the reference finds out, see ``references``), a line
in ``LAST`` or ``QUESTION`` gives it another prompt.
"""

WORD_METHODS: dict[str, tuple[dict[str, Any], ...]] = {
    "cyclic-reflex": (
        {"method": "cyclic_reflex", "amplitude": 20.0, "period": 40.0, "words": ["wait"]},
    ),
    "tip": ({"method": "tip", "words": ["wait"], "penalty": 20.0},),
    "nowait": ({"method": "nowait", "words": ["wait"]},),
    "swi-reasoning": ({"method": "swi_reasoning"},),
    "s1": ({"method": "s1", "text": "wait", "max_thinking": 40},),
    "alpha-one": ({"method": "alpha_one", "average_thinking": 12, "text": "wait"},),
    "soft-static-window": (
        soft(),
        {"method": "static_window", "amplitude": 15.0, "words": ["wait"], "windows": [[4, 9]]},
    ),
    "lead-cyclic-reflex": (
        {"method": "lead", "gate": TREND},
        {"method": "cyclic_reflex", "amplitude": 20.0, "period": 40.0, "words": ["wait"]},
    ),
    "latent-grpo": ({"method": "latent_grpo", "noise": "one_sided"},),
    "swi-reasoning-full": ({"method": "swi_reasoning", "mixture": "full"},),
}
"""The same for the reasoner only: methods that need words, and what has another row above."""

OUTSIDE: dict[str, tuple[dict[str, Any], ...]] = {
    "pulse-gate": ({"method": "pulse_gate", "latent": 4, "discrete": 2, "temperature": 1.0},),
    "soft-no-echo": (soft(), {"method": "no_echo", "penalty": 4.0}),
}
"""The same with the methods of `examples/my_method`, which every engine of the tests lets in."""

SHIFTED: dict[str, tuple[dict[str, Any], ...]] = {
    "east": ({"method": "east", "file": "east", "where": "all"},),
    "east-back": ({"method": "east", "file": "east-last", "beta": -1.0},),
    "soft-east": (soft(), {"method": "east", "file": "east"}),
}
"""The same with vectors that are added behind a decoder layer, of files of ``vector_files``."""

PROBED: dict[str, tuple[dict[str, Any], ...]] = {
    "diffadapt": ({"method": "diffadapt", "file": "probe", "budget": 20},),
    "diffadapt-other": ({"method": "diffadapt", "file": "probe", "budget": 20},),
}
"""The same with a look at the last hidden state behind the prompt."""

READ: dict[str, tuple[dict[str, Any], ...]] = {
    "budget-guidance": ({"method": "budget_guidance", "file": "predictor", "budget": 20},),
    # What is read is what a layer leaves with the vector.
    "steered-budget": (
        {"method": "east", "file": "east", "beta": 0.3},
        {"method": "budget_guidance", "file": "predictor", "budget": 12},
    ),
}
"""The same with the hidden states of all layers, of the reasoner, which has ends of lines."""

COMPARED = frozenset({*VECTORS, *SHIFTED})
"""Rows whose log-probabilities are compared as well: ids may hide what is fed, or added."""

REASONER: dict[str, tuple[dict[str, Any], ...] | None] = {
    "soft": (soft(),),
    "cold": (soft(cold_stop={"entropy_threshold": 0.2, "patience": 12}),),
    "gumbel": (soft(), {"method": "gumbel_noise"}),
    "none": ({"method": "no_thinking"},),
    "plain": None,
}
"""What the reasoner is asked with every question."""

REFUSED: dict[str, frozenset[str]] = {
    "vllm": frozenset({"softcotpp"}),
    "sglang": frozenset({"softcotpp"}),
}
"""Methods that an engine refuses; its own tests show the refusal."""


LONG = tuple(11 + (7 * i) % 80 for i in range(70))

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("soft", (1, START, 11, 12, 13, 14, 15, 16), (soft(),)),
    Scenario("soft-narrow", (1, 21, START), (soft(top_k=5, max_entries=3, temperature=1.0),)),
    Scenario("soft-min-p", (1, 31, 32, START, 33), (soft(min_p=0.05, top_p=0.8),), arrive=1),
    Scenario("soft-wide", (1, 41, START), (soft(top_k=0, top_p=1.0, max_entries=64),), arrive=2),
    Scenario(
        "cold-stop",
        (1, START, 51),
        (soft(cold_stop={"entropy_threshold": 4.0, "patience": 6}),),
        arrive=2,
    ),
    Scenario("opens-later", (1, 22, 23, 24), (soft(),), arrive=3),
    Scenario("gumbel", (1, START, 17, 18), (soft(), {"method": "gumbel_noise"}), seed=5, arrive=3),
    Scenario(
        "dirichlet", (1, START, 19), (soft(), {"method": "dirichlet_noise"}), seed=6, arrive=4
    ),
    Scenario("top1", (1, START, 61, 62), (soft(), {"method": "top1"}), arrive=5),
    Scenario(
        "random-route", (1, START, 63), (soft(), {"method": "random_route"}), seed=7, arrive=5
    ),
    Scenario("no-thinking", (1, START, 64), ({"method": "no_thinking"},), arrive=6),
    Scenario("answer-now", (1, START, 65), ({"method": "answer_now", "after": 9},), arrive=6),
    Scenario(
        "published",
        (1, 66, 67),
        (soft(profile="published", cold_stop={"entropy_threshold": 4.0, "patience": 9}),),
        arrive=7,
    ),
    Scenario("soft-long-prompt", (*LONG, START, 77), (soft(),), arrive=8),
    Scenario("plain", (1, START, 11, 12, 13, 14, 15, 16), None),
    Scenario("plain-long", (*LONG, 69), None, arrive=4),
    Scenario("plain-sampled", (1, 71, 72), None, sampling={"temperature": 0.8}, arrive=2),
    Scenario(
        "soft-sampled-answer",
        (1, START, 73),
        (soft(cold_stop={"entropy_threshold": 4.0, "patience": 5}),),
        sampling={"temperature": 0.7, "top_p": 0.9},
        arrive=9,
    ),
    Scenario(
        "latent-grpo",
        thinking_prompt("latent-grpo"),
        ({"method": "latent_grpo", "noise": "one_sided"},),
        seed=8,
        arrive=7,
    ),
    Scenario(
        "soft-penalty", (1, START, 78), (soft(),), sampling={"repetition_penalty": 1.3}, arrive=3
    ),
    *(
        Scenario(name, thinking_prompt(name), methods, seed=index, arrive=index % 10)
        for index, (name, methods) in enumerate(METHODS.items())
    ),
)


EVERY: tuple[Scenario, ...] = (
    *SCENARIOS,
    *(
        Scenario(name, thinking_prompt(name), methods, arrive=index)
        for index, (name, methods) in enumerate(
            [*OUTSIDE.items(), *SHIFTED.items(), *PROBED.items()]
        )
    ),
)
"""With those of methods from outside, and those that read a file."""


def hosted(engine: str, scenarios: tuple[Scenario, ...] = EVERY) -> tuple[Scenario, ...]:
    """The rows that an engine has to carry out."""
    return tuple(
        one
        for one in scenarios
        if REFUSED[engine].isdisjoint(method["method"] for method in one.methods or ())
    )
