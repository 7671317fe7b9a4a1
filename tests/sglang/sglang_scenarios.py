"""Scenarios: what each engine of the tests is given to do."""

import conformance_models as models
import outside
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

# SGLang's repetition penalty leaves the prompt out, that of the reference does not.
SCENARIOS = tuple(s for s in hosted("sglang") if "repetition_penalty" not in s.sampling)

CHUNK = 16
"""Prompt tokens of a step: the long prompts of the table come in five pieces."""

MOST_VECTORS = 200
"""That an engine of these tests keeps, of 64 coordinates."""

SOFT = {"methods": [soft()], "phase": {"think_start": [START], "think_end": [7]}}


def request(scenario, trace="summary", **more):
    """A scenario as a request of the engine's process."""
    return {
        "name": scenario.name,
        "prompt": list(scenario.prompt),
        "spec": scenario.spec(MARKERS, trace),
        "sampling": {"max_tokens": scenario.tokens, **scenario.sampling},
        "arrive": scenario.arrive,
        **more,
    }


def table(trace="summary", scenarios=SCENARIOS):
    """The whole table, staggered."""
    rows = models.requests(trace=trace, scenarios=scenarios)
    for row in rows:
        if row["name"] in COMPARED:
            row["more"] = {"return_logprob": True}
        if row["name"] == "coconut":
            # Then there are rows in front of the head that are not sampled.
            row["more"]["logprob_start_len"] = 0
    return {"requests": rows}


def radix():
    """Runs in which a request meets the KV that another one wrote under the same ids.

    ``plain`` continues with what ``latent`` said. ``retracted`` is the other way round: what it
    says has been written by a plain request before it is taken back.
    """
    latent = Scenario("latent", (*LONG, START), (soft(),), tokens=40)
    plain = {
        "name": "plain",
        "continues": "latent",
        "sampling": {"max_tokens": 4},
        "more": {"return_logprob": True, "top_logprobs_num": 5},
    }
    hidden = Scenario("hidden", (*LONG, START, 15), VECTORS["coconut-placeholder"], tokens=40)
    beside = {**plain, "name": "after-hidden", "continues": "hidden", "arrive": 20}
    shifted = Scenario("shifted", (*LONG, START, 16), SHIFTED["east"], tokens=40)
    behind = {**plain, "name": "after-shifted", "continues": "shifted", "arrive": 40}
    short = Scenario("short", (*LONG, START, 12), (soft(),), tokens=1)
    after = {**plain, "name": "after-short", "continues": "short"}
    return [
        {"requests": [request(latent), request(hidden), request(shifted)], "flush": True},
        {"requests": [plain, beside, behind]},
        {"requests": [request(latent) | {"name": "again"}]},
        {
            "requests": [
                {**plain, "name": "fresh"},
                {**beside, "name": "fresh-after-hidden"},
                {**behind, "name": "fresh-after-shifted"},
            ],
            "flush": True,
        },
        {
            "requests": [
                request(latent) | {"name": "open", "switches": ["no_guard"]},
                request(shifted) | {"name": "open-shifted", "switches": ["no_guard"]},
            ],
            "flush": True,
        },
        {
            "requests": [
                {**plain, "name": "polluted", "continues": "open"},
                {**behind, "name": "polluted-shifted", "continues": "open-shifted"},
            ]
        },
        {"requests": [request(short)], "flush": True},
        {"requests": [after]},
        {"requests": [{**after, "name": "after-fresh"}], "flush": True},
    ]


def features():
    """Streaming, an abort, log-probabilities, samples, stops, a thinking budget."""
    tops = {"return_logprob": True, "top_logprobs_num": 3}
    spec = {**SOFT, "trace": {"level": "full"}}
    prompt = [1, START, 11, 12, 13, 14, 15, 16]
    base = {"prompt": prompt, "spec": spec, "sampling": {"max_tokens": 24}}
    noisy = {**SOFT, "methods": [soft(), {"method": "gumbel_noise"}], "seed": 3}
    many = {"max_tokens": 6, "n": 3, "temperature": 1.0}
    plain = {"prompt": prompt, "sampling": {"max_tokens": 24}}
    return [
        {
            "requests": [
                {**base, "name": "whole"},
                {**base, "name": "stream", "stream": True},
                {**base, "name": "logprobs", "more": tops},
                {**plain, "name": "plain-logprobs", "more": tops},
                {**base, "name": "left", "sampling": {"max_tokens": 200}, "abort_after": 5},
                {**base, "name": "samples", "spec": noisy, "sampling": many},
                {**base, "name": "sample", "spec": noisy, "sampling": {**many, "n": 1}},
                {**base, "name": "warm", "sampling": {"max_tokens": 8, "temperature": 0.9}},
            ]
        }
    ]


def seeds():
    """Equal prompts with noise: no seed, SGLang's seed, the spec's, several samples, a batch."""
    start = {**soft(), "quirks": {"start": "first_token"}, "temperature": 1.0}
    noise = {"method": "gumbel_noise", "temperature": 1.0}
    spec = {**SOFT, "methods": [start, noise], "trace": {"level": "full"}}

    def one(name, seed=None, **extra):
        return {"name": name, "prompt": [1, START, 11], "spec": {**spec, "seed": seed},
                "sampling": {"max_tokens": 6, "temperature": 1.0, **extra}}  # fmt: skip

    rows = [
        *(one(f"open-{n}") for n in range(4)),
        *(one(f"engine-{n}", sampling_seed=n) for n in range(3)),
        one("engine-again", sampling_seed=2),
        one("three", n=3),
        one("engine-three", n=3, sampling_seed=2),
        one("batch") | {"prompt": [[1, START, 11]] * 3},
        *(one(f"spec-{n}", seed=5) for n in range(2)),
        one("spec-three", seed=6, n=3),
    ]
    return [{"requests": rows}, {"again": True, "requests": []}]


def budget():
    """SGLang's own thinking budget: ten tokens behind the marker, six of which are the prompt's."""
    prompt = [1, START, 11, 12, 13, 14, 15, 16]
    latent = {"name": "budget", "prompt": prompt, "spec": SOFT, "sampling": {"max_tokens": 12}}
    return {"requests": [{**latent, "budget": 10}]}


def wrong():
    """Requests that are refused, and one that is not."""
    methods = [{"method": "soft_thinking"}]
    phase = SOFT["phase"]

    def one(name, params=None, sampling=None, more=None):
        return {
            "name": name,
            "prompt": [1, START, 11],
            "sampling": {
                "max_tokens": 8,
                "custom_params": params or {"tokenlens": {"methods": methods, "phase": phase}},
                **(sampling or {}),
            },
            "more": more or {},
        }

    def spec(**fields):
        return {"tokenlens": {"methods": methods, "phase": phase, **fields}}

    rows = [
        one("value", spec(methods=[{"method": "soft_thinking", "top_k": -1}])),
        one("field", spec(methods=[{"method": "soft_thinking", "topk": 5}])),
        one("preset", {"tokenlens": "qwen3-sofd"}),
        one("kind", {"tokenlens": 7}),
        one("marker", spec(phase={"think_start": [START], "think_end": [4096]})),
        one("no-tokenizer", spec(phase={})),
        one("ours", {**spec(), "_tokenlens_sample": 1}),
        one("our-seed", {**spec(), "_tokenlens_seed": 1}),
        one("beam", sampling={"beam_width": 2}),
        one("grammar", sampling={"regex": "a+"}),
        one("session", more={"session_params": {"id": "x"}}),
        one(
            "vectors",
            spec(methods=[{"method": "soft_tokens", "mixture": "full"}]),
            {"max_tokens": MOST_VECTORS + 1},
        ),
        one("right"),
    ]
    return {"requests": rows}


def faults():
    """Requests that raise in the scheduler, beside others, and the others alone."""
    base = {"prompt": [1, START, 11, 12], "sampling": {"max_tokens": 12}}
    top1 = {**SOFT, "methods": [soft(), {"method": "top1"}], "seed": 1014}
    others = [{**base, "name": "soft", "spec": SOFT}, {**base, "name": "plain"}]
    rows = [
        {**base, "name": "not-admitted", "spec": {**SOFT, "seed": 1013}},
        {**base, "name": "not-decided", "spec": top1},
    ]
    return [{"requests": others}, {"requests": [*rows, *others]}]


def going_wrong():
    """A method from outside goes wrong in every way, beside others, and the others alone."""

    def row(name, *methods):
        spec = {**SOFT, "methods": list(methods)} if methods else None
        sampling = {"max_tokens": 6}
        return {"name": name, "prompt": [1, START, 11, 12], "spec": spec, "sampling": sampling}

    return outside.going_wrong(row, apart=8)


def staggered():
    """24 requests of the table's, most of them latent, coming one by one."""
    rows = [s for s in SCENARIOS if s.greedy]
    return [
        request(rows[i % len(rows)]) | {"name": f"{rows[i % len(rows)].name}/{i}", "arrive": i}
        for i in range(24)
    ]


REASONERS = ("", "-no-overlap", "-retracted")
"""How the tiny reasoner is run: by the end of the job's name."""


def silent(prompt):
    """Requests of the tiny reasoner in which nothing that they ask for can happen."""
    soften, budget = {"method": "soft_thinking"}, {"method": "thinking_budget", "budget": 4}
    specs = {
        "never-soft": {"methods": [soften]},
        "never-preset": "tiny-soft",
        "never-budget": {"methods": [budget]},
        "spelled": {
            "methods": [soften],
            "phase": {"think_start": "Wait:", "think_end": "user:"},
        },
    }
    return {
        "requests": [
            {"name": name, "prompt": prompt, "spec": spec, "sampling": {"max_tokens": 8}}
            for name, spec in specs.items()
        ]
    }


def crowded():
    """More different markers of several tokens than there is room for: two. And one more later."""

    def one(pair, tokens):
        phase = {"think_start": [3, 20 + pair], "think_end": [4, 20 + pair]}
        return {
            "name": f"pair-{pair}",
            "prompt": [1, 3, 20 + pair, 11],
            "spec": {"methods": [{"method": "soft_thinking"}], "phase": phase},
            "sampling": {"max_tokens": tokens, "ignore_eos": True},
        }

    at_once = [one(pair, 100) for pair in range(4)]
    return [{"requests": at_once, "most_markers": 2}, {"requests": [one(9, 8)]}]


def work(paths, wrong_files, reasoner=(), off=()):
    """Everything, by the name of the job: each is one start of an engine.

    ``reasoner`` are the table's requests of the tiny reasoner, ``off`` is a prompt in which its
    thinking is switched off.
    """
    qwen3, llama, gemma = (paths[name] for name in ("qwen3", "llama-tied", "gemma"))
    chunked = {"chunked_prefill_size": CHUNK, "max_running_requests": 6}
    retract = {"SGLANG_TEST_RETRACT": "true"}
    without = [{**row, "switches": ["no_replay"]} for row in staggered()]
    once = {"runs": []}
    refused = {"method": {"methods": ["no_ech"]}, "broken": {"methods": ["unmade"]}}
    refused |= {name: {"files": {"wrong": path}} for name, path in wrong_files.items()}
    return {
        "overlap": {
            "model": qwen3,
            "engine": chunked,
            "runs": [
                table("full"),
                table(),
                *radix(),
                *features(),
                *plain_runs(),
                wrong(),
                *seeds(),
                *going_wrong(),
                *faults(),
            ],
            "settings": {
                "methods": [*outside.NAMES, "faulty"],
                "vectors_mib": MOST_VECTORS * 64 * 4 / 2**20,
                # Every layer has a seat.
                "files": models.vector_files(*models.FILES),
            },
        },
        "no-overlap": {
            "model": llama,
            "engine": {
                **chunked,
                "disable_overlap_schedule": True,
                "enable_custom_logit_processor": True,
            },
            "runs": [table(), budget()],
            "settings": {**ALLOWING, **FILES},
        },
        "two-ranks": {
            "model": gemma,
            "engine": {**chunked, "tp_size": 2},
            "environment": {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"},
            "runs": [table()],
            "settings": {**ALLOWING, **FILES},
        },
        "retracted": {
            "model": qwen3,
            "engine": chunked,
            "environment": retract,
            "settings": FILES,
            "runs": [
                {"requests": staggered()},
                {"requests": without, "flush": True},
                *taken_back(),
                *fed_vectors(),
            ],
        },
        **{
            f"reasoner{suffix}": {
                "model": str(models.REASONER_PATH),
                "engine": {
                    **chunked,
                    "skip_tokenizer_init": False,
                    "max_total_tokens": 8192,
                    "disable_overlap_schedule": suffix == "-no-overlap",
                    "reasoning_parser": "qwen3" if suffix == "-no-overlap" else None,
                },
                "environment": retract if suffix == "-retracted" else {},
                "settings": {**ALLOWING, "files": models.vector_files("predictor", "east")},
                "runs": [
                    {"requests": models.requests({}, "full", reasoner)},
                    *([silent(off), *crowded()] if suffix == "-no-overlap" else []),
                ],
            }
            for suffix in REASONERS
        },
        "small-history": {
            "model": qwen3,
            "engine": chunked,
            "environment": retract,
            # One page of 64 concept tokens.
            "settings": {"history_mib": 64 * 64 * 12 / 2**20, **FILES},
            "runs": [{"requests": [{**row, "arrive": 0} for row in staggered()[:12]]}],
        },
        "stock": {
            "model": qwen3,
            "engine": chunked,
            "tokenlens": False,
            "runs": [*plain_runs(), {"requests": [{**wrong()["requests"][-1], "name": "spec"}]}],
            "beside": {"model": qwen3, "environment": UNLOADED, **once},
        },
        **{
            f"refused-{name}": {"model": qwen3, "engine": given, **once}
            for name, given in UNHOSTED.items()
        },
        **{
            f"refused-{name}": {"model": qwen3, "settings": settings, **once}
            for name, settings in refused.items()
        },
    }


def taken_back():
    """A latent request is retracted after a plain one wrote the KV of its visible tokens.

    ``first`` says them; ``writer`` has them as its prompt and leaves their KV in the cache; the
    ones of ``limited`` and ``unlimited`` say them again, four at once, so that while one is
    retracted another one runs, and each is met at other places.
    """
    # A prompt whose ids stand when all weights change by three parts in ten million: with other
    # ones, the rounding of a cached prompt is enough to take another way.
    latent = request(Scenario("first", (*LONG, START, 14), (soft(),), tokens=60), "full")
    rows = [{"requests": [latent], "flush": True}]
    rows.append(
        {"requests": [{"name": "writer", "continues": "first", "sampling": {"max_tokens": 2}}]}
    )
    for name, switches in (("limited", []), ("unlimited", ["no_limit"])):
        four = [
            latent | {"name": f"{name}-{i}", "switches": switches, "arrive": 4 * i}
            for i in range(4)
        ]
        rows.append({"requests": four})
    return rows


def fed_vectors():
    """Rows that are fed or added vectors, retracted: with the replay, and without.

    Those that are shifted and fed no mixtures are apart, and come twice: some are not retracted.
    """
    fed, shifted = (
        table("full", [one for one in SCENARIOS if one.name in kind])["requests"]
        for kind in ({*VECTORS, "soft-east"}, {"east", "east-back"})
    )
    shifted += [{**row, "name": f"{row['name']}/again"} for row in shifted]
    runs = []
    for rows in (fed, shifted):
        runs += [
            {"requests": [{**row, "arrive": 0} for row in rows], "flush": True},
            {"requests": [{**row, "switches": ["no_replay"]} for row in rows], "flush": True},
        ]
    return runs


def plain_runs():
    """Requests without a spec, with log-probabilities."""
    return [
        {
            "requests": [
                {
                    "name": f"plain-{row}",
                    "prompt": [1, 20 + row, START, 30 + row],
                    "sampling": {"max_tokens": 16, **extra},
                    "more": {"return_logprob": True, "top_logprobs_num": 3},
                }
            ],
            # With the same in the cache, the same is computed.
            "flush": True,
        }
        for row, extra in enumerate([{}, {"frequency_penalty": 0.4}, {}])
    ]


ALLOWING = {"methods": list(outside.NAMES)}
"""Methods from outside."""

FILES = {"files": models.vector_files()}
"""Vectors that rows of the table are shifted by."""

UNLOADED = {"TOKENLENS_TEST_UNLOADED": "1"}
"""The scheduler's process cannot import our package."""

UNHOSTED = {
    "pipeline": {"pp_size": 2},
    "speculative": {
        "speculative_algorithm": "NGRAM",
        "speculative_num_draft_tokens": 4,
    },
    "mixed": {"enable_mixed_chunk": True, "chunked_prefill_size": 32},
    "disaggregated": {"disaggregation_mode": "decode", "disaggregation_transfer_backend": "fake"},
    "sessions": {"enable_streaming_session": True},
    "data-parallel": {"tp_size": 2, "dp_size": 2},
    "attention": {"tp_size": 2, "dp_size": 2, "enable_dp_attention": True},
}
