"""What happens in the wrapped functions of vLLM's second model runner.

The logits are seen through the processor interface, which is official; the rest are wrappers that
do nothing unless the runner has a runtime. Which functions are wrapped is in
:mod:`tokenlens.vllm.wrapped`.
"""

from typing import Any

import numpy as np

from tokenlens.vllm.runtime import make_runtime, runtime_of


def load_model(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Make the runtime, and hand it to our logits processor."""
    result = original(self, *args, **kwargs)
    runtime = make_runtime(self)
    if runtime is not None:
        for processor in self.sampler.logits_processors:
            if getattr(processor, "is_tokenlens", False):
                processor.runtime = runtime
    return result


def finish_requests(
    original: Any, self: Any, scheduler_output: Any, *args: Any, **kwargs: Any
) -> Any:
    """Follow requests that finished or were preempted."""
    runtime = runtime_of(self)
    if runtime is not None:
        runtime.batch.finish(scheduler_output.finished_req_ids)
        for req_id in scheduler_output.preempted_req_ids or ():
            runtime.batch.preempt(req_id)
    return original(self, scheduler_output, *args, **kwargs)


def add_requests(original: Any, self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
    """Follow new requests, and those that come back."""
    runtime = runtime_of(self)
    if runtime is not None:
        for data in scheduler_output.scheduled_new_reqs:
            live = runtime.batch.live.get(data.req_id)
            if live is not None and live.preempted:
                # This runner sees a request that comes back as a new one, with its output as
                # a part of what it prefills.
                generated = len(data.prefill_token_ids) - live.prompt_len
                runtime.batch.resume(data.req_id, generated)
            else:
                runtime.admit(data)
    return original(self, scheduler_output, *args, **kwargs)


def prepare_inputs(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Say which rows the forward pass has."""
    inputs = original(self, *args, **kwargs)
    runtime = runtime_of(self)
    if runtime is not None:
        if runtime.drafted is not None:
            runtime.drafted.expect(inputs.num_draft_tokens_per_req, inputs.num_reqs)
        runtime.batch.begin(
            inputs.req_ids,
            inputs.num_computed_tokens_np.astype(np.int64),
            inputs.num_scheduled_tokens.astype(np.int64),
        )
    return inputs


def postprocess_sampled(
    original: Any,
    self: Any,
    idx_mapping: Any,
    sampled_tokens: Any,
    num_sampled: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Commit the step's tokens."""
    runtime = runtime_of(self)
    if runtime is not None and runtime.drafted is not None:
        runtime.commit(sampled_tokens, num_sampled)
    elif runtime is not None:
        runtime.commit(sampled_tokens[:, 0])
    return original(self, idx_mapping, sampled_tokens, num_sampled, *args, **kwargs)


def sample_tokens(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Put the step's report on the output."""
    output = original(self, *args, **kwargs)
    runtime = runtime_of(self)
    return output if runtime is None or output is None else runtime.attach(output)
