"""DMLR's search for rows of a prompt: its formulas, and that it finds something."""

import json
from pathlib import Path

import pytest
import torch
from hf_models import START
from safetensors.torch import save_file

from tokenlens.errors import UnsupportedError
from tokenlens.hf import generate_kwargs
from tokenlens.hf.latent_search import confidence, latent_search, moved
from tokenlens.methods import files

CASES = json.loads(
    (Path(__file__).parents[1] / "vectors" / "search_methods.json").read_text(encoding="utf-8")
)
SOFT = 9
PROMPT = torch.tensor([1, 20, 21, SOFT, SOFT, SOFT, START, 22])


@pytest.mark.parametrize("case", CASES["dmlr_confidence"])
def test_the_confidence(case):
    first, last = case["span"]
    logits = torch.tensor(case["logits"], dtype=torch.float64)[first : last + 1]
    assert float(confidence(logits, case["k"])) == pytest.approx(case["confidence"], abs=2e-6)


@pytest.mark.parametrize("case", CASES["dmlr_update"])
def test_the_update(case):
    rows, best, kept = torch.tensor(case["init"]), 0.0, None
    for step in case["steps"]:
        epsilon = torch.tensor(step["epsilon"])
        rows = moved(rows, epsilon, step["reward"], case["lr"], step["sigma"])
        torch.testing.assert_close(rows, torch.tensor(step["theta"]), rtol=0, atol=2e-6)
        if step["reward"] > best:
            best, kept = step["reward"], rows
    torch.testing.assert_close(kept, torch.tensor(case["final"]), rtol=0, atol=2e-6)


@torch.no_grad()
def score_of(subject, rows):
    inputs = subject.model.get_input_embeddings()(PROMPT[None]).clone()
    inputs[0, 3:6] = rows
    return float(confidence(subject.model(inputs_embeds=inputs).logits[0, 3:7], 10))


def test_a_search_finds_rows_of_which_the_model_is_surer(subject):
    found = latent_search(subject.model, PROMPT, SOFT, steps=12)
    assert len(found.scores) == 25
    assert score_of(subject, found.rows) == pytest.approx(max(found.scores), abs=1e-5)
    assert max(found.scores) > found.scores[0] + 0.05
    again = latent_search(subject.model, PROMPT, SOFT, steps=12)
    assert torch.equal(again.rows, found.rows)
    blind = latent_search(subject.model, PROMPT, SOFT, steps=12, control=True)
    assert score_of(subject, blind.rows) < max(found.scores)


def test_as_published_one_candidate_a_step(subject):
    found = latent_search(subject.model, PROMPT, SOFT, steps=6, profile="published")
    assert len(found.scores) == 7
    assert found.rows.isfinite().all()


def test_what_is_found_is_fed(subject, tmp_path):
    found = latent_search(subject.model, PROMPT, SOFT, steps=4)
    save_file({"rows": found.rows.contiguous()}, tmp_path / "rows")
    spec = {
        "methods": [{"method": "softcotpp", "file": "found", "placeholder": SOFT}],
        "phase": {"think_start": [START], "think_end": [subject.end]},
    }
    kwargs = generate_kwargs(subject.model, None, spec, files={"found": tmp_path / "rows"})
    output = subject.generate([PROMPT.tolist()], steps=2, **kwargs)
    inputs = subject.model.get_input_embeddings()(PROMPT[None]).detach().clone()
    inputs[0, 3:6] = found.rows
    with torch.no_grad():
        wanted = subject.model(inputs_embeds=inputs).logits[0, -1]
    torch.testing.assert_close(output.logits[0][0], wanted, rtol=0, atol=2e-4)
    assert files.find("x", "found").tensors["rows"].shape == (3, 32)


@pytest.mark.parametrize("ids", [[1, 2, 3], [1, SOFT, 2, SOFT, 3], [1, 2, SOFT], []])
def test_placeholders_stand_together_and_not_at_the_end(subject, ids):
    with pytest.raises(UnsupportedError, match="placeholder"):
        latent_search(subject.model, torch.tensor(ids, dtype=torch.int64), SOFT)
