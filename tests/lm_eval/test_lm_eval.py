"""lm-evaluation-harness through tokenlens: with an empty spec its numbers are lm-eval's own."""

import json
from pathlib import Path

import pytest

from tokenlens.assets import path_of

ROOT = Path(__file__).parents[2]
SMALL = "tiny-reasoner-small"
OPENED = "<|im_start|>user\nmake 24 using 3,5,7,2<|im_end|>\n<|im_start|>assistant\n<think>\n"

# lm-eval and its dependencies warn about each other.
pytestmark = pytest.mark.filterwarnings("ignore")


def answers(model, spec=None, limit=6, tokens=60, batch_size=4):
    """The task's metric and every answer."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    import tokenlens.evaluation.harness  # noqa: F401  registers the models

    arguments = {"pretrained": path_of(SMALL), "dtype": "float32"}
    if spec is not None:
        arguments["spec"] = spec
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=["tokenlens_countdown"],
        task_manager=TaskManager(include_path=str(ROOT / "examples" / "lm_eval")),
        limit=limit,
        batch_size=batch_size,
        device="cpu",
        apply_chat_template=True,
        gen_kwargs={"max_gen_toks": tokens},
        bootstrap_iters=0,
    )
    samples = sorted(found["samples"]["tokenlens_countdown"], key=lambda one: one["doc_id"])
    texts = [one["resps"][0][0] for one in samples]
    return found["results"]["tokenlens_countdown"]["solved,none"], texts


@pytest.fixture(scope="module")
def plain():
    """What lm-eval itself gives."""
    return answers("hf")


def test_an_empty_spec_changes_nothing(plain):
    assert answers("tokenlens-hf", "") == plain


def test_a_spec_is_carried_out(plain):
    assert answers("tokenlens-hf", "tiny-soft")[1] != plain[1]
    _, short = answers("tokenlens-hf", "tiny-no-thinking")
    assert max(map(len, short)) < min(map(len, plain[1]))


def test_noise_is_the_prompt_s_own_whatever_the_batch():
    one = answers("tokenlens-hf", "tiny-gumbel", limit=4, tokens=40, batch_size=1)
    assert one == answers("tokenlens-hf", "tiny-gumbel", limit=4, tokens=40, batch_size=4)


@pytest.mark.parametrize("seed", [None, 5])
def test_repeats_of_a_prompt_are_samples(seed, tmp_path):
    # Four equal requests, in batches that hold two of them, and the same again.
    from lm_eval.api.instance import Instance

    from tokenlens.evaluation.harness.hf import TokenlensHF

    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"preset": "tiny-gumbel", "seed": seed}))
    model = TokenlensHF(SMALL, spec=str(spec), device="cpu", dtype="float32", batch_size=2)
    arguments = (OPENED, {"until": [], "max_gen_toks": 64, "do_sample": False})
    requests = [Instance("generate_until", {}, arguments, 0, ("t", 0, 4)) for _ in range(4)]
    texts = [model.generate_until(requests, disable_tqdm=True) for _ in range(2)]
    assert len(set(texts[0])) == 4
    assert texts[0] == texts[1]


def test_a_task_that_generates_nothing_is_refused():
    from lm_eval.api.instance import Instance

    from tokenlens.evaluation.harness.hf import TokenlensHF

    request = Instance("loglikelihood", {}, ("make 9 using 4,5", " 4+5=9"), 0, ("t", 0, 1))
    soft = TokenlensHF(SMALL, spec="tiny-soft", device="cpu", dtype="float32")
    with pytest.raises(NotImplementedError, match="soft_thinking with a loglikelihood task"):
        soft.loglikelihood([request])
    assert len(TokenlensHF(SMALL, device="cpu", dtype="float32").loglikelihood([request])) == 1


def test_several_answers_to_a_request_are_refused():
    from lm_eval.api.instance import Instance

    from tokenlens.evaluation.harness.hf import TokenlensHF

    model = TokenlensHF(SMALL, device="cpu", dtype="float32")
    for name in ("n", "num_return_sequences"):
        arguments = (OPENED, {"until": [], "max_gen_toks": 4, "do_sample": True, name: 3})
        with pytest.raises(ValueError, match=r"n: got 3 answers.*repeats"):
            model.generate_until([Instance("generate_until", {}, arguments, 0, ("t", 0, 1))])
