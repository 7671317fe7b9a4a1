"""Trees of steered requests as text and as a page, and the check of canonical ids."""

import json

from controllers_support import steer
from routing_support import prompts, vocabulary
from typer.testing import CliRunner

from tokenlens.cli.app import app
from tokenlens.controllers.tree import SteerTrace, lines
from tokenlens.controllers.tree_page import page
from tokenlens.routing import Sampling
from tokenlens.routing.canonical import is_canonical, stretches


def test_a_tree_is_shown(tmp_path):
    spec = {"policy": {"policy": "latr", "n": 3, "force": 48, "checks": [8], "absolute": 0.1,
                       "relative": 0.6}}  # fmt: skip
    (found,) = steer(spec, prompts(4)[2:3], sampling=Sampling(temperature=1.0), max_tokens=100)
    data = found.trace.model_dump(mode="json")
    for name, content in (
        ("tree.json", json.dumps({"route": data})),
        ("trees.jsonl", "\n".join([json.dumps(data)] * 2)),
    ):
        path = tmp_path / name
        path.write_text(content)
        done = CliRunner().invoke(app, ["trace", "tree", str(path)])
        assert done.exit_code == 0, done.output
        assert "latr, stopped: " in done.output
        assert done.output.count("fork @") % content.count('"nodes"') == 0
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["trace", "tree", str(path), "--html", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text().count("<details") == 2 * len(found.trace.nodes)
    (tmp_path / "no.json").write_text('{"nodes": 3}')
    done = CliRunner().invoke(app, ["trace", "tree", str(tmp_path / "no.json")])
    assert done.exit_code != 0
    assert "Traceback" not in done.output


def test_texts_of_a_page_are_escaped():
    spec = {"policy": {"policy": "self_consistency", "n": 1}}
    (found,) = steer(spec, prompts(4)[:1], max_tokens=20)
    node = found.trace.nodes[0].model_copy(update={"text": "<script>", "note": "<b>"})
    trace: SteerTrace = found.trace.model_copy(update={"nodes": (node,), "stopped": "<i>"})
    shown = page([trace])
    for tag in ("<script>", "<b>", "<i>"):
        assert tag not in shown
    assert len(lines(trace)) == 1


def test_canonical_ids():
    words = vocabulary()
    text = "3*4=12\n\n"
    own = words.encode(text)
    assert is_canonical(words, [*own, 2])
    assert stretches(words, own) == []
    newline = words.encode("\n")
    double = words.encode("\n\n")
    if len(double) == 1 and newline:
        other = [*own[:-1], *newline, *newline]
        assert words.decode(other) == text
        assert not is_canonical(words, other)
        (found,) = stretches(words, other)
        assert found.kind in ("split", "blank")
        assert found.own == tuple(double)
