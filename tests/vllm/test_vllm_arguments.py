"""Specs as extra arguments of a request, settings, traces: what needs no vLLM."""

import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import conformance_table as table
import pytest

from tokenlens.capabilities import TESTED
from tokenlens.serving.arguments import asks, spec_of
from tokenlens.serving.traces import Recorder
from tokenlens.spec import METHOD_CONFIGS, DecodingSpec, SpecError, parse_spec, preset
from tokenlens.vllm import Settings, extra_args, trace, versions
from tokenlens.vllm.refusals import asked_for, check_engine, check_request, names_tokenlens

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["qwen3-soft", "r1-llama-gumbel-published", "tiny-answer-now"])
def test_a_spec_survives_the_journey(name):
    spec = preset(name)
    arguments = extra_args(spec)
    # Over HTTP values are texts, numbers and lists of them.
    assert all(isinstance(value, (str, int, float, list)) for value in arguments.values())
    assert spec_of(arguments) == spec
    assert spec_of({"tokenlens": name}) == spec
    assert spec_of({"tokenlens_preset": name}) == spec


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
    arguments = {**extra_args("qwen3-soft"), "tokenlens_seed": 3}
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


def engine_config(**changes):
    """As much of vLLM's configuration as is looked at."""
    model = {"runner_type": "generate", "logits_processors": None, **changes.pop("model", {})}
    parallel = {"pipeline_parallel_size": 1, **changes.pop("parallel", {})}
    values = {"speculative_config": None, "kv_transfer_config": None, "additional_config": {}}
    return SimpleNamespace(
        model_config=SimpleNamespace(**model),
        parallel_config=SimpleNamespace(**parallel),
        **{**values, **changes},
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"speculative_config": object()}, "speculative"),
        ({"model": {"runner_type": "pooling"}}, "pooling"),
        ({"parallel": {"pipeline_parallel_size": 2}}, "pipeline_parallel_size: got 2"),
        ({"parallel": {"prefill_context_parallel_size": 2}}, "context parallelism"),
        ({"parallel": {"enable_batch_sharded_sampling": True}}, "enable_batch_sharded_sampling"),
        ({"parallel": {"enable_dbo": True}}, "dual batch overlap"),
        ({"model": {"is_encoder_decoder": True}}, "encoder-decoder"),
        ({"model": {"is_diffusion": True}}, "diffusion"),
        ({"model": {"enable_trace_replay": True}}, "enable_trace_replay"),
        ({"model": {"return_sampling_mask": True}}, "return_sampling_mask"),
        ({"model": {"enable_prompt_embeds": True}}, "enable_prompt_embeds"),
        ({"model": {"is_multimodal_model": True}}, "multimodal"),
        ({"kv_transfer_config": object()}, "KV connector"),
    ],
)
def test_engines_that_cannot_host_specs(monkeypatch, changes, word):
    """With stand-ins for vLLM's configuration.

    Most are refused by real starts as well, in ``test_vllm_admission.py``. Not these: on a
    processor vLLM switches dual batch overlap off by itself, and its first runner refuses context
    parallelism, sharded sampling, replay and sampling masks before we are asked; encoder-decoder,
    diffusion and multimodal models need checkpoints with processors of their own.
    """
    monkeypatch.setattr("tokenlens.vllm.versions.installed", lambda: "0.32.0")
    check_engine(engine_config())
    with pytest.raises(ValueError, match=word):
        check_engine(engine_config(**changes))


@pytest.mark.parametrize("name", ["enable_prompt_embeds", "is_multimodal_model"])
def test_an_engine_without_latent_methods_has_fewer_limits(monkeypatch, name):
    monkeypatch.setattr("tokenlens.vllm.versions.installed", lambda: "0.32.0")
    config = engine_config(model={name: True})
    config.additional_config = {"tokenlens": {"allow": ["answer_now", "no_thinking"]}}
    assert check_engine(config).allow == ("answer_now", "no_thinking")


@pytest.mark.parametrize("found", ["0.31.9", "0.99.0", "1.0.0", "abc", None])
def test_an_untested_version_needs_a_decision(monkeypatch, found):
    monkeypatch.setattr("tokenlens.vllm.versions.installed", lambda: found)
    with pytest.raises(ValueError, match="TOKENLENS_ANY_VLLM=1"):
        check_engine(engine_config())
    monkeypatch.setenv("TOKENLENS_ANY_VLLM", "1")
    check_engine(engine_config())


def test_requests_that_cannot_be_carried_out():
    spec = preset("qwen3-soft")
    params = SimpleNamespace(structured_outputs=None)
    check_request(spec, params, Settings(), SimpleNamespace())
    for request, word in (
        (SimpleNamespace(prompt_embeds=object()), "prompt_embeds"),
        (SimpleNamespace(resumable=True), "resumable"),
    ):
        with pytest.raises(SpecError, match=word):
            check_request(spec, params, Settings(), request)
    with pytest.raises(SpecError, match="structured_outputs"):
        check_request(spec, SimpleNamespace(structured_outputs=object()), Settings())
    # A spec that only records changes nothing.
    check_request(DecodingSpec(), SimpleNamespace(structured_outputs=object()), Settings())


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ('{"target_modules": ["q_proj", "embed_tokens"]}', "q_proj, embed_tokens"),
        ('{"target_modules": ".*embed.*"}', "embed"),
        ('{"target_modules": "all-linear"}', None),
        ('{"target_modules": ["q_proj", "v_proj"]}', None),
        ('{"r": 4}', "adapter_config.json"),
        ("{", "adapter_config.json"),
        (None, "adapter_config.json"),
    ],
)
def test_an_adapter_of_the_embedding_is_refused(tmp_path, config, word):
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(config)
    params = SimpleNamespace(structured_outputs=None)
    request = SimpleNamespace(
        lora_request=SimpleNamespace(lora_name="mine", lora_path=str(tmp_path))
    )
    # Methods that feed no mixtures do not mind.
    check_request(preset("tiny-no-thinking"), params, Settings(), request)
    if word is None:
        check_request(preset("qwen3-soft"), params, Settings(), request)
        return
    with pytest.raises(SpecError, match="lora_request: got 'mine'") as caught:
        check_request(preset("qwen3-soft"), params, Settings(), request)
    assert word in str(caught.value)


def test_every_method_is_in_the_table_or_refused():
    rows = [*table.METHODS.values(), *table.WORD_METHODS.values()]
    rows += [one.methods or () for one in table.SCENARIOS]
    found = {method["method"] for methods in rows for method in methods}
    assert found | table.REFUSED["vllm"] == set(METHOD_CONFIGS)
    for name in table.REFUSED["vllm"]:
        with pytest.raises(SpecError, match="vLLM does not host"):
            check_request(
                parse_spec({"methods": [{"method": name}]}),
                SimpleNamespace(structured_outputs=None),
                Settings(),
            )


def test_our_class_is_recognised_without_being_imported():
    assert names_tokenlens("tokenlens.vllm:TokenLens")
    assert names_tokenlens("tokenlens.vllm.processor:TokenLens")
    assert not names_tokenlens("other.vllm:TokenLens")
    assert not names_tokenlens("tokenlens.vllm:Other")
    assert not asked_for(engine_config())
    assert asked_for(engine_config(model={"logits_processors": ["tokenlens.vllm:TokenLens"]}))


def test_a_recorder_keeps_the_newest_totals_and_bounds_its_steps():
    spec = parse_spec({"trace": {"level": "full", "max_steps": 2, "max_entries": 1}})
    recorder = Recorder(spec, "vllm")
    step = [4, 1, 9, True, True, True, 0.5, 0.75, [0.75, 0.25], [9, 8], 0.0, []]
    step.append([{"tip": -3.0}, "to_latent"])
    assert recorder.add([[1, 1, 1, 1, 0, 0, 0, 1], [1, 1], step]) == [1, 1, 1, 1, 0, 0, 0]
    assert recorder.switches == 0
    assert recorder.add([[2, 2, 1, 1, 0, 1, 1, 1], [1, 1], step]) == [1, 1, 0, 0, 0, 1, 1]
    assert recorder.switches == 1
    recorder.add([[3, 2, 1, 1, 0, 1, 1, 2], [1, 1], step])
    found = recorder.trace()
    counts = found.counts
    assert (counts.tokens, counts.cold_stops, counts.switches) == (3, 1, 1)
    assert found.final_phase == "answer"
    assert (len(found.steps), found.dropped_steps) == (2, 1)
    assert found.steps[0].entries == ((9, 0.75),)
    assert (found.steps[0].edits, found.steps[0].switch) == ({"tip": -3.0}, "to_latent")
    output = SimpleNamespace(outputs=[SimpleNamespace(tokenlens=found)])
    assert trace(output) is found is trace(output.outputs[0])
    assert trace(SimpleNamespace(outputs=[])) is None
    assert Recorder(parse_spec({"trace": {"level": "off"}}), "vllm").trace() is None


def test_importing_is_light():
    code = (
        "import sys, tokenlens.vllm as t, tokenlens.vllm.plugin as p; t.extra_args('qwen3-soft');"
        "p.register(); p.register();"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'vllm', 'torch', 'transformers'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "[]"


def test_the_doctor_says_what_is_there(monkeypatch):
    from tokenlens.vllm import doctor

    monkeypatch.delenv("TOKENLENS_ANY_VLLM", raising=False)
    monkeypatch.setattr("tokenlens.vllm.versions.installed", lambda: None)
    assert doctor.facts() == [("vllm", "not installed; tokenlens supports 0.32.*")]
    monkeypatch.setattr("tokenlens.vllm.versions.installed", lambda: "0.99.0")
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    found = dict(doctor.facts())
    assert found["supported"].startswith("no: vllm: got version 0.99.0")
    assert found["model runner"].startswith("second")
    assert "VLLM_PLUGINS=other" in found["plugin"] or "missing" in found["plugin"]
    monkeypatch.setenv("TOKENLENS_ANY_VLLM", "1")
    assert "TOKENLENS_ANY_VLLM=1 goes on" in dict(doctor.facts())["supported"]
    assert doctor.support("0.32.7").startswith("yes")


def test_the_range_is_the_same_everywhere():
    low, (major, minor) = versions.OLDEST, versions.NEWEST
    extra = f"vllm>={low[0]}.{low[1]},<{major}.{minor + 1}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["optional-dependencies"]["vllm"] == [extra]
    assert versions.tested(TESTED["vllm"].removeprefix("vLLM "))
    for page in ("README.md", "docs/vllm.md"):
        assert f"`{extra}`" in (ROOT / page).read_text(), f"{page} does not name the range {extra}"
