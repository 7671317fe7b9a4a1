"""The scheduler's process: what is wrapped there, and what happens in the wrappers.

A runner whose engine runs with tokenlens has a ``Room`` as an attribute; without one, every wrapper
is a look at that attribute.
"""

from typing import Any

from tokenlens.sglang import switch
from tokenlens.sglang.hooks import HANDSHAKE, Around
from tokenlens.sglang.output import GUARD
from tokenlens.sglang.room import LATENT, Room

ROOM = "_tokenlens"


def room_of(runner: Any) -> Room | None:
    """The runner's room, ``None`` if its engine runs without tokenlens."""
    room = vars(runner).get(ROOM)
    return room if isinstance(room, Room) else None


def _alloc_memory_pool(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(self, *args, **kwargs)
    settings = switch.settings()
    if settings is None or room_of(self) is not None:
        return result
    from sglang.srt.arg_groups.overrides import resolving_view

    room = Room(self, resolving_view(self.server_args), settings)
    setattr(self, ROOM, room)
    sampler = self.sampler
    preprocess = sampler._preprocess_logits
    compute = sampler.output_logprob_processor.compute_logprobs

    # On the instances: after grammars, penalties and processors, before the temperature.
    def decided(logits: Any, sampling: Any) -> Any:
        return room.decide(preprocess(logits, sampling), sampling)

    def computed(logprobs: Any, *rest: Any, **named: Any) -> Any:
        from sglang.srt.layers import sampler as module

        original_ones = bool(module.SGLANG_RETURN_ORIGINAL_LOGPROB)
        return compute(room.logprobs(logprobs, original_ones), *rest, **named)

    sampler._preprocess_logits = decided
    sampler.output_logprob_processor.compute_logprobs = computed
    return result


def _get_init_info(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    info = original(self, *args, **kwargs)
    if room_of(self.tp_worker.model_runner) is not None:
        # The front end waits for it: SGLang starts a scheduler whose plugin could not be loaded.
        info[HANDSHAKE] = True
    return info


def _init_new(original: Any, cls: Any, batch: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    room = room_of(runner)
    if room is not None and batch.reqs:
        room.begin(batch)
    return original(cls, batch, runner, *args, **kwargs)


def _sample(original: Any, self: Any, logits_output: Any, *args: Any, **kwargs: Any) -> Any:
    sampled = original(self, logits_output, *args, **kwargs)
    room = room_of(self)
    if room is not None:
        output = room.commit(sampled)
        if output is not None:
            from sglang.srt.managers.auxiliary_output import append_auxiliary_output

            logits_output.auxiliary_device_output = append_auxiliary_output(
                logits_output.auxiliary_device_output, output
            )
    return sampled


def _on_idle(original: Any, self: Any) -> Any:
    room = room_of(self.tp_worker.model_runner)
    if room is not None:
        room.rest()
    return original(self)


def _update_finish_state(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(self, *args, **kwargs)
    # One that finishes with its first token is released before its step's output is consumed.
    if getattr(self, LATENT, False) and self.finished():
        setattr(self, GUARD, True)
    return result


def _compute_max_prefix_len(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    most = original(self, *args, **kwargs)
    if getattr(self, LATENT, False):
        # A retracted request must not find the KV of its visible tokens, which another may have
        # written: it was fed mixtures in their place.
        return min(most, len(self.origin_input_ids))
    return most


TARGETS: dict[str, dict[str, Around]] = {
    "sglang.srt.model_executor.model_runner": {
        "ModelRunner.alloc_memory_pool": _alloc_memory_pool,
        "ModelRunner.sample": _sample,
    },
    "sglang.srt.model_executor.forward_batch_info": {"ForwardBatch.init_new": _init_new},
    "sglang.srt.managers.scheduler": {
        "Scheduler.get_init_info": _get_init_info,
        "Scheduler.on_idle": _on_idle,
    },
    "sglang.srt.managers.schedule_batch": {
        "Req.update_finish_state": _update_finish_state,
        "Req._compute_max_prefix_len": _compute_max_prefix_len,
    },
}
"""What is wrapped."""

NEEDED = {
    "sglang.srt.layers.sampler": ("Sampler._preprocess_logits", "SGLANG_RETURN_ORIGINAL_LOGPROB"),
    "sglang.srt.layers.logprob_processor": ("OutputLogprobProcessor.compute_logprobs",),
    "sglang.srt.layers.vocab_parallel_embedding": ("VocabParallelEmbedding._embed_local_shard",),
    "sglang.srt.managers.auxiliary_output": ("append_auxiliary_output",),
    "sglang.srt.arg_groups.overrides": ("resolving_view",),
}
"""What is wrapped on instances, or called."""
