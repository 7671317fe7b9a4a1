"""Jobs of the driver: what each engine of the tests is given to do."""

import conformance_models as models
from conformance_table import LONG, MARKERS, START, Scenario, hosted, soft

SMALL_CACHE = {"num_gpu_blocks_override": 6, "block_size": 32, "max_model_len": 128}
"""Room for five blocks, of which most requests of the table (there are eighteen) need two."""


TWO_RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


def preempted_job(path, rig=None):
    """The table twice over, on a cache that is too small for it."""
    job = table_job(path, rig, **SMALL_CACHE)
    return {**job, "runs": job["runs"] * 2}


def table_job(path, rig=None, trace="summary", **engine):
    """The whole table on one engine, in chunks of a prompt and staggered."""
    rows = models.requests(trace=trace, scenarios=hosted("vllm"))
    return {
        "model": path,
        "engine": {"skip_tokenizer_init": True, "max_num_batched_tokens": 32, **engine},
        "rig": rig or {},
        "runs": [{"requests": rows}],
    }


def reasoner_job(scenarios):
    """The tiny reasoner, whose tokenizer finds the markers; every step of it."""
    return {
        "model": str(models.REASONER_PATH),
        "engine": {"max_num_batched_tokens": 32, "max_num_seqs": 8},
        "runs": [{"requests": models.requests({}, "full", scenarios)}],
    }


def features_job(tokenizer):
    """A spec beside what vLLM offers itself: a thinking budget, log-probabilities, masks."""
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
    marks = {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}
    return {
        "model": str(models.REASONER_PATH),
        "engine": {"max_num_batched_tokens": 64, "reasoning": marks},
        "runs": [{"requests": rows}],
    }


def dropped_job(path, rig):
    """Running requests are thrown out again and again, and what they had in flight is dropped."""
    job = table_job(path, rig)
    job["runs"][0]["reset_every"] = 11
    return job


def small_history_job(path):
    """A history that is too small for all: some requests cannot be replayed."""
    job = table_job(path, **SMALL_CACHE)
    # Three pages of 64 tokens.
    job["engine"]["additional_config"] = {"tokenlens": {"history_mib": 3 * 64 * 64 * 12 / 2**20}}
    return job


def shared_job(path, rig=None):
    """A plain request reads what a latent one wrote: from the cache, and afresh."""
    latent = Scenario("latent", (*LONG, START), (soft(),), tokens=60)
    plain = {"name": "plain", "continues": "latent", "sampling": {"max_tokens": 4, "logprobs": 5}}
    again = Scenario("again", (*LONG, START), (soft(),), tokens=60)
    rows = [
        {
            "name": one.name,
            "prompt": list(one.prompt),
            "spec": one.spec(MARKERS),
            "sampling": {"max_tokens": one.tokens},
        }
        for one in (latent, again)
    ]
    return {
        "model": path,
        "engine": {"skip_tokenizer_init": True, "block_size": 32},
        "rig": rig or {},
        "runs": [
            {"requests": rows[:1]},
            {"requests": [plain]},
            {"requests": rows[1:]},
            {"requests": [{**plain, "name": "fresh"}], "empty_cache": True},
        ],
    }


def plain_job(path, **job):
    """Requests without a spec, with log-probabilities."""
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
        "engine": {"skip_tokenizer_init": True},
        "runs": [{"requests": rows}],
        **job,
    }


def admission_job(path):
    """Requests that are refused between requests that are not."""
    limits = {"allow": ["soft_thinking", "gumbel_noise"], "max_entries": 16, "full_traces": False}

    phase = {"think_start": [6], "think_end": [7]}

    def latent(**settings):
        return {"methods": [{"method": "soft_thinking", **settings}], "phase": phase}

    wrong = {
        "not-allowed": {"spec": {**latent(), "methods": [{"method": "no_thinking"}]}},
        "too-wide": {"spec": latent(max_entries=17)},
        "full-trace": {"spec": {**latent(max_entries=16), "trace": {"level": "full"}}},
        "marker": {
            "spec": {**latent(max_entries=16), "phase": {"think_start": [6], "think_end": [4096]}}
        },
        "no-tokenizer": {"spec": {**latent(max_entries=16), "phase": {}}},
        "value": {"sampling": {"extra_args": {"tokenlens_soft_thinking.top_k": -1}}},
        "field": {"sampling": {"extra_args": {"tokenlens_soft_thinking.topk": 5}}},
        "unknown": {"sampling": {"extra_args": {"tokenlens_sofd_thinking.top_k": 5}}},
        "preset": {"sampling": {"extra_args": {"tokenlens": "qwen3-sofd"}}},
        "ours": {"sampling": {"extra_args": {"tokenlens": "{}", "_tokenlens_sample": 1}}},
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
    aborted = {"spec": latent(max_entries=16), "sampling": {"max_tokens": 200}}
    rows.append({"name": "aborted", "prompt": [1, 6, 13], **aborted})
    return {
        "model": path,
        "engine": {
            "skip_tokenizer_init": True,
            "additional_config": {"tokenlens": limits},
        },
        "runs": [{"requests": rows, "abort": {"6": ["aborted"]}}],
    }


def refused_jobs(path):
    """Engines that must not start."""
    base = {"model": path, "runs": []}
    quiet = {"skip_tokenizer_init": True}
    draft = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    return {
        "refused-speculative": {**base, "engine": {**quiet, "speculative_config": draft}},
        "refused-embeds": {**base, "engine": {**quiet, "enable_prompt_embeds": True}},
        "refused-setting": {
            **base,
            "engine": {**quiet, "additional_config": {"tokenlens": {"allow": ["sofd"]}}},
        },
        "refused-version": {**base, "engine": quiet, "rig": {"version": "0.99.0"}},
    }
