"""Scenarios: what each engine of the tests is given to do."""

import json
import shutil

import conformance_models as models
import outside
import quoted
import torch
from conformance_table import (
    COMPARED,
    LONG,
    MARKERS,
    SHIFTED,
    START,
    VECTORS,
    Scenario,
    hosted,
    soft,
)
from safetensors.torch import load_file, save_file

SMALL_CACHE = {"num_gpu_blocks_override": 6, "block_size": 32, "max_model_len": 128}
"""Room for five blocks, of which most requests of the table (there are eighteen) need two."""


TWO_RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


def allowing(*methods, **settings):
    """An engine's additional configuration that lets methods from outside in."""
    return {"tokenlens": {"methods": list(methods), **settings}}


def preempted_scenario(path, switches=None):
    """The table twice over, on a cache that is too small for it."""
    job = table_scenario(path, switches, trace="full", **SMALL_CACHE)
    return {**job, "runs": job["runs"] * 2}


def no_replay_scenario(path):
    """The table once on a cache that is too small for it, and shifted rows behind a long one.

    Which of the table's rows are preempted hangs on all of them. The long one has three blocks, so
    that two shifted ones have one each, and the second of these loses it to the first.
    """
    job = table_scenario(path, {"no_replay": True}, **SMALL_CACHE)
    rows = {row["name"]: {**row, "arrive": 0} for row in job["runs"][0]["requests"]}
    shifted = [rows[name] for name in SHIFTED]
    turns = [
        {"requests": [rows["plain-long"], *shifted[at:], *shifted[:at]]}
        for at in range(len(shifted))
    ]
    return {**job, "runs": [*job["runs"], *turns]}


def table_scenario(path, switches=None, trace="summary", files=(), **engine):
    """The whole table on one engine, in chunks of a prompt and staggered."""
    rows = models.requests(trace=trace, scenarios=hosted("vllm"))
    for row in rows:
        if row["name"] in COMPARED:
            row["sampling"]["logprobs"] = 0
        if row["name"] in ("plain-long", "coconut"):
            # The head is called a second time, between a step's decision and its commit.
            row["sampling"]["prompt_logprobs"] = 0
    return {
        "model": path,
        "engine": {
            "skip_tokenizer_init": True,
            "max_num_batched_tokens": 32,
            "additional_config": allowing(*outside.NAMES, files=models.vector_files(*files)),
            **engine,
        },
        "switches": switches or {},
        "runs": [{"requests": rows}],
    }


def reasoner_scenario(scenarios):
    """The tiny reasoner, whose tokenizer finds the markers; every step of it."""
    files = models.vector_files("predictor", "east")
    return {
        "model": str(models.REASONER_PATH),
        "engine": {
            "max_num_batched_tokens": 32,
            "max_num_seqs": 8,
            "additional_config": allowing(*outside.NAMES, files=files),
        },
        "runs": [{"requests": models.requests({}, "full", scenarios)}],
    }


SETTINGS = {
    "first": {"reasoning": {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}},
    "second": {"reasoning_parser": "qwen3"},
}
"""How each runner's engine is told of the markers."""


def features_scenario(tokenizer, setting):
    """A spec beside what vLLM offers itself: a thinking budget, log-probabilities, masks.

    And, in a second run, requests in which nothing that they ask for can happen; in a third,
    prompts with markers in somebody else's words.
    """
    question = [{"role": "user", "content": models.QUESTIONS[0]}]
    text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer.encode(text)
    soften, end = {"method": "soft_thinking"}, {"method": "answer_now", "after": 12}
    # Never its own end of thinking, so that somebody else has to end it.
    endless = {"logit_bias": {str(tokenizer.convert_tokens_to_ids("</think>")): -100.0}}
    stop = {"stop_token_ids": [tokenizer.encode("=")[0]]}
    requests = {
        "soft": ([soften], {"logprobs": 2}),
        "plain": (None, {"logprobs": 2}),
        "budget": ([soften], {"thinking_token_budget": 12}),
        "same-as-budget": ([soften, end], {}),
        "endless": ([soften], {"thinking_token_budget": 12, **endless}),
        "stopped": ([soften], stop),
        "bad-words": ([soften], {"bad_words": ["="]}),
        "text": ([soften], {"stop": ["="], "detokenize": True}),
    }
    rows = [
        {
            "name": name,
            "prompt": prompt,
            "spec": None if methods is None else {"methods": methods, "trace": {"level": "full"}},
            "sampling": {"max_tokens": 40, **extra},
            "arrive": row,
        }
        for row, (name, (methods, extra)) in enumerate(requests.items())
    ]
    off = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, tokenize=False, enable_thinking=False
    )
    budget = {"method": "thinking_budget", "budget": 4}
    spelled = {"think_start": "Wait:", "think_end": "user:"}
    quiet = {
        "never-soft": {"methods": [soften]},
        "never-preset": "tiny-soft",
        "never-budget": {"methods": [budget]},
        "never-plain": {"methods": []},
        "spelled": {"methods": [soften], "phase": spelled},
    }
    silent = [
        {"name": name, "prompt": tokenizer.encode(off), "spec": spec, "sampling": {"max_tokens": 8}}
        for name, spec in quiet.items()
    ]
    said = [
        {
            "name": name,
            "prompt": ids,
            "spec": {"methods": [soften], "trace": {"level": "full"}},
            "sampling": {"max_tokens": 4},
        }
        for name, (ids, _) in quoted.prompts(tokenizer).items()
    ]
    return {
        "model": str(models.REASONER_PATH),
        "engine": {"max_num_batched_tokens": 64, **setting},
        "runs": [{"requests": rows}, {"requests": silent}, {"requests": said}],
    }


EDITS = {
    "none": [{"method": "no_thinking"}],
    "soon": [{"method": "answer_now", "after": 12}],
    "text": [{"method": "answer_now", "after": 10, "text": "wait</think>"}],
    "budget": [{"method": "thinking_budget", "budget": 14, "ramp": 0.5, "stop": "step"}],
    "s1": [{"method": "s1", "text": "wait", "max_thinking": 25}],
    "cyclic": [{"method": "cyclic_reflex", "amplitude": 20.0, "period": 40.0, "words": ["wait"]}],
    "alpha": [{"method": "alpha_one", "average_thinking": 12, "text": "wait"}],
    "nowait": [{"method": "nowait", "words": ["wait"]}, {"method": "min_p", "min_p": 0.2}],
    "edt": [{"method": "edt"}, {"method": "tip", "words": ["wait"], "penalty": 20.0}],
    "top-h": [{"method": "top_h"}, {"method": "thinking_budget", "budget": 20}],
    "penalised": [{"method": "answer_now", "after": 12}],
    "stopped": [{"method": "answer_now", "after": 12}],
    "sampled": [{"method": "nowait", "words": ["wait"]}, {"method": "min_p", "min_p": 0.02}],
    "sampled-soon": [{"method": "edt"}, {"method": "answer_now", "after": 9}],
}
"""Specs that decide or edit tokens and feed no mixtures."""

HELD = {
    "soft": [{"method": "soft_thinking"}],
    "soft-soon": [{"method": "soft_thinking"}, {"method": "answer_now", "after": 12}],
    "soft-sampled": [{"method": "soft_thinking"}, {"method": "gumbel_noise"}],
}
"""Specs that feed mixtures: drafts of theirs are held back."""

SOME = ("none", "soon", "s1", "sampled", *HELD, "plain")
"""What is asked for once more, on engines that differ in something."""

DRAFTS_CACHE = {"num_gpu_blocks_override": 7, "block_size": 32, "max_model_len": 128}
"""Room for few of them, which need two or three blocks each."""

WITHOUT = ("plain", "plain-sampled", "plain-penalised", "plain-stopped")
"""Requests without one."""


def drafts_scenario(tokenizer, drafts, names=(*EDITS, *HELD, *WITHOUT), switches=None, **job):
    """The reasoner on an engine that drafts, or does not; ``by_model`` drafts with itself.

    Log-probabilities are of what is sampled from, so that they tell of edits.
    """
    question = [{"role": "user", "content": models.QUESTIONS[0]}]
    text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    asked = {
        "sampled": {"temperature": 0.9, "seed": 7, "logprobs": 20},
        "penalised": {"repetition_penalty": 1.2, "presence_penalty": 0.3},
        # Among the drafts that are accepted.
        "stopped": {"stop_token_ids": tokenizer.encode("=")[:1]},
    }
    rows = []
    for name in names:
        place = (*EDITS, *HELD, *WITHOUT).index(name)
        sampling = {"max_tokens": 30 + place % 7, "logprobs": 1}
        for kind, values in asked.items():
            sampling |= values if kind in name else {}
        methods = {**EDITS, **HELD}.get(name)
        # A schedule draws with its seed. Noise is nobody else's: a trace would say so.
        seed = place if name in HELD else 5
        spec = {"methods": methods, "trace": {"level": "full"}, "seed": seed}
        rows.append(
            {
                "name": name,
                "prompt": tokenizer.encode(text),
                "spec": spec if methods else None,
                "sampling": sampling,
                "arrive": len(rows) // 2,
            }
        )
    for name in ("vectors", "structured"):
        method = {"method": "coconut"} if name == "vectors" else {"method": "no_thinking"}
        rows.append({**rows[0], "name": name, "spec": {"methods": [method]}})
    rows[-1]["sampling"] = {"regex": "[0-9]"}
    engine = {"max_num_batched_tokens": 96, "logprobs_mode": "processed_logprobs"}
    if drafts:
        engine["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": drafts,
            "prompt_lookup_min": 1,
            "prompt_lookup_max": 3,
        }
    if job.pop("by_model", False):
        drafter = {"method": "draft_model", "model": str(models.REASONER_PATH)}
        engine["speculative_config"] = {**drafter, "num_speculative_tokens": drafts}
    return {
        "model": str(models.REASONER_PATH),
        "engine": {**engine, **job.pop("engine", {})},
        "switches": switches or {},
        # The last two are refused beside drafts, and asked for nowhere else.
        "runs": [{"requests": rows if drafts and job.get("tokenlens", True) else rows[:-2]}],
        **job,
    }


def dropped_scenario(path, switches):
    """Running requests are thrown out again and again, and what they had in flight is dropped."""
    job = table_scenario(path, switches)
    job["runs"][0]["reset_every"] = 11
    return job


def small_history_scenario(path):
    """A history that is too small for all: some requests cannot be replayed."""
    job = table_scenario(path, **SMALL_CACHE)
    # Three pages of 64 tokens.
    mib = 3 * 64 * 64 * 12 / 2**20
    settings = {"history_mib": mib, "files": models.vector_files()}
    job["engine"]["additional_config"] = allowing(*outside.NAMES, **settings)
    return job


def shared_scenario(path, switches=None):
    """A plain request reads what a latent one wrote: from the cache, and afresh."""
    latent = Scenario("latent", (*LONG, START), (soft(),), tokens=60)
    plain = {"name": "plain", "continues": "latent", "sampling": {"max_tokens": 4, "logprobs": 5}}
    again = Scenario("again", (*LONG, START), (soft(),), tokens=60)
    hidden = Scenario("hidden", (*LONG, START, 12), VECTORS["coconut-placeholder"], tokens=60)
    after = {**plain, "name": "after-hidden", "continues": "hidden"}
    shifted = Scenario("shifted", (*LONG, START, 13), SHIFTED["east"], tokens=60)
    behind = {**plain, "name": "after-shifted", "continues": "shifted"}
    rows = [
        {
            "name": one.name,
            "prompt": list(one.prompt),
            "spec": one.spec(MARKERS),
            "sampling": {"max_tokens": one.tokens},
        }
        for one in (latent, hidden, shifted, again)
    ]
    return {
        "model": path,
        "engine": {
            "skip_tokenizer_init": True,
            "block_size": 32,
            "additional_config": allowing(files=models.vector_files()),
        },
        "switches": switches or {},
        "runs": [
            {"requests": rows[:3]},
            {"requests": [plain, after, behind]},
            {"requests": rows[3:]},
            {"requests": [{**plain, "name": "fresh"}], "empty_cache": True},
            {"requests": [{**after, "name": "fresh-after-hidden"}], "empty_cache": True},
            {"requests": [{**behind, "name": "fresh-after-shifted"}], "empty_cache": True},
        ],
    }


def seeds_scenario(path):
    """Equal prompts with noise: no seed, the engine's seed, the spec's, and several samples."""
    methods = [
        {**soft(), "quirks": {"start": "first_token"}, "temperature": 1.0},
        {"method": "gumbel_noise", "temperature": 1.0},
    ]
    spec = {**Scenario("noisy", (), methods).spec(MARKERS, "full"), "seed": None}
    # A temperature, because vLLM takes several samples only with one; thinking is not its to draw.
    sampling = {"max_tokens": 6, "temperature": 1.0}

    def row(name, spec=spec, **extra):
        return {"name": name, "prompt": [1, START, 11], "spec": spec,
                "sampling": {**sampling, **extra}}  # fmt: skip

    rows = [
        *(row(f"open-{n}") for n in range(4)),
        *(row(f"engine-{n}", seed=n) for n in range(3)),
        row("engine-again", seed=2),
        row("three", n=3),
        row("engine-three", n=3, seed=2),
        *(row(f"spec-{n}", {**spec, "seed": 5}) for n in range(2)),
        row("spec-three", {**spec, "seed": 6}, n=3),
    ]
    return {
        "model": path,
        "engine": {"skip_tokenizer_init": True},
        "runs": [{"requests": rows}],
        "again": True,
    }


def plain_scenario(path, *files, **job):
    """Requests without a spec, with log-probabilities; layers have seats for what is in files."""
    config = allowing(files=models.vector_files(*files)) if files else {}
    rows = [
        {
            "name": f"plain-{row}",
            "prompt": [1, 20 + row, 6, 30 + row],
            "sampling": {"max_tokens": 24, "logprobs": 3, **extra},
            "arrive": row,
        }
        for row, extra in enumerate(
            [{}, {"temperature": 0.9, "seed": 1}, {"repetition_penalty": 1.2}, {}]
        )
    ]
    return {
        "model": path,
        "engine": {"skip_tokenizer_init": True, "additional_config": config},
        "runs": [{"requests": rows}],
        **job,
    }


def admission_scenario(path):
    """Requests that are refused between requests that are not."""
    limits = {
        "allow": ["soft_thinking", "gumbel_noise", "coconut"],
        "max_entries": 16,
        "full_traces": False,
        # Forty vectors.
        "vectors_mib": 40 * 64 * 4 / 2**20,
    }

    phase = {"think_start": [6], "think_end": [7]}

    def latent(**settings):
        return {"methods": [{"method": "soft_thinking", **settings}], "phase": phase}

    wrong = {
        "not-allowed": {"spec": {**latent(), "methods": [{"method": "no_thinking"}]}},
        "too-wide": {"spec": latent(max_entries=17)},
        "vectors": {
            "spec": {"methods": [{"method": "coconut", "steps": 50}], "phase": phase},
            "sampling": {"max_tokens": 60},
        },
        "full-trace": {"spec": {**latent(max_entries=16), "trace": {"level": "full"}}},
        "marker": {
            "spec": {**latent(max_entries=16), "phase": {"think_start": [6], "think_end": [4096]}}
        },
        "no-tokenizer": {"spec": {**latent(max_entries=16), "phase": {}}},
        "outside": {"spec": {**latent(), "methods": [{"method": "no_echo"}]}},
        "value": {"sampling": {"extra_args": {"tokenlens_soft_thinking.top_k": -1}}},
        "field": {"sampling": {"extra_args": {"tokenlens_soft_thinking.topk": 5}}},
        "unknown": {"sampling": {"extra_args": {"tokenlens_sofd_thinking.top_k": 5}}},
        "preset": {"sampling": {"extra_args": {"tokenlens": "qwen3-sofd"}}},
        "ours": {"sampling": {"extra_args": {"tokenlens": "{}", "_tokenlens_sample": 1}}},
        "our-seed": {"sampling": {"extra_args": {"tokenlens": "{}", "_tokenlens_seed": 1}}},
    }
    rows = [{"name": name, "prompt": [1, 6, 11], **request} for name, request in wrong.items()]
    right = {"spec": latent(max_entries=16), "sampling": {"max_tokens": 8}}
    rows.append({"name": "right", "prompt": [1, 6, 11], **right})
    # Warm enough that each noise takes its own way through this small model.
    noisy = latent(max_entries=16, temperature=2.0)
    noisy = {**noisy, "methods": [*noisy["methods"], {"method": "gumbel_noise"}], "seed": 3}
    for name, n in (("samples", 3), ("one-sample", 1)):
        # vLLM takes several samples only with a temperature; thinking tokens are not its to draw.
        many = {"max_tokens": 24, "n": n, "temperature": 1.0}
        rows.append({"name": name, "prompt": [1, 6, 12], "spec": noisy, "sampling": many})
    # Through a front end without tokenlens: one that is wrong, one that is right, one that lies.
    forged = {"tokenlens": json.dumps(latent(max_entries=16)), "_tokenlens_admitted": "1"}
    strangers = {
        "stranger-not-allowed": wrong["not-allowed"],
        "stranger-right": right,
        "stranger-forged": {"sampling": {"extra_args": forged}},
        "stranger-plain": {"sampling": {"max_tokens": 8}},
    }
    for name, request in strangers.items():
        rows.append({"name": name, "prompt": [1, 6, 11], "stranger": True, **request})
    rows.append({"name": "plain", "prompt": [1, 6, 11], "sampling": {"max_tokens": 8}})
    aborted = {"spec": latent(max_entries=16), "sampling": {"max_tokens": 200}}
    rows.append({"name": "aborted", "prompt": [1, 6, 13], **aborted})
    return {
        "model": path,
        "engine": {
            "skip_tokenizer_init": True,
            "additional_config": {"tokenlens": limits},
        },
        "runs": [{"requests": rows, "abort": {"6": ["aborted"]}}, crowded()],
    }


def crowded():
    """More different markers of several tokens than there is room for: two."""

    def one(name, pair, tokens, arrive=0):
        phase = {"think_start": [6, 20 + pair], "think_end": [7, 20 + pair]}
        methods = [{"method": "soft_thinking", "max_entries": 16}]
        return {
            "name": name,
            "prompt": [1, 6, 20 + pair, 11],
            "spec": {"methods": methods, "phase": phase},
            "sampling": {"max_tokens": tokens},
            "arrive": arrive,
        }

    rows = [
        one("long", 0, 30),
        one("short", 1, 5),
        one("same", 0, 5),
        one("too-many", 2, 5),
        # When one of the two has ended.
        one("later", 2, 5, arrive=12),
        one("later-too-many", 3, 5, arrive=13),
        one("last", 3, 5, arrive=60),
    ]
    return {"requests": rows, "most_markers": 2}


def faults_scenario(path):
    """Requests that raise in the worker, or make no mixture, beside plain ones; few KV blocks."""
    phase = {"think_start": [6], "think_end": [7]}

    def spec(*methods, seed=0):
        return {"methods": [{"method": one} for one in methods], "phase": phase, "seed": seed}

    asked = {
        "not-admitted": spec("soft_thinking", seed=13),
        "not-decided": spec("soft_thinking", "top1", seed=14),
        "wild": spec("soft_thinking", "soft_grpo_noise", seed=1),
        "soft": spec("soft_thinking", seed=2),
        "plain": None,
    }
    rows = [
        {"name": name, "prompt": [1, 6, 11, 12], "spec": found, "sampling": {"max_tokens": 20}}
        for name, found in asked.items()
    ]
    alone = [{**row, "name": f"{row['name']}-alone"} for row in rows[-2:]]
    again = [{**rows[-1], "name": f"plain-{i}", "prompt": [1, 6, 20 + i]} for i in range(4)]
    before = [{**row, "name": f"{row['name']}-before"} for row in again]
    return {
        "model": path,
        "engine": {
            "skip_tokenizer_init": True,
            "num_gpu_blocks_override": 6,
            "block_size": 32,
            "max_model_len": 64,
            "enable_prefix_caching": False,
        },
        "switches": {"faults": True, "no_bounds": True},
        "runs": [
            {"requests": alone},
            {"requests": before},
            {"requests": rows},
            {"requests": again},
        ],
    }


def faulty_scenario(path):
    """A method from outside goes wrong in every way, beside others; and the others alone."""
    phase = {"think_start": [6], "think_end": [7]}

    def row(name, *methods, prompt=(1, 6, 11, 12)):
        spec = {"methods": list(methods), "phase": phase} if methods else None
        return {"name": name, "prompt": list(prompt), "spec": spec, "sampling": {"max_tokens": 6}}

    return {
        "model": path,
        "engine": {
            "skip_tokenizer_init": True,
            "additional_config": allowing("pulse_gate", "faulty"),
        },
        "runs": outside.going_wrong(row, apart=3),
    }


def other_version_scenario(path):
    """A version that was not tested, by the decision of the operator."""
    rows = [row for row in models.requests() if row["name"] in ("soft", "plain")]
    return {
        "model": path,
        "engine": {"skip_tokenizer_init": True},
        "switches": {"version": "0.99.0", "any_version": True},
        "runs": [{"requests": rows}],
    }


def save_adapter(folder, target):
    """A random adapter (LoRA) of the tiny model, on its queries or on its embedding."""
    shape = models.SHAPE
    hidden, vocab = shape["hidden_size"], shape["vocab_size"]
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": [target]}
    weights, generator = {}, torch.Generator().manual_seed(0)
    if target == "q_proj":
        for layer in range(shape["num_hidden_layers"]):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            weights[f"{name}.lora_A.weight"] = torch.randn(4, hidden, generator=generator)
            weights[f"{name}.lora_B.weight"] = torch.randn(hidden, 4, generator=generator)
    else:
        name = "base_model.model.model.embed_tokens"
        weights[f"{name}.lora_embedding_A"] = torch.randn(4, vocab, generator=generator)
        weights[f"{name}.lora_embedding_B"] = torch.randn(hidden, 4, generator=generator)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "adapter_model.safetensors")
    return str(folder)


def adapters_scenario(path, folder):
    """Requests with an adapter of the attention, and with one of the embedding."""
    adapters = {
        name: save_adapter(folder / name, target)
        for name, target in (("queries", "q_proj"), ("embedding", "embed_tokens"))
    }
    spec = {"methods": [soft()], "phase": {key: list(ids) for key, ids in MARKERS.items()}}
    ends = {**spec, "methods": [{"method": "answer_now", "after": 9}]}
    hidden = {**spec, "methods": [{"method": "coconut", "steps": 6}]}
    requests = {
        "soft": (spec, None),
        "soft-queries": (spec, "queries"),
        "hidden-queries": (hidden, "queries"),
        "soft-embedding": (spec, "embedding"),
        "ends-embedding": (ends, "embedding"),
    }
    rows = [
        {
            "name": name,
            "prompt": [1, START, 11, 12],
            "spec": asked,
            "sampling": {"max_tokens": 16},
            "adapter": None if adapter is None else [adapter, adapters[adapter]],
        }
        for name, (asked, adapter) in requests.items()
    ]
    return {
        "model": path,
        "engine": {"skip_tokenizer_init": True, "enable_lora": True, "max_loras": 2},
        "runs": [{"requests": rows}],
    }


def save_quantised(path, folder):
    """The model with an embedding of packed 8-bit integers, as compressed-tensors has it."""
    shutil.copytree(path, folder)
    weights = load_file(folder / "model.safetensors")
    table = weights.pop("model.embed_tokens.weight")
    scale = table.abs().amax(dim=1, keepdim=True) / 127
    rounded = (table / scale).round().to(torch.int64) + 128
    packed = (rounded.view(len(table), -1, 4) << torch.tensor([0, 8, 16, 24])).sum(dim=2)
    name = "model.embed_tokens.weight"
    weights[f"{name}_packed"] = packed.to(torch.int32)
    weights[f"{name}_scale"] = scale
    weights[f"{name}_shape"] = torch.tensor(table.shape)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    integers = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["re:.*embed_tokens"], "weights": integers}},
        "ignore": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def refused_scenarios(path, folder):
    """Engines that must not start."""
    base = {"model": path, "runs": []}
    quiet = {"skip_tokenizer_init": True}
    draft = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    shared = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
    engines = {
        "speculative": {"speculative_config": draft},
        "embeds": {"enable_prompt_embeds": True},
        "setting": {"additional_config": {"tokenlens": {"allow": ["sofd"]}}},
        "method": {"additional_config": allowing("no_ech")},
        "broken": {"additional_config": allowing("unmade")},
        "version": {},
        "pooling": {"runner": "pooling"},
        "pipeline": {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"},
        "connector": {"kv_transfer_config": shared},
    }
    jobs = {
        f"refused-{name}": {**base, "engine": {**quiet, **engine}}
        for name, engine in engines.items()
    }
    jobs["refused-version"]["switches"] = {"version": "0.99.0"}
    for name, wrong in models.wrong_files(folder).items():
        config = allowing(files={"wrong": wrong})
        jobs[f"refused-{name}"] = {**base, "engine": {**quiet, "additional_config": config}}
    quantised = {**base, "model": save_quantised(path, folder / "quantised"), "engine": quiet}
    jobs["refused-quantised"] = quantised
    return jobs
