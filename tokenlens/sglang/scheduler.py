"""What happens in the wrapped functions of the scheduler's process.

A runner whose engine runs with tokenlens has a :class:`RequestFollower` as an attribute; without
one, every wrapper is a look at that attribute. Which functions are wrapped is in
:mod:`tokenlens.sglang.wrapped`.
"""

from typing import Any

from tokenlens.sglang import switch
from tokenlens.sglang.hooks import HANDSHAKE
from tokenlens.sglang.output import GUARD, LATENT
from tokenlens.sglang.runtime import RequestFollower

FOLLOWER = "_tokenlens"
"""Attribute of runners whose engine runs with tokenlens: their :class:`RequestFollower`."""


def follower_of(runner: Any) -> RequestFollower | None:
    """What follows the runner's requests, ``None`` if its engine runs without tokenlens."""
    found = vars(runner).get(FOLLOWER)
    return found if isinstance(found, RequestFollower) else None


def alloc_memory_pool(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(self, *args, **kwargs)
    settings = switch.settings()
    if settings is None or follower_of(self) is not None:
        return result
    from sglang.srt.arg_groups.overrides import resolving_view

    follower = RequestFollower(self, resolving_view(self.server_args), settings)
    setattr(self, FOLLOWER, follower)
    sampler = self.sampler
    preprocess = sampler._preprocess_logits
    compute = sampler.output_logprob_processor.compute_logprobs

    # On the instances: after grammars, penalties and processors, before the temperature.
    def decided(logits: Any, sampling: Any) -> Any:
        return follower.decide(preprocess(logits, sampling), sampling)

    def computed(logprobs: Any, *rest: Any, **named: Any) -> Any:
        from sglang.srt.layers import sampler as module

        original_ones = bool(module.SGLANG_RETURN_ORIGINAL_LOGPROB)
        return compute(follower.logprobs(logprobs, original_ones), *rest, **named)

    sampler._preprocess_logits = decided
    sampler.output_logprob_processor.compute_logprobs = computed
    return result


def get_init_info(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    info = original(self, *args, **kwargs)
    if follower_of(self.tp_worker.model_runner) is not None:
        # The front end waits for it: SGLang starts a scheduler whose plugin could not be loaded.
        info[HANDSHAKE] = True
    return info


def init_new(
    original: Any, cls: Any, batch: Any, model_runner: Any, *args: Any, **kwargs: Any
) -> Any:
    follower = follower_of(model_runner)
    if follower is not None and batch.reqs:
        follower.begin(batch)
    return original(cls, batch, model_runner, *args, **kwargs)


def sample(original: Any, self: Any, logits_output: Any, *args: Any, **kwargs: Any) -> Any:
    sampled = original(self, logits_output, *args, **kwargs)
    follower = follower_of(self)
    if follower is not None:
        output = follower.commit(sampled)
        if output is not None:
            from sglang.srt.managers.auxiliary_output import append_auxiliary_output

            logits_output.auxiliary_device_output = append_auxiliary_output(
                logits_output.auxiliary_device_output, output
            )
    return sampled


def on_idle(original: Any, self: Any) -> Any:
    follower = follower_of(self.tp_worker.model_runner)
    if follower is not None:
        follower.rest()
    return original(self)


def update_finish_state(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(self, *args, **kwargs)
    # One that finishes with its first token is released before its step's output is consumed.
    if getattr(self, LATENT, False) and self.finished():
        setattr(self, GUARD, True)
    return result


def compute_max_prefix_len(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    most = original(self, *args, **kwargs)
    if getattr(self, LATENT, False):
        # A retracted request must not find the KV of its visible tokens, which another may have
        # written: it was fed mixtures in their place.
        return min(most, len(self.origin_input_ids))
    return most
