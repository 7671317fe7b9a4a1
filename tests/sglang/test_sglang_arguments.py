"""Specs as custom parameters, settings, refusals, hooks, traces: what needs no SGLang."""

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from tokenlens import versions
from tokenlens.errors import UnsupportedError
from tokenlens.serving.arguments import spec_of
from tokenlens.serving.hooks import install
from tokenlens.serving.traces import RequestRecorder
from tokenlens.sglang import Settings, custom_params, hooks, refusals, switch, trace
from tokenlens.sglang.refusals import check_engine, check_request
from tokenlens.spec import DecodingSpec, SpecError, parse_spec, preset
from tokenlens.trace.reports import TOTALS, RequestReport


@pytest.fixture(autouse=True)
def _tested_version(monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda engine: versions.tested(engine)[-1])


@pytest.mark.parametrize("name", ["qwen3-soft", "r1-llama-gumbel-published", "tiny-answer-now"])
def test_a_spec_survives_the_journey(name):
    spec = preset(name)
    assert spec_of(custom_params(spec)) == spec
    assert spec_of({"tokenlens": name}) == spec
    assert spec_of({"tokenlens": spec.model_dump_json(), "thinking_budget": 3}) == spec
    assert spec_of({"thinking_budget": 3}) is None
    assert spec_of(None) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tokenlens": {"methods": [{"method": "soft_thinking", "top_k": -1}]}}, ["top_k", "-1"]),
        ({"tokenlens": "qwen3-sofd"}, ["preset", "qwen3-sofd"]),
        ({"tokenlens": 3}, ["tokenlens", "3"]),
        ({"tokenlens": {"methodz": []}}, ["methodz"]),
    ],
)
def test_a_bad_spec_names_its_field(given, words):
    with pytest.raises(SpecError) as caught:
        spec_of(given)
    assert all(word in str(caught.value) for word in words)


FINE = {"pp_size": 1, "disaggregation_mode": "null", "tp_size": 2, "dp_size": 1}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pp_size": 2}, ["pp_size", "2", "tp_size"]),
        *(
            (
                {"speculative_algorithm": name},
                ["speculative_algorithm", name, "judged by the state"],
            )
            for name in ("EAGLE", "EAGLE3", "NGRAM", "STANDALONE", "NEXTN")
        ),
        ({"enable_mixed_chunk": True}, ["enable_mixed_chunk"]),
        ({"disaggregation_mode": "prefill"}, ["disaggregation_mode", "prefill"]),
        ({"enable_dp_attention": True}, ["data-parallel attention"]),
        ({"attn_dp_size": 2}, ["data-parallel attention"]),
        ({"dp_size": 2}, ["dp_size"]),
        ({"enable_streaming_session": True}, ["sessions"]),
        ({"enable_session_radix_cache": True}, ["sessions"]),
        ({"dllm_algorithm": "x"}, ["dllm_algorithm"]),
        ({"enable_watermark": True}, ["enable_watermark"]),
        ({"rl_on_policy_target": "fsdp"}, ["rl_on_policy_target"]),
        ({"enable_two_batch_overlap": True}, ["enable_two_batch_overlap"]),
        ({"enable_pdmux": True}, ["enable_pdmux"]),
        ({"attn_cp_size": 2}, ["attn_cp_size"]),
        ({"dcp_size": 2}, ["dcp_size"]),
        ({"enable_hisparse": True}, ["enable_hisparse"]),
        ({"enable_lmcache": True}, ["enable_lmcache"]),
        ({"smg_grpc_mode": True}, ["smg_grpc_mode", "HTTP"]),
        ({"grpc_mode": True}, ["grpc_mode", "HTTP"]),
        ({"grpc_port": 30001}, ["grpc_port", "30001", "trace"]),
        ({"use_ray": True}, ["use_ray"]),
        ({"nnodes": 2}, ["nnodes", "2"]),
        ({"encoder_only": True}, ["encoder_only"]),
        ({"language_only": True}, ["language_only"]),
        ({"is_embedding": True}, ["is_embedding"]),
        ({"elastic_ep_backend": "mooncake"}, ["elastic_ep_backend"]),
        ({"ep_join_mode": "scale"}, ["ep_join_mode"]),
    ],
)
def test_an_engine_that_cannot_host_specs_is_refused(given, words):
    check_engine(SimpleNamespace(**FINE))
    with pytest.raises(UnsupportedError) as caught:
        check_engine(SimpleNamespace(**{**FINE, **given}))
    assert all(word in str(caught.value) for word in words)
    assert len(str(caught.value).splitlines()) == 1


def test_an_untested_version_is_refused_unless_its_owner_insists(monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda engine: "0.4.6.post1")
    with pytest.raises(UnsupportedError, match=r"0\.4\.6\.post1.*TOKENLENS_ANY_SGLANG"):
        check_engine(SimpleNamespace(**FINE))
    monkeypatch.setenv("TOKENLENS_ANY_SGLANG", "1")
    check_engine(SimpleNamespace(**FINE))


def test_the_rust_front_end_is_refused(monkeypatch):
    monkeypatch.setenv("SGLANG_RUST_SERVER", "true")
    with pytest.raises(UnsupportedError, match="SGLANG_RUST_SERVER"):
        check_engine(SimpleNamespace(**FINE))


def test_a_multimodal_model_is_refused_where_mixtures_are_allowed(monkeypatch):
    model = SimpleNamespace(is_multimodal=True)
    with pytest.raises(UnsupportedError, match="multimodal"):
        refusals.check_model(model, Settings())
    refusals.check_model(model, Settings(allow=("no_thinking",)))
    monkeypatch.setenv("TOKENLENS_ANY_MODEL", "1")
    refusals.check_model(model, Settings())
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        refusals.check_model(SimpleNamespace(is_encoder_decoder=True), Settings())


SOFT = parse_spec({"methods": [{"method": "soft_thinking"}]})


@pytest.mark.parametrize(
    ("request_of", "params_of", "words"),
    [
        ({}, {"beam_width": 3}, ["beam_width", "3"]),
        ({"session_params": {"id": "x"}}, {}, ["session_params"]),
        ({"session_id": "x"}, {}, ["session_id"]),
        ({"input_embeds": [[0.0]]}, {}, ["input_embeds"]),
        ({"positional_embed_overrides": [1]}, {}, ["positional_embed_overrides"]),
        ({"return_sampling_mask": True}, {}, ["return_sampling_mask"]),
    ],
)
def test_a_request_that_cannot_be_hosted_is_refused(request_of, params_of, words):
    check_request(SOFT, SimpleNamespace(), SimpleNamespace(), Settings())
    request, params = SimpleNamespace(**request_of), SimpleNamespace(**params_of)
    with pytest.raises(SpecError) as caught:
        check_request(SOFT, request, params, Settings())
    assert all(word in str(caught.value) for word in words)
    # Without a method there is nothing to host.
    check_request(DecodingSpec(), request, params, Settings())


def test_the_owners_bounds():
    with pytest.raises(SpecError, match="at most 8 on this server"):
        check_request(SOFT, SimpleNamespace(), SimpleNamespace(), Settings(max_entries=8))


def test_the_switch(monkeypatch):
    monkeypatch.setattr(switch, "check_loading", lambda: None)
    monkeypatch.delenv(switch.VARIABLE, raising=False)
    assert switch.settings() is None
    switch.turn_on({"max_entries": 9})
    assert switch.settings() == Settings(max_entries=9)
    switch.turn_off()
    assert switch.VARIABLE not in os.environ
    with pytest.raises(SpecError, match="allow"):
        switch.turn_on({"allow": ["sofd"]})
    assert switch.VARIABLE not in os.environ


def test_a_plugin_that_sglang_would_not_load_is_refused(monkeypatch):
    monkeypatch.setattr(switch, "entry_points", lambda group: [])
    with pytest.raises(UnsupportedError, match="entry point"):
        switch.check_loading()
    monkeypatch.setattr(switch, "entry_points", lambda group: [SimpleNamespace(name="tokenlens")])
    switch.check_loading()
    monkeypatch.setenv("SGLANG_PLUGINS", "others, tokenlens")
    switch.check_loading()
    monkeypatch.setenv("SGLANG_PLUGINS", "others")
    with pytest.raises(UnsupportedError, match="SGLANG_PLUGINS"):
        switch.check_loading()


class Wrapped:
    """What hooks are put on."""

    def plain(self, value):
        return value

    @classmethod
    def of_class(cls, value):
        return cls, value

    @staticmethod
    def of_nobody(value):
        return value


def test_hooks_keep_kinds_and_are_put_once(monkeypatch):
    module = ModuleType("tokenlens_test_module")
    module.Wrapped = Wrapped
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = ("plain", "of_class", "of_nobody")
    module.around = lambda original, *args: (original(*args), "seen")
    monkeypatch.setitem(sys.modules, f"tokenlens_test.{module.__name__}", module)
    # Where the check looks for what is put around it.
    monkeypatch.setitem(sys.modules, f"{hooks.PACKAGE}.{module.__name__}", module)
    ours = f"{module.__name__}.around"
    targets = {module.__name__: {f"Wrapped.{name}": ours for name in names}}
    hooks.check(targets)
    install(targets, "tokenlens_test")
    install(targets, "tokenlens_test")

    class Below(Wrapped):
        pass

    assert Wrapped().plain(1) == (1, "seen")
    assert Below.of_class(2) == ((Below, 2), "seen")
    assert Wrapped.of_nobody(3) == (3, "seen")
    lost = {module.__name__: {"Wrapped.gone": ours}, "tokenlens_no_such_module": {"x": ours}}
    with pytest.raises(SystemExit, match=r"Wrapped\.gone.*tokenlens_no_such_module"):
        hooks.check(lost)
    with pytest.raises(SystemExit, match=r"Wrapped\.gone"):
        install({module.__name__: {"Wrapped.gone": ours}}, "tokenlens_test", hooks.refuse_missing)
    install({module.__name__: {"Wrapped.gone": ours}}, "tokenlens_test")


def test_a_trace_comes_back_as_a_record():
    recorder = RequestRecorder(SOFT, "sglang")
    recorder.add(RequestReport(dict(zip(TOTALS, (2, 2, 1, 0, 0))), 1))
    found = recorder.trace()
    output = {"meta_info": {"tokenlens": found.model_dump(mode="json")}}
    assert trace(output) == found
    assert found.engine == "sglang"
    assert trace({"meta_info": {}}) is None


def test_importing_needs_neither_sglang_nor_torch():
    code = (
        "import sys, tokenlens.sglang as s; s.custom_params('qwen3-soft'); s.Settings();"
        "assert not {'torch', 'sglang'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("value", ["1", "true", "YES", "y", "on"])
def test_a_front_end_in_rust_is_refused(monkeypatch, value):
    monkeypatch.setenv("SGLANG_RUST_SERVER", value)
    with pytest.raises(UnsupportedError, match="SGLANG_RUST_SERVER"):
        check_engine(SimpleNamespace(**FINE))
    for off in ("0", "false", "no", ""):
        monkeypatch.setenv("SGLANG_RUST_SERVER", off)
        check_engine(SimpleNamespace(**FINE))


def test_tokenizer_workers_serve_our_application(monkeypatch):
    monkeypatch.setattr(switch, "check_loading", lambda: None)
    for name in (switch.VARIABLE, switch.APPLICATION):
        monkeypatch.delenv(name, raising=False)
    workers = SimpleNamespace(**FINE, tokenizer_worker_num=4)
    switch.turn_on({})
    assert os.environ[switch.APPLICATION] == "tokenlens.sglang.workers:app"
    check_engine(workers)
    switch.turn_off()
    assert switch.APPLICATION not in os.environ
    # An application of the operator's own would be served without tokenlens.
    monkeypatch.setenv(switch.APPLICATION, "mine:app")
    switch.turn_on({})
    with pytest.raises(UnsupportedError, match="mine:app"):
        check_engine(workers)
    check_engine(SimpleNamespace(**FINE, tokenizer_worker_num=1))
    switch.turn_off()
    assert os.environ[switch.APPLICATION] == "mine:app"


class Waiting:
    """Stands in for a request of SGLang's that is about to be queued."""

    def __init__(self, **custom_params):
        self.sampling_params = SimpleNamespace(custom_params=custom_params or None)
        self.failed = None

    def set_finish_with_abort(self, message):
        self.failed = message


@pytest.mark.parametrize("on", [True, False])
def test_a_scheduler_queues_what_was_admitted_and_fails_the_rest(monkeypatch, on):
    from tokenlens.serving.admission import marked
    from tokenlens.sglang import plugin

    monkeypatch.setattr(switch, "check_loading", lambda: None)
    monkeypatch.delenv(switch.VARIABLE, raising=False)
    monkeypatch.delenv(switch.APPLICATION, raising=False)
    if on:
        switch.turn_on({})
    queued = []

    def queue(req):
        # What we do not let through must not reach the scheduler.
        plugin.add_request_to_queue(lambda _, one: queued.append(one), None, req)
        return req

    try:
        for plain in (queue(Waiting()), queue(Waiting(thinking_budget=3))):
            assert plain.failed is None
        right = queue(Waiting(**marked({"tokenlens": "{}"}), rest=1))
        stranger = queue(Waiting(tokenlens="{}", tokenlens_seed=1, _tokenlens_sample=2, rest=1))
        forged = queue(Waiting(tokenlens="{}", _tokenlens_admitted="1"))
        for failed in (stranger, forged) if on else (right, stranger, forged):
            words = "no front end" if on else "started without it"
            assert words in failed.failed
            assert not spec_of(failed.sampling_params.custom_params)
        assert stranger.sampling_params.custom_params == {"rest": 1}
        assert (right.failed is None) == on
        assert len(queued) == 5
    finally:
        switch.turn_off()


def test_routers_between_processes_may_leave_an_entry_empty():
    """What SGLang's routers make of a batch in which only some requests report."""
    from tokenlens.sglang import responses

    manager = SimpleNamespace(_tokenlens=None)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(responses, "admission_of", lambda _: object())
    try:
        seen = {}
        for entry in (None, [], [None]):
            responses.update_request_meta_info(
                lambda *_: None, manager, seen, SimpleNamespace(), {"tokenlens": [entry]}, 0, None
            )
        assert seen == {}
    finally:
        monkey.undo()


def test_an_idle_scheduler_gives_back_what_has_ended():
    import weakref

    from tokenlens.sglang import scheduler
    from tokenlens.sglang.runtime import Known, RequestFollower

    class Request:
        """Stands in for a request of SGLang's."""

        retraction_count, ended = 0, False

        def finished(self):
            return self.ended

    going, ended, lost = Request(), Request(), Request()
    ended.ended = True
    finished = []
    follower = RequestFollower.__new__(RequestFollower)
    follower.batch = SimpleNamespace(finish=finished.extend)
    follower._known = {
        name: Known(weakref.ref(req), 0)
        for name, req in (("going", going), ("ended", ended), ("lost", lost))
    }
    del lost
    runner = SimpleNamespace(_tokenlens=follower)
    manager = SimpleNamespace(tp_worker=SimpleNamespace(model_runner=runner))
    assert scheduler.on_idle(lambda _: "stock's own", manager) == "stock's own"
    assert sorted(finished) == ["ended", "lost"]
    assert list(follower._known) == ["going"]
    # An engine without tokenlens is left alone.
    bare = SimpleNamespace(tp_worker=SimpleNamespace(model_runner=SimpleNamespace()))
    assert scheduler.on_idle(lambda _: 3, bare) == 3
