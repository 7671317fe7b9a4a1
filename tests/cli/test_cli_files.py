"""The command line among files: inputs stay, outputs are whole or as they were, errors are told."""

import json
import os
import resource
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from tokenlens.cli import main
from tokenlens.cli.serve import is_ours, server
from tokenlens.spec import DecodingSpec, TraceConfig
from tokenlens.trace import (
    Recording,
    Trace,
    TraceCounts,
    TraceStep,
    read_summaries,
    read_traces,
    summarize,
    write_traces,
)
from tokenlens.trace.files import replacing, write_text

SPEC = DecodingSpec(trace=TraceConfig(level="full"))
SMALL = "tiny-reasoner-small"


def steps(count, first=0):
    return tuple(
        TraceStep(
            position=i, phase="thinking" if i % 5 else "answer", token=i, latent=i % 3 == 0,
            forced=i % 7 == 0, valid=i != 4, entropy=i / 7, max_probability=0.5,
            entries=((i, 0.7), (i + 1, 0.3)) if i % 2 else (),
        )
        for i in range(first, first + count)
    )  # fmt: skip


def recording(count=20, prompt="why?"):
    counts = TraceCounts(
        tokens=count, thinking_tokens=1, latent_steps=2, forced_steps=3, invalid_steps=0,
        cold_stops=0,
    )  # fmt: skip
    trace = Trace(engine="hf", spec=SPEC, final_phase="answer", counts=counts, steps=steps(count))
    return Recording(trace=trace, prompt=prompt)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "t.jsonl"
    write_traces(path, [recording(), recording(9)])
    return path


def shell(*arguments, **settings):
    """The command in a process of its own, as a shell runs it."""
    command = [sys.executable, "-c", "from tokenlens.cli import main; main()"]
    environment = {**os.environ, "COLUMNS": "200", **settings.pop("env", {})}
    return subprocess.run(
        [*command, *map(str, arguments)],
        **({"capture_output": True, "text": True, "timeout": 120} | settings),
        env=environment,
        check=False,
    )


@pytest.fixture
def tokenlens(monkeypatch, capsys):
    """The command in this process, which has imported what it needs."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tokenlens", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code, stdout=out, stderr=err)

    return run


def refused(done, *words):
    """The command ended with a sentence that has these words."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error:")
    assert len(done.stderr) < 1000
    for word in words:
        assert word in done.stderr


def spellings(path):
    """Other names of a file: a link, a hard link, and two ways to write the path."""
    link, hard = path.parent / "link", path.parent / "hard"
    link.symlink_to(path)
    os.link(path, hard)
    return [path, link, hard, path.parent / "." / ".." / path.parent.name / path.name]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("command", ["view", "export", "second"])
def test_no_command_overwrites_its_input(tokenlens, file, which, command):
    before = file.read_bytes()
    out = spellings(file)[which]
    arguments = {
        "view": ("view", file, "-o", out),
        "second": ("view", file.with_name("other.jsonl"), file, "-o", out),
        "export": ("export", file, "-o", out),
    }[command]
    write_traces(file.with_name("other.jsonl"), [recording(3)])
    refused(tokenlens("trace", *arguments), "--out", "another file")
    assert file.read_bytes() == before


def test_the_page_that_view_chooses_is_not_its_input(tokenlens, file):
    page = file.rename(file.with_suffix(".html"))
    before = page.read_bytes()
    refused(tokenlens("trace", "view", page), "--out")
    assert page.read_bytes() == before


@pytest.mark.parametrize("name", ["", ".", "..", "/"])
def test_a_folder_without_a_name_is_refused_as_others_are(tokenlens, name):
    refused(tokenlens("trace", "view", name), "got a folder")


def test_a_full_disk_is_told_once():
    with open("/dev/full", "w") as full:
        done = shell("presets", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    refused(done, "No space left")
    assert done.stderr.count("error:") == 1


def test_a_spec_is_not_overwritten_by_what_is_made_from_it(tokenlens, tmp_path):
    spec = tmp_path / "s.json"
    spec.write_text('{"methods": [{"method": "tip"}]}')
    before = spec.read_bytes()
    folder = tmp_path / "out"
    (folder / "records").mkdir(parents=True)
    data = folder / "records" / "q.jsonl"
    data.write_text("{}\n")
    refused(tokenlens("plot-schedule", spec, "--out", tmp_path / "." / "s.json"), "--out")
    prompt = ("--spec", spec, "--prompt", "x")
    refused(tokenlens("generate", "--model", SMALL, *prompt, "--trace", spec), "--trace")
    refused(
        tokenlens(
            "eval", "--model", SMALL, "--specs", spec, "--task", "gsm8k", "--data", data,
            "--out", folder,
        ),
        "--out",
    )  # fmt: skip
    assert spec.read_bytes() == before
    assert data.read_bytes() == b"{}\n"


OUTPUTS = {
    "view": lambda file, out: ("trace", "view", file, "-o", out),
    "csv": lambda file, out: ("trace", "export", file, "-o", out),
    "json": lambda file, out: ("trace", "export", file, "--format", "json", "-o", out),
    "plot": lambda _, out: ("plot-schedule", '{"methods": [{"method": "tip"}]}', "--out", out),
}


@pytest.mark.parametrize("command", OUTPUTS)
@pytest.mark.parametrize("out", ["/dev/full", "missing/there", "folder"])
def test_what_cannot_be_written_is_a_sentence(tokenlens, file, command, out):
    (file.parent / "folder").mkdir()
    refused(tokenlens(*OUTPUTS[command](file, file.parent / out)))
    assert sorted(os.listdir(file.parent)) == ["folder", "t.jsonl"]


@pytest.mark.parametrize("command", ["view", "csv"])
def test_a_disk_that_fills_up_leaves_the_good_file(file, command):
    out = file.parent / "good"
    out.write_text("good")

    def little_room():
        # A file that grows further than this fails, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = shell(
        *OUTPUTS[command](file, out),
        preexec_fn=little_room,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )
    refused(done)
    assert out.read_text() == "good"
    assert sorted(os.listdir(file.parent)) == ["good", "t.jsonl"]


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "f"
    path.write_text("before")
    path.chmod(0o640)
    (tmp_path / "link").symlink_to(path)

    def interrupted():
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "before"
    write_text(tmp_path / "link", "after \ud800")
    assert path.read_text() == "after \\ud800"
    assert path.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "link").is_symlink()
    write_text(tmp_path / "new", "x")
    assert sorted(os.listdir(tmp_path)) == ["f", "link", "new"]


def test_traces_that_cannot_be_written_leave_the_old_ones(file):
    before = file.read_bytes()

    def broken():
        yield recording(3)
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_traces(file, broken())
    assert file.read_bytes() == before
    write_traces(file, read_traces(file)[:1])
    assert len(read_traces(file)) == 1


@pytest.mark.parametrize("command", ["summary", "view", "export", "diff"])
@pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "missing", "packed", "bytes"])
def test_what_is_no_file_is_told_at_once(tokenlens, tmp_path, command, kind):
    path = tmp_path / "input"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "packed":
        path.write_bytes(b"\x1f\x8b\x08\x00rest")
    elif kind == "bytes":
        path.write_bytes(b'{"kind": "tokenlens.trace", "prompt": "\xff\xfe"}\n')
    more = {"export": ["-o", "-"], "diff": [path]}.get(command, [])
    refused(tokenlens("trace", command, path, *more), "input")


def to(stream):
    return {"capture_output": False, "stdout": stream, "stderr": subprocess.PIPE}


def test_nobody_who_reads_is_no_error(file):
    write_traces(file, [recording(3, prompt="x" * 40)] * 300)
    for command in (("summary", file), ("export", file, "-o", "-")):
        reading, writing = os.pipe()
        os.close(reading)
        done = shell("trace", *command, **to(writing))
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_at_the_other_end_is_a_sentence(file):
    with open("/dev/full", "w") as full:
        for command in (("schema",), ("trace", "export", file, "-o", "-")):
            done = shell(*command, **to(full))
            refused(done, "No space left")


def test_a_terminal_of_ascii_is_enough(file):
    write_traces(file, [recording(3, prompt="Wie groß ist π?")])
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = shell("trace", "summary", file, env=ascii_only)
    assert done.returncode == 0
    assert "\\u03c0" in done.stdout


def test_what_others_wrote_does_not_command_the_terminal(tokenlens, file):
    write_traces(file, [recording(3, prompt="\x1b]0;title\x07 \x9b2J")])
    done = tokenlens("trace", "summary", file)
    assert done.returncode == 0
    assert not {"\x1b", "\x07", "\x9b"} & set(done.stdout)


def test_a_summary_keeps_no_step(file):
    write_traces(file, [recording(400, prompt=p) for p in "ab"])
    found, fault = read_summaries(file)
    assert fault is None
    assert [one.figures for one in found] == [summarize(one.trace) for one in read_traces(file)]
    # Cut off: the figures are of what is there.
    file.write_bytes(file.read_bytes()[:-300])
    found, fault = read_summaries(file)
    assert [one.complete for one in found] == [True, False]
    cut = read_traces_up_to_the_fault(file)
    assert [one.figures for one in found] == [summarize(one.trace) for one in cut]
    assert fault is not None


def read_traces_up_to_the_fault(path):
    from tokenlens.trace import read_what_is_there

    return read_what_is_there(path).recordings


def test_a_long_trace_is_summed_up_in_little_memory(tmp_path):
    path = tmp_path / "long.jsonl"
    write_traces(path, [recording(500)])
    first, *middle, last = path.read_bytes().splitlines(keepends=True)
    peaks = {}
    for times in (1, 120):
        path.write_bytes(first + b"".join(middle) * times + last)
        code = (
            "from tokenlens.trace import read_summaries;"
            f"found, _ = read_summaries({str(path)!r}); print(found[0].figures.steps_kept,"
            " next(l for l in open('/proc/self/status') if 'VmHWM' in l).split()[1])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        kept, peak = map(int, done.stdout.split())
        assert kept == 500 * times
        peaks[times] = peak
    # 60 000 steps, which took 120 MB when they were kept.
    assert peaks[120] - peaks[1] < 10_000


def test_an_error_names_a_few_of_many(tokenlens, tmp_path):
    path = tmp_path / "heads.jsonl"
    write_traces(path, [recording(0)])
    head = json.loads(path.read_bytes().splitlines()[0])
    path.write_text("".join(json.dumps({**head, "trace": n}) + "\n" for n in range(3000)))
    done = tokenlens("trace", "summary", path)
    assert done.returncode == 1
    assert "2,992 more" in done.stderr
    assert len(done.stderr) < 500
    assert done.stdout.count("\n") == 3001
    path.write_text(json.dumps({**head, "trace": 0, "y" * 100_000: 1}) + "\n")
    refused(tokenlens("trace", "summary", path))
    path.write_text(json.dumps(head) + "\n" + json.dumps({"kind": "z" * 100_000}) + "\n")
    done = tokenlens("trace", "summary", path)
    assert len(done.stderr) < 1000


def test_ctrl_c_ends_with_130(tokenlens, monkeypatch, file):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenlens.cli.trace.read_summaries", interrupted)
    assert tokenlens("trace", "summary", file).returncode == 130


def test_a_trace_that_is_there_stays_until_the_new_one_is_whole(monkeypatch, tmp_path):
    from tokenlens.cli import app, models

    file = tmp_path / "t.jsonl"
    write_traces(file, [recording()])
    before = file.read_bytes()

    class Fails(models.Advance):
        def __call__(self, input_ids, scores, **kwargs):
            if input_ids.shape[1] > 60:
                raise OSError("no space")
            return super().__call__(input_ids, scores, **kwargs)

    arguments = [
        "generate", "--model", SMALL, "--spec", "tiny-soft", "--prompt", "make 24 using 3,5,7,2",
        "--max-new-tokens", "90", "--trace", str(file),
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(models, "Advance", Fails)
        with pytest.raises(SystemExit) as ended:
            app(arguments)
    assert ended.value.code == 2
    assert file.read_bytes() == before
    with pytest.raises(SystemExit) as ended:
        app(arguments)
    assert not ended.value.code
    assert read_traces(file)[0].complete
    assert sorted(os.listdir(tmp_path)) == ["t.jsonl"]


@pytest.fixture
def running():
    found = server("<p>page</p>", 0, patience=60.0)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def fetch(running, host):
    request = urllib.request.Request(
        f"http://127.0.0.1:{running.server_port}/", headers={"Host": host}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_idle_connections_do_not_block_the_page(running):
    address = ("127.0.0.1", running.server_port)
    idle = [socket.create_connection(address) for _ in range(20)]
    idle[0].sendall(b"GET / HT")
    assert fetch(running, "localhost") == 200
    for one in idle:
        one.close()


def test_a_connection_that_drips_is_ended():
    found = server("<p>page</p>", 0, patience=0.5)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    with socket.create_connection(("127.0.0.1", found.server_port)) as one:
        one.settimeout(0.1)
        ended = False
        while not ended:
            try:
                one.sendall(b"G")
                ended = one.recv(100) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:8000", True), ("localhost", True), ("LOCALHOST:9", True),
        ("evil.example", False), ("127.0.0.1.evil.example:8000", False), ("localhost@evil", False),
        ("", False), ("localhost:port", False), ("localhost/x", False), ("0.0.0.0", False),
    ],
)  # fmt: skip
def test_only_names_of_this_machine_are_answered(running, host, ours):
    assert is_ours([host]) is ours
    if host:
        assert fetch(running, host) == (200 if ours else 403)


def test_a_request_without_a_host_or_with_two_is_refused(running):
    for heads in (b"", b"Host: localhost\r\nHost: localhost\r\n"):
        with socket.create_connection(("127.0.0.1", running.server_port)) as one:
            one.sendall(b"GET / HTTP/1.1\r\n" + heads + b"\r\n")
            assert b" 403 " in one.recv(200)


def test_a_port_that_is_taken_is_a_sentence(tokenlens, file, running):
    done = tokenlens("trace", "view", file, "--serve", running.server_port)
    refused(done, "in use")
    assert Path(file.with_suffix(".html")).exists()


@pytest.mark.parametrize("kind", ["pipe", "endless", "large", "bytes", "merges"])
def test_a_policy_s_file_is_as_bounded_as_a_spec_s(tokenlens, tmp_path, kind):
    path = tmp_path / "policy.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "large":
        path.write_text("a: 1\n" * 20_000)
    elif kind == "bytes":
        path.write_bytes(b"\xff\xfe")
    else:
        lines = ["a0: &a0 {x: 1}"]
        lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
        path.write_text("\n".join(lines))
    backends = ("--small", "http://127.0.0.1:9", "--large", "http://127.0.0.1:9")
    refused(tokenlens("route", *backends, "--policy", path), "policy")
