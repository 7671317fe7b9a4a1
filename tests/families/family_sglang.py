"""Runs one SGLang engine a model, each in a process of its own, and replays what each traced.

``python family_sglang.py results.json NAME …``: text architectures of ``family_models``, and models
that see images of ``family_sight``. SGLang starts its processes anew, which is a minute of imports
a model; here they are forked off one that has imported everything.
"""

import asyncio
import io
import json
import multiprocessing
import os
import re
import sys
import tempfile
import traceback
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Classes are tried here before they are on the list.
os.environ.setdefault("TOKENLENS_ANY_MODEL", "1")
# The scheduler ends where a row that asked for nothing is changed by a bit.
os.environ.setdefault("TOKENLENS_TEST_SWITCHES", "1")

import family_sight
import torch
from family_checks import BY_NAME, NAMED, STOCK, UNLIKE, named
from family_rows import PLAIN, STEPS, judged, load, opened, requests, specs

ENGINE: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "attention_backend": "torch_native",
    "mm_attention_backend": "sdpa",
    "disable_cuda_graph": True,
    "mem_fraction_static": 0.2,
    "max_total_tokens": 4096,
    "max_running_requests": 16,
    "skip_server_warmup": True,
    "context_length": 256,
    "random_seed": 0,
    "log_level": "warning",
    # Prompts, and the images in them, come in several chunks.
    "chunked_prefill_size": 3,
}


def run(name: str, folder: Path) -> list[dict[str, Any]]:
    """Every request in one batch, twice: the second time prompts come from the radix cache."""
    import sglang

    import tokenlens.sglang

    path, model, tokenizer = load(name, folder, **UNLIKE.get(name, ({}, ""))[0])
    more: dict[str, Any] = {"model_path": str(path)}
    if name == "falcon_h1":
        more |= family_sight.RECURRENT
    if name in family_sight.NAMES:
        sight = family_sight.CLASSES[name]
        more |= {"dtype": sight.dtype, **sight.sglang}
    asked = requests(name, path)
    stock = {}
    if name in family_sight.NAMES:
        with engine(sglang.Engine, **more) as one:
            outputs = ask(one, name, asked, {})
            stock = {request[0]: decoded(output) for request, output in zip(asked, outputs)}
    found: list[dict[str, Any]] = []
    with engine(tokenlens.sglang.engine, None, **more) as one:
        for round_ in range(2):
            for (request, row, _, image), output in zip(asked, ask(one, name, asked, specs(name))):
                facts = {"model": name, "request": f"{request}, round {round_ + 1}", "row": row}
                facts["cached"] = output["meta_info"]["cached_tokens"]
                if row == PLAIN:
                    if round_ == 0:
                        facts["as stock"] = alike(decoded(output), stock[request])
                        found.append(facts)
                    continue
                trace = tokenlens.sglang.trace(output)
                found.append({**facts, **judged(path, model, tokenizer, trace, image)})
        found.append({"model": name, "row": BY_NAME, **by_name(one, path)})
    if name in UNLIKE:
        # As transformers has it, and without tokenlens.
        path, model, _ = load(name, folder)
        prompt = asked[-1][2]
        with engine(sglang.Engine, model_path=str(path)) as one:
            (output,) = ask(one, name, [(STOCK, PLAIN, prompt, 0)], {})
        apart = apart_from_transformers(model, prompt, decoded(output))
        found.append({"model": name, "row": STOCK, "traced": apart})
    return found


def apart_from_transformers(model: Any, prompt: list[int], answer: list[Any]) -> float:
    """Between probabilities of an answer's tokens, in one forward pass over them, and its own."""
    tokens = [int(one[1]) for one in answer]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens[:-1]]])).logits[0, len(prompt) - 1 :]
    there = logits.float().softmax(-1)[range(len(tokens)), tokens]
    here = torch.tensor([one[0] for one in answer]).exp()
    return float((there - here).abs().max())


def by_name(made: Any, path: Path) -> dict[str, Any]:
    """What becomes of a preset's name; no marker is written."""
    from tokenlens.sglang import trace

    prompts, markers = opened(path)
    sampling = {"temperature": 0.0, "max_new_tokens": 5, "ignore_eos": True}
    sampling["logit_bias"] = {str(token): -100.0 for token in markers}
    sampling["custom_params"] = {"tokenlens": NAMED}
    outputs = made.generate(input_ids=list(prompts.values()), sampling_params=sampling)
    return {one: named(trace(output)) for one, output in zip(prompts, outputs)}


@contextmanager
def engine(kind: Any, *args: Any, **more: Any) -> Iterator[Any]:
    """An engine that is gone afterwards."""
    made = kind(*args, **{**ENGINE, **more})
    try:
        yield made
    finally:
        # Of one class (Mistral 3) SGLang clears a cache at the very end that it does not have.
        with suppress(AttributeError):
            made.shutdown()


def ask(made: Any, name: str, asked: list[Any], written: dict[str, Any]) -> list[Any]:
    """All requests at once; without specs those that an engine without tokenlens takes."""
    from tokenlens.sglang import custom_params

    async def everything() -> list[Any]:
        waiting = []
        for _, row, prompt, image in asked:
            sampling: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": STEPS}
            sampling["ignore_eos"] = True
            if row in written:
                sampling["custom_params"] = custom_params(written[row])
            seen = {"image_data": [data(name, image)]} if image else {}
            waiting.append(
                made.async_generate(
                    input_ids=prompt,
                    sampling_params=sampling,
                    return_logprob=row not in written,
                    **seen,
                )
            )
        return list(await asyncio.gather(*waiting))

    return list(made.loop.run_until_complete(everything()))


def data(name: str, image: int) -> str:
    """A picture as servers get it."""
    out = io.BytesIO()
    family_sight.picture(name, image).save(out, "PNG")
    return f"data:image/png;base64,{b64encode(out.getvalue()).decode()}"


def decoded(output: Any) -> list[Any]:
    """Tokens of an answer, and their log-probabilities."""
    return [list(one[:2]) for one in output["meta_info"]["output_token_logprobs"]]


def alike(one: list[Any], other: list[Any]) -> bool:
    """The same tokens, as probable: how requests are batched is a matter of when they come.

    That nothing of such a row is changed, bit by bit, is looked at in the scheduler
    (``sglang_switches``).
    """
    pairs = list(zip(one, other, strict=True))
    return all(a[1] == b[1] and abs(a[0] - b[0]) < 1e-5 for a, b in pairs)


def one_model(name: str, out: Path, log: Path) -> None:
    """In a process of its own: its engine's are forked off it, and say what is wrong in a log."""
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    multiprocessing.set_start_method = lambda *_, **__: None  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        try:
            found: Any = run(name, Path(folder))
        except BaseException as error:
            traceback.print_exc()
            found = f"{type(error).__name__}: {error}"
        out.write_text(json.dumps(found))


def why(log: str) -> str:
    """What an engine that ended said last."""
    said = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|NotImplemented)\b.*$", log, re.MULTILINE)
    return said[-1] if said else "the process ended"


def main(out: str, names: list[str]) -> None:
    """Run, and write what there is after each model."""
    import sglang.srt.entrypoints.engine
    import sglang.srt.managers.detokenizer_manager
    import sglang.srt.managers.scheduler
    import sglang.srt.models.registry  # noqa: F401

    multiprocessing.set_start_method("fork", force=True)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            file, log = (Path(folder) / f"{name}.{kind}" for kind in ("json", "log"))
            process = multiprocessing.Process(target=one_model, args=(name, file, log))
            process.start()
            process.join()
            said = log.read_text(errors="replace")
            sys.stderr.write(said)
            found[name] = json.loads(file.read_text()) if file.exists() else why(said)
            Path(out).write_text(json.dumps(found, indent=1))
            print(name, str(found[name])[:200], flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
