"""Trace files: what goes in comes out, and a fault is named without hiding what came before it."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from trace_samples import SPEC, WORDS, recording, step, trace

from tokenlens.trace import (
    SCHEMA_VERSION,
    TraceFileError,
    TraceWriter,
    read_traces,
    read_what_is_there,
    write_traces,
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "traces.jsonl"
    write_traces(path, [recording(40), recording(25, engine="vllm", shift=1)])
    return path


def lines(path):
    return path.read_text().splitlines(keepends=True)


def test_what_was_written_is_read(file):
    first, second = read_traces(file)
    assert first == recording(40)
    assert second == recording(25, engine="vllm", shift=1)


def test_traces_may_be_interleaved_and_texts_stand_once(tmp_path):
    path = tmp_path / "t.jsonl"
    with TraceWriter(path, lambda token: WORDS[token]) as writer:
        numbers = [writer.begin(engine="hf", spec=SPEC, prompt=p) for p in "ab"]
        for index in range(20):
            for number in numbers:
                writer.step(number, step(index))
        for number in numbers:
            writer.end(number, final_phase="thinking", counts=trace(20).counts)
    found = read_traces(path)
    assert [one.prompt for one in found] == ["a", "b"]
    assert all(one.trace.steps == trace(20).steps for one in found)
    assert found[0].texts == dict(enumerate(WORDS))
    written = [token for line in lines(path) for token in json.loads(line).get("texts", ())]
    assert len(written) == len(set(written))


def test_the_spec_s_bounds_hold(tmp_path):
    path = tmp_path / "t.jsonl"
    small = SPEC.trace.model_copy(update={"max_steps": 7, "max_entries": 2})
    cut = trace(30).model_copy(update={"spec": SPEC.model_copy(update={"trace": small})})
    with TraceWriter(path) as writer:
        writer.write(cut)
    (found,) = read_traces(path)
    assert len(found.trace.steps) == 7
    assert found.trace.dropped_steps == 23
    assert max(len(s.entries) for s in found.trace.steps) == 2


@pytest.mark.parametrize("keep", [1, 17, 60])
def test_a_line_cut_in_the_middle(file, keep):
    whole = lines(file)
    last = next(n for n, line in enumerate(whole) if '"trace":1' in line) + 12
    file.write_text("".join(whole[:last]) + whole[last][:keep])
    with pytest.raises(TraceFileError, match=f"cut in the middle of line {last + 1}") as caught:
        read_traces(file)
    first, second = caught.value.recordings
    assert first == recording(40)
    assert not second.complete
    assert second.trace.steps == recording(25, engine="vllm", shift=1).trace.steps[:11]
    assert second.trace.counts.tokens == 11
    assert "2 traces, 51 steps" in str(caught.value)


def test_a_file_that_ends_between_two_lines(file):
    file.write_text("".join(lines(file)[:-1]))
    found = read_what_is_there(file)
    assert "ends before trace 1 does" in str(found.error)
    assert len(found.recordings[1].trace.steps) == 25


def test_a_newer_schema_shows_what_is_older(file):
    changed = []
    for line in lines(file):
        data = json.loads(line)
        if data["kind"] == "tokenlens.trace" and data["trace"] == 1:
            data |= {"schema_version": SCHEMA_VERSION + 1, "unheard_of": 1}
        changed.append(json.dumps(data) + "\n")
    file.write_text("".join(changed))
    found = read_what_is_there(file)
    assert f"schema {SCHEMA_VERSION + 1}" in str(found.error)
    assert "later" in str(found.error)
    assert found.recordings == (recording(40),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello\n", "not a trace file"),
        (b'{"prompt": "x"}\n', "not a trace file"),
        (b"[1, 2]\n", "not a trace file"),
        (b"[" * 5000 + b"\n", "not a trace file"),
        (b"\x89PNG\r\n\x1a\n\x00\n", "not a trace file"),
        (b"x" * (1 << 21), "longer than"),
        (b'{"kind": "tokenlens.trace", "schema_version": 1}\n', "no line of a trace"),
    ],
)
def test_something_else_is_no_trace(tmp_path, content, message):
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    with pytest.raises(TraceFileError, match=message) as caught:
        read_traces(path)
    assert caught.value.recordings == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "step", "trace": 7}', "no line of a trace"),
        ('{"kind": "other"}', "no line of a trace"),
        (step(3).model_dump_json().replace("{", '{"kind":"step","trace":9,', 1), "was not opened"),
        (step(3).model_dump_json().replace("{", '{"kind":"step","trace":0,', 1), "has ended"),
    ],
)
def test_a_wrong_line_is_named(file, line, message):
    number = len(lines(file)) + 1
    with file.open("a") as stream:
        stream.write(line + "\n")
    found = read_what_is_there(file)
    assert f"line {number}" in str(found.error)
    assert message in str(found.error)
    assert len(found.recordings) == 2


def test_a_killed_writer_has_lost_nothing(tmp_path):
    path = tmp_path / "t.jsonl"
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(__file__.rsplit("/", 1)[0])!r})
        from trace_samples import SPEC, step
        from tokenlens.trace import TraceWriter
        writer = TraceWriter({str(path)!r})
        number = writer.begin(engine="hf", spec=SPEC)
        for index in range(100_000):
            writer.step(number, step(index))
            print(index, flush=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = -1
    while seen < 200:
        seen = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    seen = int(rest[-2]) if len(rest) > 1 else seen
    found = read_what_is_there(path)
    assert found.error is not None
    assert len(found.recordings[0].trace.steps) > seen
