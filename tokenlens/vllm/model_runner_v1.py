"""What happens in the wrapped functions of vLLM's first model runner.

The runner is left as it is unless its engine names our class: then it has a runtime as an
attribute, and the wrappers act. Which functions are wrapped is in :mod:`tokenlens.vllm.wrapped`.
"""

from typing import Any

import numpy as np

from tokenlens.vllm.runtime import make_runtime, runtime_of


def load_model(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Make the runtime, and wrap the runner's own sampler."""
    result = original(self, *args, **kwargs)
    runtime = make_runtime(self)
    if runtime is not None:
        sample = self.sampler.sample

        # After processors, penalties and budgets, before temperature: on the instance, because
        # other engines of this process have samplers of their own.
        def decided(logits: Any, metadata: Any, *args: Any, **kwargs: Any) -> Any:
            sampled, logprobs = sample(
                runtime.batch.decide(logits, in_place=True), metadata, *args, **kwargs
            )
            runtime.commit(sampled)
            return sampled, logprobs

        self.sampler.sample = decided
    return result


def update_states(
    original: Any, self: Any, scheduler_output: Any, *args: Any, **kwargs: Any
) -> Any:
    """Follow requests: finished, preempted, new, resumed."""
    runtime = runtime_of(self)
    if runtime is not None:
        batch = runtime.batch
        batch.finish(scheduler_output.finished_req_ids)
        for req_id in scheduler_output.preempted_req_ids or ():
            batch.preempt(req_id)
        for data in scheduler_output.scheduled_new_reqs:
            runtime.admit(data)
        cached = scheduler_output.scheduled_cached_reqs
        if cached.resumed_req_ids:
            for req_id, generated in zip(cached.req_ids, cached.num_output_tokens):
                if req_id in cached.resumed_req_ids:
                    batch.resume(req_id, generated)
    return original(self, scheduler_output, *args, **kwargs)


def prepare_inputs(
    original: Any,
    self: Any,
    scheduler_output: Any,
    num_scheduled_tokens: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Say which rows the forward pass has."""
    result = original(self, scheduler_output, num_scheduled_tokens, *args, **kwargs)
    runtime = runtime_of(self)
    if runtime is not None:
        rows = self.input_batch.num_reqs
        runtime.batch.begin(
            self.input_batch.req_ids,
            self.input_batch.num_computed_tokens_cpu[:rows].astype(np.int64),
            num_scheduled_tokens.astype(np.int64),
        )
    return result


def sample_tokens(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Put the step's report on the output."""
    output = original(self, *args, **kwargs)
    runtime = runtime_of(self)
    return output if runtime is None or output is None else runtime.attach(output)
