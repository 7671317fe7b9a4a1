"""The command line: what it prints is what a person would use."""

import json
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from tokenlens import capabilities, versions
from tokenlens.cli import app, doctor
from tokenlens.spec import DecodingSpec, load_spec, parse_spec, preset, preset_names
from tokenlens.trace import read_traces

SMALL = "tiny-reasoner-small"


@pytest.fixture
def command(monkeypatch):
    """Run a subcommand in a wide terminal; returns exit code and output."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


def test_schema_is_a_json_schema_of_the_spec(command):
    code, output = command("schema")
    assert code == 0
    assert json.loads(output) == DecodingSpec.model_json_schema()


def test_presets_lists_every_family_and_recipe(command):
    code, output = command("presets")
    assert code == 0
    for name in preset_names():
        assert name.split("-")[0] in output
        assert name.split("-")[-1] in output


def test_a_printed_preset_loads_again(command, tmp_path):
    code, output = command("presets", "qwq-soft-published")
    assert code == 0
    assert parse_spec(yaml.safe_load(output)) == preset("qwq-soft-published")
    file = tmp_path / "spec.yaml"
    file.write_text(output)
    assert load_spec(file) == preset("qwq-soft-published")


def test_an_unknown_preset_names_what_there_is(command):
    code, output = command("presets", "qwen9-soft")
    assert code == 2
    assert "qwen9-soft" in output
    assert "qwen3" in output


def test_validate_prints_every_default(command):
    code, output = command("validate", "examples/specs/soft_thinking.yaml")
    assert code == 0
    assert DecodingSpec.model_validate_json(output) == load_spec(
        "examples/specs/soft_thinking.yaml"
    )


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("methods: [{method: soft_thinking, top_k: -3}]", "methods[0].top_k"),
        ("methods: [{method: soft_thinking, cold_stop: {entropy_threshold: -1}}]", "cold_stop"),
        ("methods: [{method: top1}]", "methods"),
        ("seeds: 3", "seeds"),
        ("seed: '[bold]x[/]'", "got '[bold]x[/]'"),
    ],
)
def test_validate_names_the_wrong_field(command, tmp_path, text, field):
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    code, output = command("validate", str(file))
    assert code == 2
    assert field in output
    assert "allowed" in output


def test_validate_says_that_a_file_is_missing(command):
    code, output = command("validate", "no_such_file.yaml")
    assert code == 2
    assert "no_such_file.yaml" in output


def test_doctor_shows_versions_and_the_matrix(command):
    code, output = command("doctor")
    assert code == 0
    assert "transformers" in output
    for row in capabilities.CAPABILITIES:
        assert row.name in output


def test_doctor_says_what_vllm_would_do(command, monkeypatch):
    monkeypatch.setattr("tokenlens.versions.installed", lambda engine: "0.99.0")
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    code, output = command("doctor")
    assert code == 0
    for words in ("model runner", "VLLM_USE_V2_MODEL_RUNNER=1", "got version 0.99.0", "plugin"):
        assert words in output


def test_doctor_says_what_sglang_would_do(command, monkeypatch):
    monkeypatch.setattr("tokenlens.versions.installed", lambda engine: "0.4.6")
    entry = SimpleNamespace(name="tokenlens")
    monkeypatch.setattr("tokenlens.sglang.switch.entry_points", lambda group: [entry])
    monkeypatch.setenv("SGLANG_PLUGINS", "others")
    code, output = command("doctor")
    assert code == 0
    for words in ("got version 0.4.6", "SGLANG_PLUGINS", "0.5.23"):
        assert words in output


@pytest.mark.parametrize("engine", versions.NAMES)
def test_doctor_says_that_a_release_was_not_tested(engine, monkeypatch):
    known = versions.tested(engine)[-1]
    for found, words in (("99.0.0", f"nearest is {known}"), (known, ""), (None, "")):
        monkeypatch.setattr("tokenlens.versions.installed", lambda engine, found=found: found)
        said = doctor.tested_with(engine).removeprefix(versions.supported(engine))
        assert words in said
        assert bool(words) == bool(said)


def test_doctor_prints_the_readme_s_table(command):
    assert command("doctor", "--markdown") == (0, capabilities.markdown() + "\n")


def test_generate_shows_concept_tokens_and_writes_traces(command, tmp_path):
    file = tmp_path / "traces.jsonl"
    code, output = command(
        "generate", "--model", SMALL, "--spec", "tiny-soft", "--max-new-tokens", "48",
        "--prompt", "make 24 using 3,5,7,2", "--prompt", "make 9 using 4,5",
        "--trace", str(file),
    )  # fmt: skip
    assert code == 0
    assert "concept token" in output
    recordings = read_traces(file)
    assert [one.prompt for one in recordings] == ["make 24 using 3,5,7,2", "make 9 using 4,5"]
    assert recordings[0].texts[recordings[0].trace.steps[0].token] == "<think>"
    traces = [one.trace for one in recordings]
    assert all(trace.counts.latent_steps > 0 for trace in traces)
    assert all(len(trace.steps) == trace.counts.tokens for trace in traces)


def test_generate_without_a_method_traces_the_model_itself(command, tmp_path):
    file = tmp_path / "traces.jsonl"
    code, _ = command(
        "generate", "--model", SMALL, "--spec", "{}", "--max-new-tokens", "24",
        "--prompt", "make 9 using 4,5", "--trace", str(file),
    )  # fmt: skip
    assert code == 0
    trace = read_traces(file)[0].trace
    assert trace.counts.latent_steps == 0
    assert max(step.entropy for step in trace.steps) > 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--model", SMALL, "--spec", "tiny-soup", "--prompt", "x"), "tiny-soup"),
        (("--model", SMALL, "--spec", "{", "--prompt", "x"), "JSON"),
        (("--model", "no/such/folder", "--spec", "tiny-soft", "--prompt", "x"), "no/such/folder"),
    ],
)
def test_generate_says_what_is_wrong(command, monkeypatch, arguments, named):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, output = command("generate", *arguments)
    assert code == 2
    assert named in output


def test_the_demo_solves_and_shows_both_problems(command):
    code, output = command("demo")
    assert code == 0, output
    assert "4 of 4 solved" in output
    assert "concept token" in output


def test_the_demo_fails_when_a_problem_is_not_solved(command):
    # The small model solves few problems: the demo must be able to say so.
    code, output = command("demo", "--model", SMALL)
    assert code == 1
    assert "✗ not solved" in output
