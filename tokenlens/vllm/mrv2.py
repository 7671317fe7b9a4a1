"""vLLM's second model runner: which of its methods are wrapped, and what happens there.

The logits are seen through the processor interface, which is official; the rest are wrappers that
do nothing unless the runner has a ``Room``.
"""

from typing import Any

import numpy as np

from tokenlens.serving.hooks import wrap
from tokenlens.vllm.mrv1 import ROOM, room_of
from tokenlens.vllm.refusals import asked_for
from tokenlens.vllm.room import Room


def install(runner_class: type) -> None:
    """Wrap a runner class, once."""
    wrap(runner_class, "load_model", _load_model)
    wrap(runner_class, "finish_requests", _finish_requests)
    wrap(runner_class, "add_requests", _add_requests)
    wrap(runner_class, "prepare_inputs", _prepare_inputs)
    wrap(runner_class, "postprocess_sampled", _postprocess_sampled)
    wrap(runner_class, "sample_tokens", _sample_tokens)


def _load_model(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(self, *args, **kwargs)
    if asked_for(self.vllm_config) and room_of(self) is None:
        room = Room(self)
        setattr(self, ROOM, room)
        for processor in self.sampler.logits_processors:
            if getattr(processor, "is_tokenlens", False):
                processor.room = room
    return result


def _finish_requests(original: Any, self: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
    room = room_of(self)
    if room is not None:
        room.batch.finish(scheduled.finished_req_ids)
        for req_id in scheduled.preempted_req_ids or ():
            room.batch.preempt(req_id)
    return original(self, scheduled, *args, **kwargs)


def _add_requests(original: Any, self: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
    room = room_of(self)
    if room is not None:
        for data in scheduled.scheduled_new_reqs:
            live = room.batch.live.get(data.req_id)
            if live is not None and live.preempted:
                # This runner sees a request that comes back as a new one, with its output as
                # a part of what it prefills.
                room.batch.resume(data.req_id, len(data.prefill_token_ids) - live.prompt_len)
            else:
                room.admit(data, data.prompt_token_ids)
    return original(self, scheduled, *args, **kwargs)


def _prepare_inputs(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    inputs = original(self, *args, **kwargs)
    room = room_of(self)
    if room is not None:
        room.batch.begin(
            inputs.req_ids,
            inputs.num_computed_tokens_np.astype(np.int64),
            inputs.num_scheduled_tokens.astype(np.int64),
        )
    return inputs


def _postprocess_sampled(
    original: Any, self: Any, idx_mapping: Any, sampled: Any, *args: Any, **kwargs: Any
) -> Any:
    room = room_of(self)
    if room is not None:
        room.commit(sampled[:, 0])
    return original(self, idx_mapping, sampled, *args, **kwargs)


def _sample_tokens(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    output = original(self, *args, **kwargs)
    room = room_of(self)
    return output if room is None or output is None else room.attach(output)
