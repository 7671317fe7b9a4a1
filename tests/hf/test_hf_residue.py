"""A model after a run, however it ended, is the model from before."""

import copy
import sys
import threading

import pytest
import torch
from hf_models import PROMPTS, STEPS, TinyModel, batch, new_tokens
from hf_reference import Recipe
from transformers import LogitsProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from tokenlens.hf import generate_kwargs, traces
from tokenlens.hf.attachment import PREPARE

WHERE = ["forward", "processor", "criterion", "streamer"]


class PlannedError(Exception):
    """Raised on purpose."""


class At:
    """Raises at its n-th call."""

    def __init__(self, call, error):
        self.left, self.error = call, error

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            # A new one, or the error and its traceback would keep each other alive.
            raise self.error()


class RaisingProcessor(LogitsProcessor):
    def __init__(self, at):
        self.at = at

    def __call__(self, input_ids, scores):
        self.at()
        return scores


class RaisingCriterion(StoppingCriteria):
    def __init__(self, at):
        self.at = at

    def __call__(self, input_ids, scores, **kwargs):
        self.at()
        return torch.zeros(len(input_ids), dtype=torch.bool)


class RaisingStreamer(BaseStreamer):
    def __init__(self, at):
        self.at = at

    def put(self, value):
        self.at()

    def end(self):
        pass


def raise_in_run(subject, where, call, error, prompts=PROMPTS):
    """A soft run that is ended by an exception in the n-th call of something foreign."""
    at, more, settings, handle = At(call, error), {}, {}, None
    if where == "forward":
        # The output layer: the mixtures of the step have gone in.
        handle = subject.model.get_output_embeddings().register_forward_hook(at)
    elif where == "lookup":
        # Before the embedding's hooks: the mixtures of the step are still waiting.
        handle = subject.model.get_input_embeddings().register_forward_pre_hook(at)
    elif where == "processor":
        more = {"logits_processor": [RaisingProcessor(at)]}
    elif where == "criterion":
        more = {"stopping_criteria": [RaisingCriterion(at)]}
    elif where == "streamer":
        settings = {"streamer": RaisingStreamer(at)}
    try:
        kwargs = generate_kwargs(subject.model, None, subject.spec(), **more)
        subject.generate(prompts, **kwargs, **settings)
    finally:
        if handle is not None:
            handle.remove()


def assert_clean(subject):
    assert not {PREPARE, "forward"} & set(subject.model.__dict__)
    assert not subject.model.get_input_embeddings()._forward_hooks
    assert not subject.model.get_output_embeddings()._forward_pre_hooks


def assert_plain(output, plain):
    assert torch.equal(output.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(output.logits, plain.logits))


@pytest.mark.parametrize("call", [1, 4])
@pytest.mark.parametrize("how", ["appended", "rebuilt"])
def test_a_criterion_behind_ours_leaves_nothing_while_its_exception_is_kept(subject, how, call):
    kwargs = generate_kwargs(subject.model, None, subject.spec())
    raising = RaisingCriterion(At(call, PlannedError))
    if how == "appended":
        kwargs["stopping_criteria"].append(raising)
    else:
        kwargs["stopping_criteria"] = StoppingCriteriaList([*kwargs["stopping_criteria"], raising])
    with pytest.raises(PlannedError) as kept:
        subject.generate(**kwargs)
    assert_clean(subject)
    del kept


def test_a_streamer_s_end_leaves_nothing_while_its_exception_is_kept(subject):
    class Ends(BaseStreamer):
        def put(self, value):
            pass

        def end(self):
            raise PlannedError

    kwargs = generate_kwargs(subject.model, None, subject.spec())
    with pytest.raises(PlannedError) as kept:
        subject.generate(PROMPTS[:1], streamer=Ends(), **kwargs)
    assert_clean(subject)
    del kept


def test_nothing_is_left_after_return(subject):
    plain = subject.generate()
    before = set(subject.model.__dict__)
    subject.generate(**generate_kwargs(subject.model, None, subject.spec()))
    assert_clean(subject)
    assert set(subject.model.__dict__) == before
    assert_plain(subject.generate(), plain)


def test_nothing_is_on_the_model_before_the_call(subject):
    kwargs = generate_kwargs(subject.model, None, subject.spec())
    assert_clean(subject)
    del kwargs


@pytest.mark.parametrize("call", [1, 4])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("error", [PlannedError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(subject, where, call, error):
    plain = subject.generate(steps=4)
    caught = False
    try:
        raise_in_run(subject, where, call, error)
    except error:
        caught = True
    assert caught
    assert_clean(subject)
    assert_plain(subject.generate(steps=4), plain)


@pytest.mark.parametrize("where", [*WHERE, "lookup"])
@pytest.mark.parametrize("error", [PlannedError, KeyboardInterrupt])
def test_nothing_is_left_while_the_exception_is_held(subject, where, error):
    before = set(subject.model.__dict__)
    for call in (1, 2, 4):
        with pytest.raises(error) as holder:
            raise_in_run(subject, where, call, error)
        # The traceback keeps every frame of the call, and with them the run.
        assert holder.traceback[-1].name == "__call__"
        assert_clean(subject)
        assert set(subject.model.__dict__) == before
        copy.deepcopy(subject.model)


@pytest.mark.parametrize("where", [*WHERE, "lookup"])
def test_plain_run_while_a_traceback_holds_the_dead_one(subject, where):
    one = PROMPTS[:1]
    # Prompts of every length that the dead run may have been waiting for, one token included.
    longer = [[*PROMPTS[0], *range(40, 40 + n)] for n in range(4)] + [[9]]
    plain = [subject.generate([prompt], steps=2) for prompt in longer]
    for call in (1, 2, 3):
        with pytest.raises(PlannedError) as holder:
            raise_in_run(subject, where, call, PlannedError, one)
        for prompt, expected in zip(longer, plain):
            assert_plain(subject.generate([prompt], steps=2), expected)
        del holder
    assert_clean(subject)


def test_forward_while_a_traceback_holds_waiting_mixtures(subject):
    inputs = {"input_ids": torch.tensor([[9], [10], [11]]), "use_cache": False}
    with torch.no_grad():
        plain = subject.model(**inputs).logits
    with pytest.raises(PlannedError) as holder:
        raise_in_run(subject, "lookup", 3, PlannedError)
    assert_clean(subject)
    with torch.no_grad():
        assert torch.equal(subject.model(**inputs).logits, plain)
    del holder


def test_soft_run_while_a_traceback_holds_a_dead_one(subject):
    expected = [subject.reference(prompt).tokens for prompt in PROMPTS]
    with pytest.raises(PlannedError) as holder:
        raise_in_run(subject, "lookup", 3, PlannedError)
    output = subject.generate(**generate_kwargs(subject.model, None, subject.spec()))
    assert new_tokens(output).tolist() == expected
    del holder
    assert_clean(subject)


def test_plain_generate_inside_a_run(subject):
    plain = subject.generate([PROMPTS[1]], steps=3)
    inner = []

    class Asks(LogitsProcessor):
        def __call__(self, input_ids, scores):
            inner.append(subject.generate([PROMPTS[1]], steps=3))
            return scores

    kwargs = generate_kwargs(subject.model, None, subject.spec(), logits_processor=[Asks()])
    output = subject.generate(**kwargs, steps=6)
    for row, prompt in enumerate(PROMPTS):
        assert new_tokens(output)[row].tolist() == subject.reference(prompt, steps=6).tokens
    for output in inner:
        assert_plain(output, plain)


def test_kwargs_can_be_used_again(subject):
    kwargs = generate_kwargs(subject.model, None, subject.spec(Recipe(gumbel=0.5, seed=2)))
    first, second, third = (subject.generate(**kwargs) for _ in range(3))
    assert_plain(second, first)
    assert_plain(third, first)


def test_deep_copy_during_a_run_is_a_model_of_its_own(subject):
    copies = []
    plain = subject.generate()

    class Copies(LogitsProcessor):
        def __call__(self, input_ids, scores):
            if input_ids.shape[1] == len(PROMPTS[0]) + 2:
                copies.append(copy.deepcopy(subject.model))
                # In the middle of the other's run, with a batch of the same shape.
                copies.append(subject.generate(model=copies[0]))
            return scores

    kwargs = generate_kwargs(subject.model, None, subject.spec(), logits_processor=[Copies()])
    output = subject.generate(**kwargs)
    expected = [subject.reference(prompt).tokens for prompt in PROMPTS]
    assert new_tokens(output).tolist() == expected
    twin, during = copies
    assert_plain(during, plain)
    assert_plain(subject.generate(model=twin), plain)
    soft = subject.generate(model=twin, **generate_kwargs(twin, None, subject.spec()))
    assert new_tokens(soft).tolist() == expected


def in_threads(*jobs):
    """Run jobs at the same time; returns their results, raises their errors."""
    results, start = [None] * len(jobs), threading.Barrier(len(jobs))

    def work(index, job):
        torch.set_num_threads(1)
        start.wait()
        try:
            results[index] = job()
        except Exception as error:
            results[index] = error

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=job) for job in enumerate(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def test_two_models_in_two_threads(subjects):
    pair = [subjects("qwen3"), subjects("granite")]
    outputs = in_threads(
        *(lambda s=s: s.generate(**generate_kwargs(s.model, None, s.spec())) for s in pair)
    )
    for subject, output in zip(pair, outputs):
        assert new_tokens(output).tolist() == [subject.reference(p).tokens for p in PROMPTS]


def test_one_model_in_two_threads(subject):
    plain = subject.generate()
    recipes = [Recipe(), Recipe(gumbel=0.5, seed=4), None]

    def job(recipe):
        if recipe is None:
            return subject.generate(), None
        kwargs = generate_kwargs(subject.model, None, subject.spec(recipe))
        output = subject.generate(**kwargs)
        return output, traces(kwargs)

    results = in_threads(*(lambda r=r: job(r) for r in recipes))
    assert_plain(results[2][0], plain)
    for recipe, (output, found) in zip(recipes[:2], results[:2]):
        expected = [subject.reference(prompt, recipe) for prompt in PROMPTS]
        assert new_tokens(output).tolist() == [row.tokens for row in expected]
        assert [[step.latent for step in trace.steps] for trace in found] == [
            row.latent for row in expected
        ]
    assert_clean(subject)


def test_models_are_let_go(subject):
    own = TinyModel("qwen3")
    kwargs = generate_kwargs(own.model, None, own.spec())
    own.model.generate(**batch(PROMPTS), **kwargs, max_new_tokens=STEPS, pad_token_id=0)
    import weakref

    gone = weakref.ref(own.model)
    del own, kwargs
    import gc

    gc.collect()
    assert gone() is None
