"""Evaluates on vLLM, through ``tokenlens eval``'s engine and through lm-eval; prints JSON.

Runs in a process of its own. The argument is an empty folder.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import lm_eval
import torch
import transformers
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

import tokenlens.evaluation.harness  # noqa: F401  registers the models
from tokenlens.assets import path_of
from tokenlens.evaluation import ArmSampling, arms_of, evaluate, load_task, open_engine
from tokenlens.evaluation.harness.specs import of_prompt, read
from tokenlens.hf import generate_kwargs
from tokenlens.spec import preset

ROOT = Path(__file__).parents[2]
MODEL = "tiny-reasoner-latent"
ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 32 << 20,
    "max_model_len": 512,
    "max_num_seqs": 8,
}
TOKENS = 60
SPECS = ("", "tiny-soft", "tiny-gumbel")


def evaluated(name, folder, settings):
    """Every arm's records of one engine, where the engine's own sampling is greedy."""
    engine = open_engine(name, MODEL, **settings)
    try:
        found = evaluate(
            engine,
            load_task("countdown", limit=4),
            arms_of({"gumbel": preset("tiny-gumbel")}, ArmSampling(temperature=0.0, top_p=1.0)),
            folder / name,
            batch_size=4,
            max_new_tokens=TOKENS,
        )
    finally:
        engine.close()
    return {arm.name: [r.model_dump() for r in found.records(arm.name)] for arm in found.arms}


def harnessed():
    """Prompts and answers of lm-eval, by spec; one engine for all of them."""
    model = get_model("tokenlens-vllm")(MODEL, batch_size="auto", **ENGINE)
    found = {}
    for spec in SPECS:
        model.decoding_spec = read(spec)
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=["tokenlens_countdown"],
            task_manager=TaskManager(include_path=str(ROOT / "examples" / "lm_eval")),
            limit=4,
            apply_chat_template=True,
            gen_kwargs={"max_gen_toks": TOKENS},
            bootstrap_iters=0,
        )
        samples = results["samples"]["tokenlens_countdown"]
        found[spec] = [(one["arguments"][0][0], one["resps"][0][0]) for one in samples]
    model.decoding_spec = read("tiny-soft")
    try:
        model.loglikelihood([lm_eval.api.instance.Instance("loglikelihood", {}, ("a", "b"), 0)])
        found["scoring"] = "not refused"
    except NotImplementedError as error:
        found["scoring"] = str(error)
    return found


def generated(prompts):
    """What Hugging Face's ``generate()`` answers to lm-eval's prompts, one at a time."""
    path = path_of(MODEL)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    found = {}
    for spec in SPECS:
        found[spec] = []
        for prompt in prompts:
            ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
            own = of_prompt(read(spec), ids["input_ids"][0].tolist())
            kwargs = generate_kwargs(model, tokenizer, own)
            output = model.generate(**ids, **kwargs, do_sample=False, max_new_tokens=TOKENS)
            new = output[0, ids["input_ids"].shape[1] :]
            found[spec].append(tokenizer.decode(new, skip_special_tokens=True))
    return found


def main(folder):
    """Everything, in turn."""
    found = {
        "hf": evaluated("hf", folder, {}),
        "vllm": evaluated("vllm", folder, ENGINE),
        "lm_eval": harnessed(),
    }
    found["generate"] = generated([prompt for prompt, _ in found["lm_eval"][""]])
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
