"""vLLM's first model runner: which of its methods are wrapped, and what happens there.

The runner is left as it is unless its engine names our class: then it has a ``Room`` as an
attribute, and the wrappers act. Everything that decides or records is elsewhere.
"""

from typing import Any

import numpy as np

from tokenlens.serving.hooks import wrap
from tokenlens.vllm.refusals import asked_for
from tokenlens.vllm.room import Room

ROOM = "_tokenlens"


def install(runner_class: type) -> None:
    """Wrap a runner class, once. Subclasses that override ``load_model`` are wrapped as well."""
    wrap(runner_class, "load_model", _load_model)
    wrap(runner_class, "_update_states", _update_states)
    wrap(runner_class, "_prepare_inputs", _prepare_inputs)
    wrap(runner_class, "sample_tokens", _sample_tokens)


def install_subclass(runner_class: type) -> None:
    """Wrap what a subclass (the CPU's runner) overrides."""
    if "load_model" in vars(runner_class):
        wrap(runner_class, "load_model", _load_model)


def room_of(runner: Any) -> Room | None:
    """The runner's room, ``None`` if its engine did not name our class."""
    room = vars(runner).get(ROOM)
    return room if isinstance(room, Room) else None


def _load_model(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(self, *args, **kwargs)
    if asked_for(self.vllm_config) and room_of(self) is None:
        room = Room(self)
        setattr(self, ROOM, room)
        sample = self.sampler.sample

        # After processors, penalties and budgets, before temperature: on the instance, because
        # other engines of this process have samplers of their own.
        def decided(logits: Any, metadata: Any, *args: Any, **kwargs: Any) -> Any:
            sampled, logprobs = sample(room.batch.decide(logits), metadata, *args, **kwargs)
            room.commit(sampled)
            return sampled, logprobs

        self.sampler.sample = decided
    return result


def _update_states(original: Any, self: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
    room = room_of(self)
    if room is not None:
        batch = room.batch
        batch.finish(scheduled.finished_req_ids)
        for req_id in scheduled.preempted_req_ids or ():
            batch.preempt(req_id)
        for data in scheduled.scheduled_new_reqs:
            room.admit(data, data.prompt_token_ids)
        cached = scheduled.scheduled_cached_reqs
        if cached.resumed_req_ids:
            for req_id, generated in zip(cached.req_ids, cached.num_output_tokens):
                if req_id in cached.resumed_req_ids:
                    batch.resume(req_id, generated)
    return original(self, scheduled, *args, **kwargs)


def _prepare_inputs(
    original: Any, self: Any, scheduled: Any, num_scheduled: Any, *args: Any, **kwargs: Any
) -> Any:
    result = original(self, scheduled, num_scheduled, *args, **kwargs)
    room = room_of(self)
    if room is not None:
        rows = self.input_batch.num_reqs
        room.batch.begin(
            self.input_batch.req_ids,
            self.input_batch.num_computed_tokens_cpu[:rows].astype(np.int64),
            num_scheduled.astype(np.int64),
        )
    return result


def _sample_tokens(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    output = original(self, *args, **kwargs)
    room = room_of(self)
    return output if room is None or output is None else room.attach(output)
