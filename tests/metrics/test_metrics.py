"""The collector's figures are a trace's, and the dashboard asks for nothing that is not there."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tokenlens import __version__
from tokenlens.hf import generate_kwargs, traces
from tokenlens.metrics import COUNTERS, GAUGES, ROUTED, Collector, Grown

ROOT = Path(__file__).parents[2]


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture(scope="module")
def found():
    """Full traces of a real run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tokenlens.assets import path_of

    path = path_of("tiny-reasoner-small")
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    spec = {"methods": [{"method": "soft_thinking"}, {"method": "random_route"}]}
    kwargs = generate_kwargs(model, tokenizer, spec | {"trace": {"level": "full"}})
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "make 24 using 3,5,7,2"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    model.generate(**prompt, **kwargs, do_sample=False, max_new_tokens=80)
    return traces(kwargs)


def test_a_trace_s_totals_are_counted(registry, found):
    collector = Collector("hf", registry)
    for trace in found:
        collector.trace(trace)
    counts, steps = found[0].counts, found[0].steps
    value = registry.get_sample_value
    assert value("tokenlens_tokens_total") == counts.tokens == 80
    assert value("tokenlens_latent_total") == counts.latent_steps > 5
    assert value("tokenlens_discrete_total") == counts.tokens - counts.latent_steps
    assert value("tokenlens_forced_total") == counts.forced_steps
    assert value("tokenlens_mode_changes_total") == counts.mode_changes > 5
    assert value("tokenlens_entropy_nats_count") == len(steps)
    assert value("tokenlens_entropy_nats_sum") == pytest.approx(sum(s.entropy for s in steps))
    assert value("tokenlens_latent_run_tokens_sum") == counts.latent_steps
    assert value("tokenlens_build_info", {"engine": "hf", "version": __version__}) == 1


def test_steps_and_routes(registry):
    collector = Collector("router", registry)
    collector.add(Grown(tokens=5, latent=2, cold_stops=1))
    collector.count("routed_tokens", 7, model="large")
    collector.count("refusals")
    collector.set("slots_in_use", 3)
    value = registry.get_sample_value
    assert value("tokenlens_discrete_total") == 3
    assert value("tokenlens_cold_stops_total") == 1
    assert value("tokenlens_routed_tokens_total", {"model": "large"}) == 7
    assert value("tokenlens_refusals_total") == 1
    assert value("tokenlens_slots_in_use") == 3


def test_the_dashboard_asks_for_what_there_is(registry):
    collector = Collector("vllm", registry)
    for name in ROUTED:
        collector.count(name, model="small")
    text = generate_latest(registry).decode()
    dashboard = (ROOT / "examples/grafana/tokenlens.json").read_text()
    assert len({panel["id"] for panel in json.loads(dashboard)["panels"]}) == 13
    asked = set(re.findall(r"tokenlens_[a-z_]+", dashboard))
    exported = set(re.findall(r"^(tokenlens_[a-z_]+)", text, re.MULTILINE))
    assert asked <= exported
    # ... and shows everything that is counted.
    for name in (*COUNTERS, *ROUTED):
        assert f"tokenlens_{name}_total" in asked
    for name in GAUGES:
        assert f"tokenlens_{name}" in asked


def test_without_prometheus_client_nothing_happens():
    code = textwrap.dedent("""
        import sys
        sys.modules["prometheus_client"] = None
        from tokenlens.metrics import Grown, collector
        collector("hf").count("refusals")
        collector("hf").add(Grown(tokens=1))
        collector("hf").set("slots_in_use", 1)
    """)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_process_has_one_collector():
    code = "from tokenlens.metrics import collector; assert collector('a') is collector('b')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_engine_s_front_end_reports_to_it():
    code = textwrap.dedent("""
        from prometheus_client import REGISTRY
        from tokenlens.serving import metrics
        from tokenlens.serving.traces import RequestRecorder as Recorder
        from tokenlens.spec import DecodingSpec
        from tokenlens.trace.reports import TOTALS, RequestReport
        metrics.count_refusal("sglang")
        recorder = Recorder(DecodingSpec(methods=()), "sglang")
        usage = {"slots_in_use": 7, "history_pages_in_use": 8}
        for tokens, latent in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3)):
            values = (tokens, tokens, latent, 2, 1)
            counts = dict(zip(TOTALS, values)) | {"gate_switches": tokens // 2, "theirs": tokens}
            metrics.observe(recorder, RequestReport(counts, 1, False, usage))
        names = ("refusals_total", "tokens_total", "latent_total", "discrete_total",
                 "mode_changes_total", "gate_switches_total", "switches_total",
                 "forced_total", "invalid_total", "cold_stops_total",
                 "slots_in_use", "history_pages_in_use")
        found = [REGISTRY.get_sample_value(f"tokenlens_{name}") for name in names]
        theirs = REGISTRY.get_sample_value("tokenlens_counted_total", {"name": "theirs"})
        print([*found, theirs])
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    counted = [1.0, 5.0, 3.0, 2.0, 4.0, 2.0, 4.0, 2.0, 1.0, 0.0, 7.0, 8.0, 5.0]
    assert done.stdout.strip() == str(counted)


def test_nothing_is_in_use_once_the_last_request_has_ended():
    code = textwrap.dedent("""
        from prometheus_client import REGISTRY
        from tokenlens.serving import metrics
        from tokenlens.serving.traces import RequestRecorder as Recorder
        from tokenlens.spec import DecodingSpec
        from tokenlens.trace.reports import TOTALS, RequestReport

        def gauges():
            names = ("slots_in_use", "history_pages_in_use")
            return [int(REGISTRY.get_sample_value(f"tokenlens_{name}")) for name in names]

        first, second, silent = (Recorder(DecodingSpec(methods=()), "vllm") for _ in range(3))
        usage = {"slots_in_use": 2, "history_pages_in_use": 3}
        report = RequestReport(dict(zip(TOTALS, (1, 1, 1, 0, 0))), 1, False, usage)
        metrics.observe(first, report)
        metrics.observe(second, report)
        seen = [gauges()]
        for ended in (silent, first, None, first, second, second):
            metrics.close(ended)  # once, twice, never seen, or without a spec
            seen.append(gauges())
        metrics.observe(first, report)
        print([*seen, gauges()])
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    busy, none = [2, 3], [0, 0]
    assert done.stdout.strip() == str([busy, busy, busy, busy, busy, none, none, busy])


def test_of_several_front_ends_the_one_that_heard_last_counts(tmp_path):
    code = textwrap.dedent("""
        import sys
        from tokenlens.metrics import collector
        collector("sglang").set("slots_in_use", float(sys.argv[1]))
        if len(sys.argv) > 2:
            from prometheus_client import CollectorRegistry
            from prometheus_client.multiprocess import MultiProcessCollector
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
            print(registry.get_sample_value("tokenlens_slots_in_use"))
    """)
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for given, expected in (("3", None), ("0", "0.0")):
        command = [sys.executable, "-c", code, given, *([] if expected is None else ["show"])]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert done.stdout.strip() == (expected or "")
