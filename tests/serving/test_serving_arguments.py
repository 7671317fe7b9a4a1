"""Specs as extra arguments of a request, the operator's bounds, and what the front end keeps."""

import pytest

from tokenlens.serving.arguments import (
    SAMPLE_KEY,
    SEED_KEY,
    asks,
    refuse_internal,
    sample_of,
    seeded,
    spec_of,
)
from tokenlens.serving.settings import Settings
from tokenlens.serving.traces import RequestRecorder
from tokenlens.spec import METHOD_CONFIGS, SpecError, parse_spec, preset
from tokenlens.spec.registry import LATENT_METHODS
from tokenlens.trace.reports import TOTALS, RequestReport


def test_flat_fields():
    spec = spec_of(
        {
            "tokenlens_preset": "qwen3-soft",
            "tokenlens_seed": 7,
            "tokenlens_soft_thinking.top_k": 11,
            "tokenlens_soft_thinking.cold_stop.patience": 5,
            "tokenlens_gumbel_noise.temperature": 0.25,
            "tokenlens_trace.level": "full",
            "tokenlens_phase.think_end": [3, 4],
            "other": 1,
        }
    )
    soft, gumbel = spec.methods
    assert (spec.seed, soft.top_k, soft.cold_stop.patience) == (7, 11, 5)
    assert (
        soft.cold_stop.entropy_threshold
        == preset("qwen3-soft").methods[0].cold_stop.entropy_threshold
    )
    assert gumbel.temperature == 0.25
    assert spec.trace.level == "full"
    assert spec.phase.think_end == (3, 4)
    assert spec.phase.think_start == "<think>"


def test_flat_fields_change_a_whole_spec():
    arguments = {"tokenlens": preset("qwen3-soft").model_dump_json(), "tokenlens_seed": 3}
    assert spec_of(arguments) == preset("qwen3-soft").model_copy(update={"seed": 3})


@pytest.mark.parametrize("arguments", [None, {}, {"kv_transfer_params": {}}])
def test_a_request_may_ask_for_nothing(arguments):
    assert not asks(arguments)
    assert spec_of(arguments) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tokenlens": "nope"}, ["preset", "'nope'"]),
        ({"tokenlens": "{"}, ["spec", "JSON"]),
        ({"tokenlens": 3}, ["tokenlens", "3"]),
        ({"tokenlens_preset": 3}, ["preset", "3"]),
        ({"tokenlens_seed": -1}, ["seed", "-1"]),
        ({"tokenlens_soft_thinking": 1}, ["tokenlens_soft_thinking", "METHOD.FIELD"]),
        ({"tokenlens_a.b.c.d.e": 1}, ["tokenlens_a.b.c.d.e"]),
        ({"tokenlens_soft_thinking.top_k.x": 1, "tokenlens_soft_thinking.top_k": 1}, ["top_k"]),
        ({"tokenlens_gumbel_noise.temperature": 1.0}, ["gumbel_noise", "soft_thinking"]),
        ({"tokenlens": '{"methods": 1, "sed": 2}'}, ["sed"]),
    ],
)
def test_a_wrong_argument_is_named(arguments, words):
    with pytest.raises(SpecError) as caught:
        spec_of(arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_settings_bound_requests():
    settings = Settings.of({"tokenlens": {"allow": ["soft_thinking"], "max_entries": 10}})
    settings.check(parse_spec({"methods": [{"method": "soft_thinking", "max_entries": 10}]}))
    with pytest.raises(SpecError, match=r"methods\[0\].method: got 'answer_now'"):
        settings.check(parse_spec({"methods": [{"method": "answer_now", "after": 3}]}))
    with pytest.raises(SpecError, match="at most 10 on this server"):
        settings.check(parse_spec({"methods": [{"method": "soft_thinking"}]}))
    assert Settings.of(None) == Settings.of({}) == Settings()
    with pytest.raises(SpecError, match="history_mib"):
        Settings.of({"tokenlens": {"history_mib": 0}})
    with pytest.raises(SpecError, match="histroy_mib"):
        Settings.of({"tokenlens": {"histroy_mib": 1}})


def test_the_owner_s_bound_is_on_all_that_an_engine_keeps_of_a_concept_token():
    # What is fed would lose its last entries without a word.
    settings = Settings(max_entries=4)
    settings.check(parse_spec({"methods": [{"method": "cot2", "draws": 4}]}))
    with pytest.raises(SpecError, match=r"methods\[0\].draws: got 16; allowed: at most 4 on"):
        settings.check(parse_spec({"methods": [{"method": "cot2", "draws": 16}]}))
    bound = {
        name: config.model_fields
        for name, config in METHOD_CONFIGS.items()
        if name in LATENT_METHODS and {"max_entries", "draws"}.isdisjoint(config.model_fields)
    }
    # These feed one vector, which servers refuse.
    assert set(bound) == {"coconut", "latent_mas"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"tokenlens": {"methods": [{"method": "soft_thinking", "x": ["y"] * 70_000}]}},
        {f"tokenlens_soft_thinking.x{index}": 1 for index in range(10_000)},
        {"tokenlens_soft_thinking.top_k": "y" * 70_000},
    ],
)
def test_megabytes_are_refused_before_anything_is_made_of_them(arguments, monkeypatch):
    monkeypatch.setattr("tokenlens.serving.arguments.json.dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(SpecError, match="spec: got a larger one; allowed: at most 65536 bytes"):
        spec_of(arguments)


def test_keys_of_python_s_own_kinds_are_none_of_ours():
    assert spec_of({1: 2, "tokenlens": "tiny-soft"}) == preset("tiny-soft")
    assert spec_of({1: 2, "tokenlens_preset": "tiny-soft"}) == preset("tiny-soft")


def test_a_recorder_keeps_the_newest_totals_and_bounds_its_steps():
    spec = parse_spec({"trace": {"level": "full", "max_steps": 2, "max_entries": 1}})
    recorder = RequestRecorder(spec, "vllm")
    step = {"position": 4, "phase": 1, "token": 9, "latent": True, "forced": True, "valid": True}
    step |= {"entropy": 0.5, "max_probability": 0.75, "weights": [0.75, 0.25], "ids": [9, 8]}
    step |= {"log_probability": 0.0, "scores": [], "records": [{"tip": -3.0}, "to_latent"]}
    names = (*TOTALS, "cold_stops", "gate_switches", "theirs")

    def report(*counts, phase=1):
        # As an engine's wire gives it back: a list.
        return list(RequestReport(dict(zip(names, counts, strict=True)), phase, False, {}, step))

    added = recorder.add(report(1, 1, 1, 1, 0, 0, 0, 0))
    assert added == dict(zip(names, (1, 1, 1, 1, 0, 0, 0, 0))) | {"mode_changes": 0}
    added = recorder.add(report(2, 2, 1, 1, 0, 1, 1, 5))
    assert added == dict(zip(names, (1, 1, 0, 0, 0, 1, 1, 5))) | {"mode_changes": 1}
    recorder.add(report(3, 2, 1, 1, 0, 1, 1, 6, phase=2))
    found = recorder.trace()
    counts = found.counts
    assert (counts.tokens, counts.cold_stops) == (3, 1)
    # A gate's switches and changes of mode are two numbers.
    assert (counts.gate_switches, counts.mode_changes, counts.others) == (1, 1, {"theirs": 6})
    assert found.final_phase == "answer"
    assert (len(found.steps), found.dropped_steps) == (2, 1)
    assert found.steps[0].entries == ((9, 0.75),)
    assert (found.steps[0].edits, found.steps[0].switch) == ({"tip": -3.0}, "to_latent")
    assert RequestRecorder(parse_spec({"trace": {"level": "off"}}), "vllm").trace() is None


NOISY = {"methods": [{"method": "soft_thinking"}, {"method": "gumbel_noise"}]}


def test_the_front_end_finds_the_seed_and_the_worker_reads_it():
    spec = parse_spec(NOISY)
    asked = {"tokenlens": spec.model_dump_json()}
    for engine_seed, first in ((7, 7), (0, 0), (None, None)):
        sent = seeded(asked, spec, engine_seed)
        found = [sample_of({**sent, SAMPLE_KEY: index}) for index in range(4)]
        assert found[0] == sample_of(sent)
        seeds = [one.seed for one, index in found]
        assert len(set(seeds)) == 4
        assert [index for _, index in found] == [0] * 4
        assert first is None or seeds[0] == first
    drawn = [sample_of(seeded(asked, spec, None))[0].seed for _ in range(20)]
    assert len(set(drawn)) == 20


def test_a_seed_that_is_given_stays_and_samples_are_numbered():
    spec = parse_spec({**NOISY, "seed": 3})
    sent = seeded({"tokenlens": spec.model_dump_json()}, spec, 9)
    assert SEED_KEY not in sent
    assert sample_of({**sent, SAMPLE_KEY: 2}) == (spec, 2)
    quiet = parse_spec("qwen3-soft")
    assert SEED_KEY not in seeded({"tokenlens": "qwen3-soft"}, quiet, 9)


def test_a_worker_does_not_make_a_seed_up():
    # Ranks would make up different ones.
    with pytest.raises(SpecError, match="seed: got None"):
        sample_of({"tokenlens": NOISY})


@pytest.mark.parametrize("key", [SAMPLE_KEY, SEED_KEY])
def test_a_client_may_not_set_what_is_ours(key):
    with pytest.raises(SpecError, match=key):
        refuse_internal({"tokenlens": NOISY, key: 1})
    refuse_internal({"tokenlens": NOISY})


def test_a_recorder_says_which_sample_and_whose_noise():
    recorder = RequestRecorder(parse_spec({**NOISY, "seed": 3}), "vllm", 2)
    counts = dict.fromkeys(TOTALS, 1)
    recorder.add(RequestReport(counts, 1, False))
    assert (recorder.trace().sample, recorder.trace().same_noise) == (2, False)
    recorder.add(RequestReport(counts | {"tokens": 2}, 1, True))
    recorder.add(RequestReport(counts | {"tokens": 3}, 1, False))
    assert recorder.trace().same_noise
