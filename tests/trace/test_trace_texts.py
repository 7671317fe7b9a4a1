"""Texts of steps: together they are the text, whatever a character takes."""

import csv
import json
import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from trace_samples import SPEC, trace
from transformers import PreTrainedTokenizerFast

from tokenlens.trace import TraceWriter, read_traces, record, write_traces
from tokenlens.trace.compare import csv_rows
from tokenlens.trace.texts import step_texts, token_text
from tokenlens.trace.viewer import columns

TEXTS = (
    "the 🙂 answer", "漢字かな交じり文。", "π ≈ 3,14 ✓✓", "👩‍👩‍👧‍👦!",
    "plain", "a\ufffdb", "é\u0301 🇩🇪", "  two  blanks ",
)  # fmt: skip


def byte_level():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_fallback():
    pieces = [f"<0x{b:02X}>" for b in range(256)] + ["<unk>", "▁", "a", "▁the", "answer", "▁two"]
    tokenizer = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZERS = {"byte level": byte_level(), "byte fallback": byte_fallback()}


def traced(ids):
    steps = [
        one.model_copy(update={"token": token, "position": place, "entries": ((token, 1.0),)})
        for place, (one, token) in enumerate(zip(trace(len(ids)).steps, ids))
    ]
    return trace(len(ids)).model_copy(update={"steps": tuple(steps)})


@pytest.mark.parametrize("name", TOKENIZERS)
def test_steps_add_up_to_the_text(name):
    tokenizer, rng = TOKENIZERS[name], random.Random(5)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert "".join(step_texts(ids, tokenizer)) == tokenizer.decode(ids)
        # Also cut within a character. (The other decoder then unwrites the whole ones before it.)
        for end in range(1, len(ids)) if name == "byte level" else ():
            assert "".join(step_texts(ids[:end], tokenizer)) == tokenizer.decode(ids[:end])
    for _ in range(300):
        ids = [rng.randrange(256) for _ in range(rng.randrange(1, 40))]
        pieces = step_texts(ids, tokenizer)
        assert len(pieces) == len(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_files_tables_and_pages_have_the_text(tmp_path, name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole, streamed = record(traced(ids), tokenizer), tmp_path / "t.jsonl"
    with TraceWriter(streamed, tokenizer=tokenizer) as writer:
        writer.write(traced(ids))
    write_traces(tmp_path / "w.jsonl", [whole])
    for one in (whole, *read_traces(streamed), *read_traces(tmp_path / "w.jsonl")):
        header, *rows = csv_rows(one)
        assert "".join(row[header.index("text")] for row in rows) == tokenizer.decode(ids)
        data = columns(one)
        shown = [data["pieces"].get(i, data["texts"][t]) for i, t in enumerate(data["token"])]
        assert "".join(shown) == tokenizer.decode(ids)
        # Entries have no text around them: half a character stands as its bytes.
        if "\ufffd" not in text:
            assert not any("\ufffd" in one for one in data["texts"].values())
    assert read_traces(streamed)[0].trace.spec == SPEC


def test_a_character_stands_at_its_last_token_and_its_parts_as_bytes():
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode("a🙂", add_special_tokens=False)
    assert step_texts(ids, tokenizer) == ["a", "", "", "", "🙂"]
    assert [token_text(tokenizer, i) for i in ids] == ["a", "⟨F0⟩", "⟨9F⟩", "⟨99⟩", "⟨82⟩"]


def test_what_only_decodes_names_the_token():
    class Decodes:
        def decode(self, ids):
            return bytes(ids).decode("utf-8", "replace")

    assert token_text(Decodes(), 0xF0) == "⟨240⟩"
    assert "".join(step_texts("né".encode(), Decodes())) == "né"


def test_a_file_of_whole_characters_is_as_it_was(tmp_path):
    with TraceWriter(tmp_path / "t", tokenizer=TOKENIZERS["byte level"]) as writer:
        writer.write(traced(TOKENIZERS["byte level"].encode("abc", add_special_tokens=False)))
    lines = [json.loads(line) for line in (tmp_path / "t").read_text().splitlines()]
    assert not any({"text", "tail"} & set(line) for line in lines)


def test_the_page_shows_whole_characters(browser, tmp_path):
    from tokenlens.trace.viewer import page

    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode("a🙂漢", add_special_tokens=False)
    path = tmp_path / "v.html"
    path.write_text(page([record(traced(ids), tokenizer)]), encoding="utf-8")
    browser.get(f"file://{path}")
    texts = browser.execute_script(
        "return [...document.querySelectorAll('.t')].map((one) => one.textContent)"
    )
    assert "".join(texts) == "a🙂漢"
    assert len(texts) == len(ids)


def test_the_command_s_table_has_the_text(tmp_path):
    from typer.testing import CliRunner

    from tokenlens.cli import app

    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode("a🙂", add_special_tokens=False)
    write_traces(tmp_path / "t.jsonl", [record(traced(ids), tokenizer)])
    out = tmp_path / "t.csv"
    CliRunner().invoke(app, ["trace", "export", str(tmp_path / "t.jsonl"), "-o", str(out)])
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert "".join(row["text"] for row in rows) == "a🙂"
