"""Who writes a step: one class a policy. Knows no backend, no budget, no text before the step."""

import math
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Protocol

from tokenlens.routing.settings import (
    AlwaysLarge,
    AlwaysSmall,
    GlimpRouter,
    PolicyConfig,
    RandomShare,
    Role,
    SpecReason,
    SpeculativeThinking,
)
from tokenlens.routing.signals import FirstTokenSignals, RunningQuantile, score_of
from tokenlens.routing.step import RoutedStep


class Policy(Protocol):
    """Writes the steps of one request."""

    async def write(self, step: RoutedStep) -> None:
        """Write one step, or as much of it as there is room for."""


class Alone:
    """One model writes everything."""

    def __init__(self, role: Role) -> None:
        self._role = role

    async def write(self, step: RoutedStep) -> None:
        """Write one step."""
        await step.write(self._role)


class Glimpse:
    """GlimpRouter: the entropy of the step's first token (arXiv 2601.05110)."""

    def __init__(self, config: GlimpRouter, quantile: RunningQuantile | None) -> None:
        self._config = config
        self._quantile = quantile

    async def write(self, step: RoutedStep) -> None:
        """Probe with the small model, then write with whom the probe says."""
        config = self._config
        probe = await step.draft("small", max_tokens=1, signals=True, greedy=config.probe_greedy)
        name, value = signal_of(config, probe.signals)
        step.notes.signal, step.notes.signal_name = value, name
        if self._is_large(step, value):
            step.discard(probe, probe=True)
            await step.write("large")
        elif config.probe == "discard":
            step.discard(probe, probe=True)
            await step.write("small")
        else:
            # The probe may itself be the end; then there is nothing left to write.
            step.take(probe)
            await step.write("small")

    def _is_large(self, step: RoutedStep, value: float) -> bool:
        config = self._config
        if math.isnan(value):
            return config.on_nan == "large"
        if self._quantile is not None:
            is_large = self._quantile.is_above(value)
            step.notes.threshold = self._quantile.threshold
            return is_large
        step.notes.threshold = config.threshold
        return value >= config.threshold if config.comparison == ">=" else value > config.threshold


def signal_of(config: GlimpRouter, signals: FirstTokenSignals | None) -> tuple[str, float]:
    """The signal that a GlimpRouter config asks for: its name and its value (NaN: none came)."""
    if signals is None or not signals.top:
        return config.signal, math.nan
    if config.signal == "max_probability":
        return "1 - max_probability", 1 - signals.max_probability()
    if config.signal == "concept_entropy":
        return "concept_entropy", signals.concept_entropy()
    if config.entropy_of == "topk" or signals.entropy is None:
        return "topk_entropy", signals.topk_entropy(published=config.profile == "published")
    return "raw_entropy", signals.entropy


class DraftAndScore:
    """SpecReason: the small model drafts, the large one scores (arXiv 2504.07891)."""

    def __init__(self, config: SpecReason) -> None:
        self._config = config

    async def write(self, step: RoutedStep) -> None:
        """Keep the draft if it is good enough, or have the large model write the step."""
        draft = await step.draft("small")
        score = await self._score(step, draft) if draft.tokens else 0.0
        step.notes.score, step.notes.threshold = score, self._config.threshold
        if score >= self._config.threshold:
            step.take(draft)
        else:
            step.discard(draft)
            await step.write("large")

    async def _score(self, step: RoutedStep, draft: Any) -> float:
        config = self._config
        if config.score == "likelihood":
            values = await step.log_probs("large", draft)
            return 9 * math.exp(sum(values) / len(values)) if values else 0.0
        top = await step.ask("large", draft, config.question, config.answer_prefix)
        return score_of(top, reading=config.reading, strip=config.profile != "published")


class Cues:
    """Speculative Thinking: cues in a look-ahead (arXiv 2504.12329)."""

    def __init__(self, config: SpeculativeThinking) -> None:
        self._config = config
        self._negatives = 0
        self._next_recap = config.recap_after
        self._recap_tokens = config.recap_tokens

    async def write(self, step: RoutedStep) -> None:
        """Look ahead, have the large model take over at a cue, and let the small one go on."""
        config = self._config
        ahead = await step.draft("small", max_tokens=config.look_ahead)
        text = step.text_of(ahead)
        cue = sentiment(text, config)
        if cue == 0:
            step.take(ahead)
            await step.write("small")
            return
        step.notes.cue = "negative" if cue < 0 else "positive"
        verifies = any(word in text.casefold() for word in config.verify)
        taken = await step.draft(
            "large", max_tokens=config.verify_tokens if verifies else config.large_tokens
        )
        if config.choose_large or sentiment(step.text_of(taken), config) != cue:
            step.discard(ahead)
            step.take(taken)
        else:
            step.discard(taken)
            step.take(ahead)
        self._negatives += cue < 0
        if config.recap_after and self._negatives >= self._next_recap and not step.is_over:
            step.notes.cue = "recap"
            step.insert(config.recap_text)
            await step.write("large", max_tokens=self._recap_tokens)
            self._negatives = 0
            self._next_recap = min(self._next_recap + 5, max(30, config.recap_after))
            self._recap_tokens = min(self._recap_tokens + 25, max(200, config.recap_tokens))
        await step.write("small")


def sentiment(text: str, config: SpeculativeThinking) -> int:
    """1 for affirmative, -1 for reflective, 0 for neither; a tie of both is reflective.

    Substrings, case folded; words to verify count as reflective.
    """
    folded = text.casefold()
    negative = sum(folded.count(word) for word in (*config.negative, *config.verify))
    positive = sum(folded.count(word) for word in config.positive)
    if positive > negative:
        return 1
    return -1 if negative else 0


class Chance:
    """Control: a share of the steps by chance, the same for the same seed."""

    def __init__(self, config: RandomShare) -> None:
        self._share = config.share

    async def write(self, step: RoutedStep) -> None:
        """Write the step with whom the draw says."""
        await step.write("large" if draw(step.seed, step.index) < self._share else "small")


def draw(seed: int, index: int) -> float:
    """A number in [0, 1) out of a request's seed and a step's index."""
    digest = blake2b(f"route:{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / (1 << 64)


def policies(config: PolicyConfig) -> Callable[[], Policy]:
    """What makes the policy of each request; they share what a running quantile has seen."""
    if isinstance(config, AlwaysSmall | AlwaysLarge) or config.only is not None:
        only = config.only
        assert only is not None
        return lambda: Alone(only)
    if isinstance(config, GlimpRouter):
        share = config.target_share
        quantile = None if share is None else RunningQuantile(share, config.window)
        return lambda: Glimpse(config, quantile)
    if isinstance(config, SpecReason):
        return lambda: DraftAndScore(config)
    if isinstance(config, SpeculativeThinking):
        return lambda: Cues(config)
    return lambda: Chance(config)
