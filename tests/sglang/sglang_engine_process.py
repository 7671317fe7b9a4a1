"""Runs engines in a process of their own: jobs in as JSON, what they gave out as JSON."""

import asyncio
import faulthandler
import gc
import json
import os
import sys
import traceback
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))

ENGINE = {
    "device": "cpu",
    "dtype": "float32",
    "attention_backend": "torch_native",
    "disable_cuda_graph": True,
    "mem_fraction_static": 0.2,
    "max_total_tokens": 4096,
    "max_running_requests": 8,
    "skip_server_warmup": True,
    "skip_tokenizer_init": True,
    "context_length": 512,
    "random_seed": 0,
}


def sampling(request):
    """Sampling parameters of one request."""
    from tokenlens.sglang import custom_params

    values = {"temperature": 0.0, **request.get("sampling", {})}
    if "max_tokens" in values:
        values["max_new_tokens"] = values.pop("max_tokens")
    params = dict(values.pop("custom_params", {}))
    if request.get("spec") is not None:
        params |= custom_params(request["spec"])
    if request.get("switches"):
        params["switches"] = request["switches"]
    return {**values, "custom_params": params} if params else values


async def ask(engine, request, before):
    """One request, when it is its turn; a refusal is a result too."""
    await asyncio.sleep(0.02 * request.get("arrive", 0))
    prompt = request.get("prompt")
    if "continues" in request:
        earlier = before[request["continues"]]
        prompt = [*earlier["prompt"], *earlier["ids"]][: request.get("cut")]
    asked = {"input_ids": prompt, "sampling_params": sampling(request), **request.get("more", {})}
    if request.get("budget"):
        from tiny_budget import TinyBudget

        asked["custom_logit_processor"] = TinyBudget.to_str()
        asked["sampling_params"]["custom_params"]["thinking_budget"] = request["budget"]
    try:
        if request.get("abort_after"):
            return await abort(engine, asked, request["abort_after"])
        if request.get("stream"):
            parts = [part async for part in await engine.async_generate(stream=True, **asked)]
            found = {**parts[-1], "chunks": [part["output_ids"] for part in parts]}
        else:
            found = await engine.async_generate(**asked)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    samples = found if isinstance(found, list) else [found]
    results = [result(one, prompt) for one in samples]
    return {**results[0], "samples": results}


async def abort(engine, asked, after):
    """Leave a request in the middle."""
    count = 0
    stream = await engine.async_generate(stream=True, rid="aborted", **asked)
    async for part in stream:
        count = len(part["output_ids"])
        if count >= after:
            engine.tokenizer_manager.abort_request("aborted")
            break
    return {"aborted_at": count}


def result(one, prompt):
    """One finished request as plain data."""
    meta = one["meta_info"]
    return {
        "prompt": prompt,
        "ids": list(one["output_ids"]),
        "text": one.get("text"),
        "chunks": one.get("chunks"),
        "finish": meta["finish_reason"],
        "cached": meta.get("cached_tokens"),
        "retractions": meta.get("num_retractions"),
        "logprobs": [value[0] for value in meta.get("output_token_logprobs", ())],
        "tops": [
            {str(token): value for value, token, *_ in place or ()}
            for place in meta.get("output_top_logprobs", ())
        ],
        "trace": meta.get("tokenlens"),
    }


def drive(engine, run, before):
    """All requests of a run at once, each at its turn."""

    async def everything():
        return await asyncio.gather(*(ask(engine, one, before) for one in run["requests"]))

    if run.get("flush"):
        # Refused while a request is not wholly gone, unless there is time to wait for it.
        flush = engine.tokenizer_manager.flush_cache(timeout_s=60)
        flushed = engine.loop.run_until_complete(flush)
        assert flushed.success, flushed
    if run.get("most_markers"):
        vars(engine.tokenizer_manager)["_tokenlens"].bind.max_markers = run["most_markers"]
    if run.get("again"):
        run = {"requests": list(repeated(before))}
    found = engine.loop.run_until_complete(everything())
    named = {one["name"]: value for one, value in zip(run["requests"], found)}
    before.update({name: value for name, value in named.items() if "ids" in value})
    return named


def repeated(before):
    """Every sample so far that drew something, asked for alone with its trace's spec."""
    for name, one in before.items():
        for place, sample in enumerate(one["samples"]):
            trace = sample["trace"]
            if trace and trace["steps"] and trace["spec"]["seed"] and not trace["sample"]:
                yield {
                    "name": f"{name}/{place}",
                    # A batch's prompts are equal.
                    "prompt": one["prompt"][0] if name == "batch" else one["prompt"],
                    "spec": trace["spec"],
                    "sampling": {"max_tokens": len(sample["ids"])},
                }


def run_scenario(job):
    """Start an engine, or try to; give it its requests."""
    import sglang

    import tokenlens.sglang

    os.environ.update(job.get("environment", {}))
    kwargs = {**ENGINE, "model_path": job["model"], **job.get("engine", {})}
    engine, before = None, {}
    try:
        if job.get("tokenlens", True):
            engine = tokenlens.sglang.engine(job.get("settings"), **kwargs)
        else:
            engine = sglang.Engine(**kwargs)
        runs, said = [], []
        for run in job["runs"]:
            runs.append(drive(engine, run, before))
            said.append(SAID.take())
        found = {"runs": runs, "said": said, "info": info(engine)}
        if "beside" in job:
            found["beside"] = start_beside(job["beside"])
            found["after"] = [drive(engine, run, before) for run in job["runs"]]
        return found
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        for name in job.get("environment", {}):
            os.environ.pop(name, None)
        if engine is not None:
            engine.shutdown()


def start_beside(job):
    """Start another engine while one runs, in vain; what is left of it afterwards."""
    import psutil

    before = set(psutil.Process().children(recursive=True))
    found = run_scenario(job)
    # What the start left to be collected must not wait for anybody.
    faulthandler.dump_traceback_later(300, exit=True)
    gc.collect()
    faulthandler.cancel_dump_traceback_later()
    left = set(psutil.Process().children(recursive=True)) - before
    return {**found, "left": [process.name() for process in left]}


def info(engine):
    """What the engine says of itself, and what the switches found to be untouched."""
    untouched = Path(os.environ["TOKENLENS_TEST_UNTOUCHED"])
    checked = json.loads(untouched.read_text()) if untouched.exists() else None
    untouched.unlink(missing_ok=True)
    return {
        "overlap": not engine.get_server_info()["disable_overlap_schedule"],
        "untouched": checked,
    }


def main(jobs_file, out_file):
    """Run all jobs; a job that raises is a result too."""
    results = {}
    for name, job in json.loads(Path(jobs_file).read_text()).items():
        results[name] = run_scenario(job)
        Path(out_file).write_text(json.dumps(results))


if __name__ == "__main__":
    from said import Said

    SAID = Said("sglang")
    main(*sys.argv[1:])
