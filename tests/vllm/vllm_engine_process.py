"""Runs engines in a process of their own: jobs in as JSON, what they gave out as JSON.

One process drives several engines, one after the other; which model runner they have, and whether
Triton is interpreted, is decided by the environment before anything is imported.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
sys.path.append(str(Path(__file__).parents[1] / "support"))

import torch
from said import Said
from vllm_switches import Switches

ENGINE = {
    "enforce_eager": True,
    "dtype": "float32",
    "kv_cache_memory_bytes": 8 << 20,
    "max_model_len": 256,
    "max_num_seqs": 16,
    "disable_log_stats": True,
}
NAMED = ["tokenlens.vllm:TokenLens"]


def runtime_of(llm):
    """The runner's runtime in this process, None without tokenlens or with workers elsewhere."""
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    if not hasattr(executor, "driver_worker"):
        return None, executor
    worker = executor.driver_worker.worker
    return vars(worker.model_runner).get("_tokenlens"), worker.model_runner


def sampling(request):
    """Sampling parameters of one request."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from tokenlens.vllm import extra_args

    values = dict(request.get("sampling", {}))
    if "logit_bias" in values:  # JSON's keys are texts
        values["logit_bias"] = {int(k): v for k, v in values["logit_bias"].items()}
    if "regex" in values:
        from vllm.sampling_params import StructuredOutputsParams

        values["structured_outputs"] = StructuredOutputsParams(regex=values.pop("regex"))
    if request.get("spec") is not None:
        values["extra_args"] = extra_args(request["spec"])
    # As `LLM.generate` does: all samples of a prompt come together, at the end.
    whole = {"temperature": 0.0, "detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
    return SamplingParams(**{**whole, **values})


def prompt_of(request, before):
    """Token ids of a prompt; it may be all that an earlier request read and wrote."""
    if "continues" not in request:
        return request["prompt"]
    earlier = before[request["continues"]]
    return [*earlier["prompt"], *earlier["ids"]]


def adapter_of(request):
    """The adapter that a request names, as an argument."""
    if not request.get("adapter"):
        return {}
    from vllm.lora.request import LoRARequest

    name, path = request["adapter"]
    return {"lora_request": LoRARequest(name, 1 + len(name), path)}


def drive(llm, run, before):
    """Add requests when it is their turn, and step until all are done."""
    from vllm.exceptions import VLLMError

    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    if run.get("empty_cache"):
        llm.reset_prefix_cache()
    if run.get("most_markers"):
        vars(llm.llm_engine.input_processor)["_tokenlens"].bind.max_markers = run["most_markers"]
    waiting = sorted(run["requests"], key=lambda request: request.get("arrive", 0))
    prompts, done, errors, step, most_pages = {}, {}, {}, 0, 0
    runtime, _ = runtime_of(llm)
    SWITCHES.preemptions, SWITCHES.preempted, SWITCHES.drafts = 0, [], [0, 0]
    SWITCHES.runtime = runtime
    while waiting or engine.has_unfinished_requests():
        while waiting and waiting[0].get("arrive", 0) <= step:
            request = waiting.pop(0)
            name = request["name"]
            prompts[name] = prompt_of(request, before)
            try:
                prompt = {"prompt_token_ids": prompts[name]}
                with SWITCHES.stranger(request.get("stranger")):
                    engine.add_request(name, prompt, sampling(request), **adapter_of(request))
            except (ValueError, VLLMError) as error:
                errors[name] = str(error)
        for name in run.get("abort", {}).get(str(step), ()):
            engine.abort_request([name])
        every = run.get("reset_every")
        if every and step % every == every - 1:
            scheduler.reset_prefix_cache(reset_running_requests=True)
        if engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    name = output.request_id
                    done[name] = {"prompt": prompts[name], **result(output)}
        if runtime is not None:
            most_pages = max(most_pages, runtime.batch.store.pages_in_use)
        step += 1
    before.update(done)
    facts = {"steps": step, "preemptions": SWITCHES.preemptions, "errors": errors, **SAID.take()}
    facts |= {"preempted": SWITCHES.preempted, "drafts": SWITCHES.drafts}
    if runtime is not None:
        facts |= {"most_pages": most_pages, "num_pages": runtime.batch.store.num_pages}
    return {"outputs": done, **facts}


def result(output):
    """One finished request as plain data."""
    from tokenlens.vllm import trace

    found = []
    for one in output.outputs:
        seen = trace(one)
        found.append(
            {
                "ids": list(one.token_ids),
                "finish_reason": one.finish_reason,
                "stop_reason": one.stop_reason,
                "logprobs": [
                    {str(token): value.logprob for token, value in place.items()}
                    for place in one.logprobs or ()
                ],
                "trace": None if seen is None else seen.model_dump(mode="json"),
            }
        )
    return {**found[0], "samples": found, "cached": output.num_cached_tokens}


def repeated(before):
    """A run that asks again for every sample, alone, with the spec that its trace has."""
    return {
        "requests": [
            {
                "name": f"{name}/{place}",
                "prompt": one["prompt"],
                "spec": sample["trace"]["spec"],
                "sampling": {"max_tokens": len(sample["ids"])},
            }
            for name, one in before.items()
            for place, sample in enumerate(one["samples"])
            if sample["trace"]["sample"] == 0
        ]
    }


def leaks(llm):
    """Slots and pages that are still taken once the engine has heard of every end."""
    from vllm import SamplingParams

    # The worker hears of an end with the next step.
    llm.generate({"prompt_token_ids": [1, 2, 3]}, SamplingParams(max_tokens=1, detokenize=False))
    runtime, _ = runtime_of(llm)
    if runtime is None:
        return None
    batch = runtime.batch
    return {"slots": batch.slots_in_use, "pages": batch.store.pages_in_use, "live": len(batch.live)}


def main(jobs_file, out_file):
    """Run all jobs; a job that raises is a result too."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    results = []
    for job in json.loads(Path(jobs_file).read_text()):
        torch.manual_seed(0)
        kwargs = {**ENGINE, **job.get("engine", {})}
        if "reasoning" in kwargs:
            from vllm.config import ReasoningConfig

            kwargs["reasoning_config"] = ReasoningConfig(**kwargs.pop("reasoning"))
        if job.get("tokenlens", True):
            kwargs["logits_processors"] = NAMED
            if job.get("by_class"):
                from tokenlens.vllm import TokenLens

                kwargs["logits_processors"] = [TokenLens]
        SWITCHES.set(job.get("switches", {}))
        llm, before = None, {}
        try:
            llm = LLM(job["model"], **kwargs)
            _, runner = runtime_of(llm)
            found = {
                "runs": [drive(llm, run, before) for run in job["runs"]],
                "again": [drive(llm, repeated(before), {})] if job.get("again") else [],
                "runner": type(runner).__module__,
                "async": bool(llm.llm_engine.vllm_config.scheduler_config.async_scheduling),
                "leaks": leaks(llm),
            }
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        results.append(found)
        # After each job, so that a process that dies leaves what it had.
        Path(out_file).write_text(json.dumps(results))
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


if __name__ == "__main__":
    SWITCHES, SAID = Switches(), Said("vllm")
    main(*sys.argv[1:])
