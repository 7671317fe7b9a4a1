"""``tokenlens trace`` on files of a real run."""

import csv
import json
import threading
import urllib.error
import urllib.request

import pytest
from typer.testing import CliRunner

from tokenlens.cli import app
from tokenlens.cli.serve import server

SMALL = "tiny-reasoner-small"


def command(*arguments):
    result = CliRunner(env={"COLUMNS": "240"}).invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A trace with concept tokens and one without, of the same prompt."""
    folder = tmp_path_factory.mktemp("traces")
    for name, spec in (("soft", "tiny-soft"), ("plain", "{}")):
        code, _ = command(
            "generate", "--model", SMALL, "--spec", spec, "--max-new-tokens", 160,
            "--prompt", "make 24 using 3,5,7,2", "--trace", folder / f"{name}.jsonl",
        )  # fmt: skip
        assert code == 0
    return folder / "soft.jsonl", folder / "plain.jsonl"


def test_summary_shows_the_counts(files):
    code, output = command("trace", "summary", files[0])
    assert code == 0
    assert "make 24 using 3,5,7,2" in output


def test_a_trace_is_equal_to_itself(files):
    assert command("trace", "diff", files[0], files[0])[0] == 0
    code, output = command("trace", "diff", *files)
    assert code == 1
    assert "latent" in output


def test_export_writes_a_row_a_step(files, tmp_path):
    out = tmp_path / "t.csv"
    assert command("trace", "export", files[0], "-o", out)[0] == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert (
        command("trace", "export", files[0], "-o", tmp_path / "t.json", "--format", "json")[0] == 0
    )
    data = json.loads((tmp_path / "t.json").read_text())
    assert len(rows) == data["trace"]["counts"]["tokens"] == len(data["trace"]["steps"])
    assert {row["text"] for row in rows} >= {"<think>", "|"}


def test_a_cut_file_is_shown_up_to_the_cut(files, tmp_path):
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(files[0].read_bytes()[:-700])
    code, output = command("trace", "summary", cut)
    assert code == 1
    assert "cut in the middle of line" in output
    assert "0 (cut off)" in output


def test_no_trace_is_no_trace(tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("hello\n")
    code, output = command("trace", "summary", other)
    assert code == 2
    assert "not a trace file" in output
    assert command("trace", "summary", tmp_path / "missing.jsonl")[0] == 2


def test_a_run_that_fails_leaves_its_steps(monkeypatch, tmp_path):
    from tokenlens.cli import models

    class Fails(models.Advance):
        def __call__(self, input_ids, scores, **kwargs):
            self.steps = getattr(self, "steps", 0) + 1
            if self.steps > 30:
                raise KeyboardInterrupt
            return super().__call__(input_ids, scores, **kwargs)

    monkeypatch.setattr(models, "Advance", Fails)
    file = tmp_path / "t.jsonl"
    command(
        "generate", "--model", SMALL, "--spec", "tiny-soft", "--max-new-tokens", 160,
        "--prompt", "make 24 using 3,5,7,2", "--trace", file,
    )  # fmt: skip
    code, output = command("trace", "summary", file)
    assert code == 1
    assert "ends before trace 0 does" in output
    assert "0 (cut off)" in output


def test_view_writes_one_page(files, tmp_path):
    out = tmp_path / "v.html"
    code, output = command("trace", "view", *files, "-o", out)
    assert code == 0
    assert "2 traces" in output
    text = out.read_text()
    assert text.count("<html") == 1
    assert "make 24 using 3,5,7,2" in text
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(files[0].read_bytes()[:-700])
    assert command("trace", "view", cut)[0] == 1
    assert "cut in the middle of line" in (tmp_path / "cut.html").read_text()


def test_the_page_is_served_on_this_machine_only():
    running = server("<p>page ä</p>", 0)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{running.server_port}"
        with urllib.request.urlopen(f"{address}/") as answer:
            assert answer.read().decode() == "<p>page ä</p>"
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            urllib.request.urlopen(f"{address}/../etc/passwd")
        caught.value.close()
        assert running.server_address[0] == "127.0.0.1"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()
