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


def test_verify_says_both_figures(files):
    code, output = command("trace", "verify", files[0], "--model", SMALL)
    assert code == 0
    assert "as the trace says" in output
    cells = [cell.strip() for cell in output.splitlines()[-2].split("│")]
    fed, lost = float(cells[5]), float(cells[6])
    assert fed < 1e-4 < 100 * fed < lost
    # A trace without mixtures is held to its tokens.
    code, output = command("trace", "verify", files[1], "--model", SMALL)
    assert code == 0
    assert "–" in output


def test_verify_ends_with_one_where_the_trace_says_otherwise(files, tmp_path):
    lines = [json.loads(line) for line in files[0].read_text().splitlines()]
    mixed = [line for line in lines if line.get("latent") and len(line["entries"]) > 1]
    mixed[0]["entries"][1][1] *= 3
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, output = command("trace", "verify", wrong, "--model", SMALL)
    assert code == 1
    assert "not what the trace says" in output
    assert "half precision" in output
    code, output = command("trace", "verify", files[0], "--model", "tiny-reasoner-latent")
    assert code == 1


def test_verify_finds_the_prompt_of_a_file_of_schema_1(files, tmp_path):
    lines = [json.loads(line) for line in files[0].read_text().splitlines()]
    ids = lines[0].pop("prompt_ids")
    lines[0]["schema_version"] = 1
    old = tmp_path / "old.jsonl"
    old.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert command("trace", "verify", old, "--model", SMALL)[0] == 0
    lines[0]["prompt"] = ""
    old.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, output = command("trace", "verify", old, "--model", SMALL)
    assert code == 2
    assert f"the {len(ids)} tokens of the prompt" in output
    given = tmp_path / "ids.json"
    given.write_text(json.dumps(ids))
    assert command("trace", "verify", old, "--model", SMALL, "--prompt-ids", given)[0] == 0
    listed = ",".join(map(str, ids))
    assert command("trace", "verify", old, "--model", SMALL, "--prompt-ids", listed)[0] == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--prompt-ids", "1,2"), "got 2 tokens"),
        (("--prompt-ids", "not/there"), "not/there"),
        (("--prompt-ids", ","), "allowed: 1 to 65,536 whole numbers"),
        (("--trace", "7"), "got 7; allowed: 0 to 0"),
    ],
)
def test_verify_names_what_is_wrong(files, more, words):
    code, output = command("trace", "verify", files[0], "--model", SMALL, *more)
    assert code == 2
    assert words in output.replace("\n", " ")
