"""``tokenlens eval`` from the command line to the report."""

import html.parser
import json

import pytest
from typer.testing import CliRunner

from tokenlens.cli import app

SMALL = "tiny-reasoner-small"


def command(*arguments):
    result = CliRunner(env={"COLUMNS": "240"}).invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def run(folder, *more):
    return command(
        "eval", "--model", SMALL, "--specs", "tiny-soft", "examples/evaluation/cyclic_reflex.yaml",
        "--limit", 4, "--samples", 2, "--batch-size", 8, "--max-new-tokens", 60, "--out", folder,
        *more,
    )  # fmt: skip


class Closed(html.parser.HTMLParser):
    """Checks that what opens closes."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "path", "use", "stop", "rect", "circle", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "stop", "rect", "circle", "line"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass


def test_the_report_has_every_arm_and_comparison(tmp_path):
    code, output = run(tmp_path)
    assert code == 0, output
    text = (tmp_path / "report.md").read_text()
    for name in (
        "| tiny-soft |", "| cyclic_reflex |", "| control: greedy |",
        "| control: sampling, T 0.6, top-k 30, top-p 0.95 |",
        "| control: no_thinking |", "| control: tiny-soft + top1 |",
        "| control: tiny-soft + random_route |", "pass@2 %", "4 questions, 2 answers to each",
    ):  # fmt: skip
        assert name in text
    page = (tmp_path / "report.html").read_text()
    parser = Closed()
    parser.feed(page)
    assert parser.open == []
    assert page.count("<svg") == 2
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["versions"]["torch"]
    assert settings["arms"]["tiny-soft"]["spec"]["methods"][0]["method"] == "soft_thinking"
    before = {p.name: p.read_bytes() for p in (tmp_path / "records").iterdir()}
    assert run(tmp_path)[0] == 0
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "records").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--task", "math5000"), "math5000"),
        (("--task", "aime"), "JSON Lines"),
        (("--engine", "llama.cpp"), "allowed: hf"),
        (("--specs", "tiny-soft"), "twice"),
        (("--specs", "no_such.yaml"), "no_such.yaml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, arguments, named):
    code, output = run(tmp_path, *arguments)
    assert code == 2
    assert named in output


def test_another_evaluation_s_folder_is_refused(tmp_path):
    assert run(tmp_path, "--no-controls")[0] == 0
    code, output = run(tmp_path, "--no-controls", "--seed", 5)
    assert code == 2
    assert "another evaluation" in output
