"""The tiny reasoner: teacher, tokenizer, training, and the weights that ship."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
CODE = ROOT / "examples" / "tiny_reasoner"
ASSETS = ROOT / "tokenlens" / "assets"
SIZES = ("small", "large", "latent")
LIMIT_BYTES = 12 * 2**20


def folder(size: str) -> Path:
    path = ASSETS / f"tiny-reasoner-{size}"
    if not path.exists():
        pytest.skip(f"{path.name} does not ship")
    return path


@pytest.fixture(scope="module")
def code():
    """The example's modules, which are scripts beside each other and not a package."""
    names = ("teacher", "tokenizer", "model", "data", "decode", "latent", "measure")
    sys.path.insert(0, str(CODE))
    try:
        yield type("Code", (), {name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(CODE))
        for name in (*names, "optimizer", "train"):
            sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_teacher_traces_are_valid_and_never_pass_through_held_out_problems(code):
    from tokenlens.evaluation.countdown import check_answer, problems, split_of

    rng = random.Random(0)
    for count in (2, 3, 4):
        for problem in problems("train", count, 100):
            trace = code.teacher.search(problem, rng)
            if trace is None:
                continue
            assert check_answer(problem, ",".join(trace.answer))
            assert trace.waits <= code.teacher.MAX_WAITS
            assert sum(step.startswith("wait|") for step in trace.steps) == trace.waits
            for state in trace.states:
                assert split_of(state, problem.target) == "train"


def test_tokenizer_round_trip_and_template(code):
    tokenizer = code.tokenizer.build_tokenizer()
    assert len(tokenizer) == 128
    text = code.tokenizer.prompt_text("make 24 using 3,5,7,2")
    text += code.tokenizer.reply_text("7*3=21|21,5,2\n\nwait|3,5,7,2\n\n5-2=3?24", "7*3=21")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids
    for word in ("<think>", "</think>", "\n\n", "wait", " wait", "Wait"):
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
    messages = [{"role": "user", "content": "make 24 using 3,5,7,2"}]
    for thinking in (True, False):
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        assert rendered == code.tokenizer.prompt_text(messages[0]["content"], thinking)


def test_conditional_gumbel_lets_the_named_entry_win(code):
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.7, 0.2, 0.1, 0.0]).expand(3000, 4)
    winner = torch.randint(0, 3, (3000,), generator=generator)
    drawn = code.latent.conditional_gumbel(weights, winner, generator)
    assert torch.equal(drawn.argmax(-1), winner)
    assert torch.isneginf(drawn[:, 3]).all()
    # The maximum is a Gumbel variable (mean 0.5772) whichever entry wins.
    assert abs(drawn.max(-1).values.mean().item() - 0.5772) < 0.1


def run_training(out: Path, *extra: str) -> dict:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, str(CODE / "train.py"), "--out", str(out), "--checkpoints", "0"]
    subprocess.run([*command, *extra], check=True, env=environment, stdout=subprocess.DEVNULL)
    return json.loads((out / "training.json").read_text())


def test_ten_steps_twice_give_the_same_weights(tmp_path):
    runs = [
        run_training(tmp_path / name, "--size", "small", "--seed", "3", "--steps", "10")
        for name in ("first", "second")
    ]
    assert runs[0]["weights_sha256"] == runs[1]["weights_sha256"]
    assert runs[0]["data_sha256"] == runs[1]["data_sha256"]


def test_assets_fit():
    files = [f for f in ASSETS.glob("tiny-reasoner-*/*") if f.is_file()]
    assert 0 < sum(f.stat().st_size for f in files) <= LIMIT_BYTES
    assert not [f for f in files if f.suffix in {".bin", ".pt", ".pkl"}]


@pytest.mark.parametrize("size", SIZES)
def test_recorded_hash_is_that_of_the_weights(size):
    path = folder(size)
    record = json.loads((path / "training.json").read_text())
    digest = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    assert record["weights_sha256"] == digest
    assert (path / "MODEL_CARD.md").exists()


@pytest.mark.parametrize("size", SIZES)
def test_assets_load_with_stock_classes_and_agree_with_the_lean_forward(code, size):
    path = folder(size)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "make 24 using 3,5,7,2"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    lean = code.measure.load_model(path)
    with torch.no_grad():
        expected = model(**ids).logits
        torch.testing.assert_close(
            lean.lm_head(lean(ids["input_ids"])), expected, rtol=1e-4, atol=1e-4
        )
        reply = model.generate(**ids, do_sample=False, max_new_tokens=60)
    reply = reply[0, ids["input_ids"].shape[1] :].tolist()
    markers = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<think>", "</think>"])
    how = code.decode.Decoding()
    found = code.decode.decode(
        lean,
        ids["input_ids"],
        how,
        **dict(zip(("end", "think", "end_think"), markers, strict=True)),
        max_new_tokens=60,
    )[0].ids
    assert found == reply
    assert reply[0] == markers[1]


def test_large_is_better_than_small_and_neither_is_trivial(code):
    accuracy = {}
    pools = code.measure.split_problems("dev", 0.25)
    how = code.decode.Decoding(mode="sample")
    for size in ("small", "large"):
        model = code.measure.load_model(folder(size))
        accuracy[size] = code.measure.measure(model, pools, how)["accuracy"]
    # Broad bands: 120 problems have a standard error of about 4.5 points.
    assert 10 < accuracy["small"] < 45
    assert 25 < accuracy["large"] < 70
    assert accuracy["large"] > accuracy["small"] + 15
