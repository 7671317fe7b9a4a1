"""Specs as extra arguments of a request, refusals, traces: what needs no vLLM."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import conformance_table as table
import pytest
from vllm_support import needs_vllm

from tokenlens import versions
from tokenlens.errors import UnsupportedError
from tokenlens.serving.arguments import spec_of
from tokenlens.serving.traces import RequestRecorder
from tokenlens.spec import METHOD_CONFIGS, DecodingSpec, SpecError, parse_spec, preset
from tokenlens.spec.needs import Need, needs_of
from tokenlens.spec.registry import NEEDS_LATENT
from tokenlens.vllm import Settings, extra_args, trace
from tokenlens.vllm.drafts import refuse_beside_drafts
from tokenlens.vllm.refusals import (
    MULTIMODAL,
    asked_for,
    check_engine,
    check_request,
    names_tokenlens,
)

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tokenlens" / "assets"


@pytest.mark.parametrize("name", ["qwen3-soft", "r1-llama-gumbel-published", "tiny-answer-now"])
def test_a_spec_survives_the_journey(name):
    spec = preset(name)
    arguments = extra_args(spec)
    # Over HTTP values are texts, numbers and lists of them.
    assert all(isinstance(value, (str, int, float, list)) for value in arguments.values())
    assert spec_of(arguments) == spec
    assert spec_of({"tokenlens": name}) == spec
    assert spec_of({"tokenlens_preset": name}) == spec


def engine_config(**changes):
    """As much of vLLM's configuration as is looked at."""
    model = {"runner_type": "generate", "logits_processors": None, **changes.pop("model", {})}
    model = {"get_vocab_size": lambda: 150_000, **model}
    parallel = {"pipeline_parallel_size": 1, **changes.pop("parallel", {})}
    values = {"speculative_config": None, "kv_transfer_config": None, "additional_config": {}}
    values["scheduler_config"] = SimpleNamespace(max_num_seqs=256)
    return SimpleNamespace(
        model_config=SimpleNamespace(**model),
        parallel_config=SimpleNamespace(**parallel),
        **{**values, **changes},
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        *(
            (
                {"speculative_config": SimpleNamespace(method=name, num_speculative_tokens=1)},
                f"speculative_config: got {name!r}",
            )
            for name in ("ngram", "draft_model", "eagle", "eagle3", "mtp", "suffix")
        ),
        ({"parallel": {"use_ray": True}}, "distributed_executor_backend.*got 'ray'"),
        ({"parallel": {"data_parallel_backend": "ray"}}, "data_parallel_backend: got 'ray'"),
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
    """With fakes of vLLM's configuration.

    Most are refused by real starts as well, in ``test_vllm_admission.py``. Not these: on a
    CPU vLLM switches dual batch overlap off by itself, and its first runner refuses context
    parallelism, sharded sampling, replay and sampling masks before we are asked; encoder-decoder,
    diffusion and multimodal models need checkpoints with processors of their own; Ray is not
    installed.
    """
    monkeypatch.setattr("tokenlens.versions.installed", lambda engine: "0.32.0")
    check_engine(engine_config())
    with pytest.raises(ValueError, match=word):
        check_engine(engine_config(**changes))


def drafting(drafts=(), **changes):
    """An engine that drafts."""
    asked = {"method": "ngram", "num_speculative_tokens": 3, **dict(drafts)}
    config = {"speculative_config": SimpleNamespace(**asked), "use_v2_model_runner": True}
    return engine_config(**{**config, **changes})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"drafts": {"method": "eagle3"}}, "got 'eagle3'; allowed: ngram, ngram_gpu, draft_model"),
        ({"use_v2_model_runner": False}, "VLLM_USE_V2_MODEL_RUNNER=1"),
        ({"drafts": {"enable_adaptive_verification": True}}, "enable_adaptive_verification"),
        ({"drafts": {"rejection_sample_method": "synthetic"}}, "got 'synthetic'.*'standard'"),
        ({"drafts": {"num_speculative_tokens": 7}}, "got 256 with 8 rows.*at most 223"),
        ({"scheduler_config": SimpleNamespace(max_num_seqs=1024)}, "max_num_seqs: got 1024"),
    ],
)
def test_engines_that_draft(monkeypatch, changes, word):
    """With fakes of vLLM's configuration; `test_vllm_drafts.py` has a real engine that does."""
    monkeypatch.setattr("tokenlens.versions.installed", lambda engine: "0.32.0")
    check_engine(drafting())
    with pytest.raises(ValueError, match=word):
        check_engine(drafting(**changes))


GIVEN = {
    "answer_now": {"after": 2},
    "thinking_budget": {"budget": 9},
    "alpha_one": {"average_thinking": 12},
    "hapo": {"median": 0.1, "std": 0.5, "scale_pos": 1.0, "scale_neg": -1.0},
}


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_beside_drafts_more_than_logits_and_tokens_is_refused(name):
    soft = [{"method": "soft_thinking"}] if name in NEEDS_LATENT else []
    spec = parse_spec({"methods": [*soft, {"method": name, **GIVEN.get(name, {})}]})
    if needs_of(spec) != Need.NOTHING:
        with pytest.raises(SpecError, match="without speculative_config"):
            refuse_beside_drafts(spec, structured=False)
        return
    refuse_beside_drafts(spec, structured=False)
    with pytest.raises(SpecError, match="structured_outputs: got 'one'"):
        refuse_beside_drafts(spec, structured=True)


@pytest.mark.parametrize("seen", sorted(MULTIMODAL))
def test_multimodal_classes_are_allowed_by_a_list_and_by_the_operator(monkeypatch, seen):
    monkeypatch.setattr("tokenlens.versions.installed", lambda engine: "0.32.0")
    sees = {"is_multimodal_model": True}
    check_engine(engine_config(model={**sees, "architectures": [seen]}))
    for names in (["Other" + seen], [], None):
        config = engine_config(model={**sees, "architectures": names})
        monkeypatch.delenv("TOKENLENS_ANY_MODEL", raising=False)
        with pytest.raises(UnsupportedError, match=r"Set TOKENLENS_ANY_MODEL=1") as caught:
            check_engine(config)
        assert seen in str(caught.value)
        monkeypatch.setenv("TOKENLENS_ANY_MODEL", "1")
        check_engine(config)


@pytest.mark.parametrize("name", ["enable_prompt_embeds", "is_multimodal_model"])
def test_an_engine_without_latent_methods_has_fewer_limits(monkeypatch, name):
    monkeypatch.setattr("tokenlens.versions.installed", lambda engine: "0.32.0")
    config = engine_config(model={name: True})
    config.additional_config = {"tokenlens": {"allow": ["answer_now", "no_thinking"]}}
    assert check_engine(config).allow == ("answer_now", "no_thinking")


@pytest.mark.parametrize("found", ["0.31.9", "0.99.0", "1.0.0", "abc", None])
def test_an_untested_version_needs_a_decision(monkeypatch, found):
    monkeypatch.setattr("tokenlens.versions.installed", lambda engine: found)
    with pytest.raises(ValueError, match="TOKENLENS_ANY_VLLM=1"):
        check_engine(engine_config())
    monkeypatch.setenv("TOKENLENS_ANY_VLLM", "1")
    check_engine(engine_config())


def test_an_engine_whose_places_are_others_is_refused(monkeypatch):
    monkeypatch.setattr("tokenlens.versions.installed", lambda engine: "0.32.0")
    check_engine(engine_config())
    monkeypatch.setattr("tokenlens.vllm.refusals.LOST", ["vllm.module.Class.name (missing)"])
    with pytest.raises(UnsupportedError, match=r"not found as tested.*vllm\.module\.Class\.name"):
        check_engine(engine_config())


@needs_vllm
def test_a_vllm_that_lacks_a_place_runs_for_those_who_do_not_ask():
    """Other people's engines start beside the installed package, ours does not."""
    code = """
import vllm.v1.engine.output_processor as module
del module.OutputProcessor.abort_requests
module.RequestState._new_completion_output = lambda self, ids: None
from tokenlens.vllm import plugin
plugin.register()
from vllm.engine.arg_utils import EngineArgs
plain = dict(model=MODEL, dtype="float32", max_model_len=64)
EngineArgs(**plain).create_engine_config()
try:
    EngineArgs(**plain, logits_processors=["tokenlens.vllm:TokenLens"]).create_engine_config()
except NotImplementedError as error:
    print("refused:", error)
"""
    code = code.replace("MODEL", repr(str(ASSETS / "tiny-reasoner-small")))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    words = next(line for line in done.stdout.splitlines() if line.startswith("refused:"))
    assert "OutputProcessor.abort_requests (missing)" in words
    assert "_new_completion_output (got: (self, ids); allowed: (self, token_ids, " in words


def test_requests_that_cannot_be_carried_out():
    spec = preset("qwen3-soft")
    check_request(spec, SimpleNamespace(), Settings(), SimpleNamespace())
    for request, word in (
        (SimpleNamespace(prompt_embeds=object()), "prompt_embeds"),
        (SimpleNamespace(resumable=True), "resumable"),
    ):
        with pytest.raises(SpecError, match=word):
            check_request(spec, SimpleNamespace(), Settings(), request)


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
    request = SimpleNamespace(
        lora_request=SimpleNamespace(lora_name="mine", lora_path=str(tmp_path))
    )
    # Methods that feed no mixtures do not mind.
    check_request(preset("tiny-no-thinking"), SimpleNamespace(), Settings(), request)
    if word is None:
        check_request(preset("qwen3-soft"), SimpleNamespace(), Settings(), request)
        return
    with pytest.raises(SpecError, match="lora_request: got 'mine'") as caught:
        check_request(preset("qwen3-soft"), SimpleNamespace(), Settings(), request)
    assert word in str(caught.value)


def test_every_method_is_in_the_table_or_refused():
    rows = [*table.METHODS.values(), *table.WORD_METHODS.values(), *table.READ.values()]
    rows += [one.methods or () for one in table.EVERY]
    found = {method["method"] for methods in rows for method in methods}
    assert found | table.REFUSED["vllm"] == set(METHOD_CONFIGS)
    for name in table.REFUSED["vllm"]:
        with pytest.raises(SpecError, match="vLLM does not host"):
            check_request(
                parse_spec({"methods": [{"method": name}]}), SimpleNamespace(), Settings()
            )


def test_our_class_is_recognised_without_being_imported():
    assert names_tokenlens("tokenlens.vllm:TokenLens")
    assert names_tokenlens("tokenlens.vllm.processor:TokenLens")
    assert not names_tokenlens("other.vllm:TokenLens")
    assert not names_tokenlens("tokenlens.vllm:Other")
    assert not asked_for(engine_config())
    assert asked_for(engine_config(model={"logits_processors": ["tokenlens.vllm:TokenLens"]}))


def test_a_trace_is_found_on_either_output():
    found = RequestRecorder(DecodingSpec(), "vllm").trace()
    output = SimpleNamespace(outputs=[SimpleNamespace(tokenlens=found)])
    assert trace(output) is found is trace(output.outputs[0])
    assert trace(SimpleNamespace(outputs=[])) is None


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
    monkeypatch.setattr("tokenlens.versions.installed", lambda engine: None)
    assert doctor.facts() == [
        ("vllm", "not installed; tokenlens supports " + versions.supported("vllm"))
    ]
    monkeypatch.setattr("tokenlens.versions.installed", lambda engine: "0.99.0")
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    found = dict(doctor.facts())
    assert found["supported"].startswith("no: vllm: got version 0.99.0")
    assert found["model runner"].startswith("second")
    assert "VLLM_PLUGINS=other" in found["plugin"] or "missing" in found["plugin"]
    monkeypatch.setenv("TOKENLENS_ANY_VLLM", "1")
    assert "TOKENLENS_ANY_VLLM=1 goes on" in dict(doctor.facts())["supported"]
    assert doctor.support("0.32.7").startswith("yes")
