"""``generate()`` as others call and change it: works, or an error that says what to do."""

import copy
import multiprocessing
import pickle

import pytest
import torch
import transformers
from hf_models import PROMPTS, STEPS, TinyModel, batch, new_tokens
from hf_reference import Recipe
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList

from tokenlens.hf import (
    ProtocolError,
    UnsupportedError,
    generate_kwargs,
    routed_generate_kwargs,
    traces,
)
from tokenlens.routing.hf_cache import cache_argument
from tokenlens.spec import SpecError

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:transformers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
]


class Forbid(LogitsProcessor):
    """Takes one token out."""

    def __init__(self, token):
        self.token, self.calls = token, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        scores = scores.clone()
        scores[:, self.token] = -torch.inf
        return scores


def soft_kwargs(subject, recipe=None, **more):
    return generate_kwargs(subject.model, None, subject.spec(recipe), **more)


def expected(subject):
    return [subject.reference(prompt).tokens for prompt in PROMPTS]


# A decoding loop of one's own.


def test_what_is_no_model_is_said(subject):
    for wrong in (torch.nn.DataParallel(subject.model), None, "a-model"):
        with pytest.raises(UnsupportedError, match=r"model: got .*model\.module"):
            generate_kwargs(wrong, None, subject.spec())


@pytest.mark.parametrize("how", ["called", "iterated", "rebuilt", "indexed", "nested"])
def test_a_hand_written_loop_is_told_what_to_do(subject, how):
    processors = soft_kwargs(subject)["logits_processor"]
    steps = {
        "called": lambda ids, scores: processors(ids, scores),
        "iterated": lambda ids, scores: [one(ids, scores) for one in processors],
        "rebuilt": LogitsProcessorList(list(processors)),
        "indexed": processors[-1],
        "nested": LogitsProcessorList([Forbid(3), processors]),
    }
    ids = torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        logits = subject.model(ids).logits[:, -1]
    with pytest.raises(ProtocolError, match=r"outside of generate.*model\.generate\(\*\*kwargs\)"):
        steps[how](ids, logits)


def test_a_loop_handed_to_generate_works(subject):
    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        kwargs.pop("tokenizer", None)
        return type(model)._sample(
            model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
        )

    output = subject.generate(**soft_kwargs(subject), custom_generate=loop)
    assert new_tokens(output).tolist() == expected(subject)


# generate() replaced by another library's.


def replaced(monkeypatch):
    """Another function, under no name of transformers', that prepares the settings itself."""

    @torch.no_grad()
    def theirs(self, inputs=None, generation_config=None, logits_processor=None, streamer=None,
               stopping_criteria=None, **kwargs):  # fmt: skip
        settings, model_kwargs = self._prepare_generation_config(generation_config, **kwargs)
        ids = model_kwargs.pop("input_ids")
        self._prepare_special_tokens(settings, True, device=ids.device)
        ids, model_kwargs = self._expand_inputs_for_generation(
            input_ids=ids, expand_size=max(settings.num_beams, settings.num_return_sequences),
            **model_kwargs,
        )  # fmt: skip
        settings.max_length = ids.shape[1] + settings.max_new_tokens
        cache = transformers.DynamicCache(config=self.config)
        model_kwargs[cache_argument(self.forward)] = cache
        theirs_list = self._get_logits_processor(
            generation_config=settings, input_ids_seq_length=ids.shape[1],
            encoder_input_ids=ids, logits_processor=logits_processor, device=ids.device,
            model_kwargs=model_kwargs,
        )  # fmt: skip
        criteria = self._get_stopping_criteria(
            generation_config=settings, stopping_criteria=stopping_criteria
        )
        model_kwargs["use_cache"] = True
        return type(self)._sample(
            self, ids, logits_processor=theirs_list, stopping_criteria=criteria,
            generation_config=settings, **model_kwargs,
        )  # fmt: skip

    monkeypatch.setattr(GenerationMixin, "generate", theirs)


def test_a_replaced_generate_feeds_mixtures(subject, monkeypatch):
    tokens, kwargs = expected(subject), soft_kwargs(subject)
    replaced(monkeypatch)
    assert new_tokens(subject.generate(**kwargs)).tolist() == tokens
    assert all(trace.counts.latent_steps for trace in traces(kwargs))


def test_a_replaced_generate_s_beams_are_refused(subject, monkeypatch):
    kwargs = soft_kwargs(subject)
    replaced(monkeypatch)
    with pytest.raises(UnsupportedError, match="reorders the rows"):
        subject.generate(**kwargs, num_beams=2)


@pytest.mark.parametrize("seed", [None, 3])
def test_a_replaced_generate_s_samples_differ(subject, monkeypatch, seed):
    spec = {**subject.spec(Recipe(gumbel=1.0)), "seed": seed}
    kwargs = generate_kwargs(subject.model, None, spec)
    replaced(monkeypatch)
    output = subject.generate(
        PROMPTS[:1], **kwargs, num_return_sequences=4, do_sample=True, top_k=1
    )
    assert len({tuple(row) for row in new_tokens(output, PROMPTS[:1]).tolist()}) == 4


def test_an_exception_in_a_replaced_generate_leaves_nothing(subject, monkeypatch):
    replaced(monkeypatch)
    before = set(subject.model.__dict__)
    raises = Forbid(0)
    raises.__class__ = type("Raises", (Forbid,), {"__call__": lambda *args: 1 / 0})
    kwargs = soft_kwargs(subject, logits_processor=[raises])
    with pytest.raises(ZeroDivisionError) as holder:
        subject.generate(**kwargs)
    assert set(subject.model.__dict__) == before
    del holder


# Processors of one's own.


WAYS = {
    "append": lambda found, one: found.append(one),
    "extend": lambda found, one: found.extend([one]),
    "insert": lambda found, one: found.insert(0, one),
    "+=": lambda found, one: found.__iadd__([one]),
    "slice": lambda found, one: found.__setitem__(slice(0, 0), [one]),
}


@pytest.mark.parametrize("way", [*WAYS, "+", "+ before", "argument", "copy", "deep copy"])
def test_a_processor_that_is_added_runs_before_the_spec(subject, way):
    forbid = Forbid(subject.reference(PROMPTS[0]).tokens[1])
    given = [forbid] if way == "argument" else []
    kwargs = soft_kwargs(subject, logits_processor=given)
    found = kwargs["logits_processor"]
    if way in WAYS:
        WAYS[way](found, forbid)
    elif way == "+":
        kwargs["logits_processor"] = found + [forbid]  # noqa: RUF005
    elif way == "+ before":
        kwargs["logits_processor"] = [forbid] + found  # noqa: RUF005
    elif way == "copy":
        kwargs["logits_processor"] = copy.copy(found)
        kwargs["logits_processor"].append(forbid)
    elif way == "deep copy":
        kwargs["logits_processor"].append(forbid)
        kwargs = copy.deepcopy(kwargs)
        forbid = kwargs["logits_processor"].others[0]
    output = subject.generate(**kwargs)
    assert forbid.calls == STEPS
    assert forbid.token not in new_tokens(output)
    for trace in traces(kwargs):
        assert all(forbid.token not in dict(step.entries) for step in trace.steps)
        assert trace.counts.latent_steps


def test_a_list_that_was_emptied_still_has_the_spec(subject):
    kwargs = soft_kwargs(subject, logits_processor=[Forbid(1)])
    kwargs["logits_processor"].clear()
    assert new_tokens(subject.generate(**kwargs)).tolist() == expected(subject)


@pytest.mark.parametrize("other", [[], [Forbid(1)]])
def test_another_list_in_place_of_ours_is_an_error(subject, other):
    kwargs = soft_kwargs(subject)
    ours = {"stopping_criteria": kwargs["stopping_criteria"]}
    with pytest.raises(ProtocolError, match=r"silently ignored.*append to it"):
        subject.generate(**ours, logits_processor=LogitsProcessorList(other))


def test_a_list_built_from_ours_is_an_error(subject):
    kwargs = soft_kwargs(subject)
    kwargs["logits_processor"] = LogitsProcessorList([*kwargs["logits_processor"], Forbid(1)])
    with pytest.raises(ProtocolError, match="do not build a new list"):
        subject.generate(**kwargs)


# Calls inside calls.


@pytest.mark.parametrize("same", [True, False], ids=["the same kwargs", "its own kwargs"])
def test_a_run_inside_a_run(subject, same):
    inner = []

    class Asks(LogitsProcessor):
        def __call__(self, input_ids, scores):
            if len(input_ids) == len(PROMPTS) and not inner:
                inner.append(None)
                own = kwargs if same else soft_kwargs(subject)
                inner[0] = new_tokens(subject.generate(PROMPTS[:2], **own, steps=4))
            return scores

    kwargs = soft_kwargs(subject, logits_processor=[Asks()])
    output = subject.generate(**kwargs)
    assert new_tokens(output).tolist() == expected(subject)
    assert inner[0].tolist() == [row[:4] for row in expected(subject)[:2]]


# Prompts as embeddings.


def embedded(subject, prompts=PROMPTS):
    inputs = batch(prompts)
    ids = inputs.pop("input_ids")
    return {**inputs, "inputs_embeds": subject.model.get_input_embeddings()(ids).detach()}


def generate_embedded(subject, kwargs, prompts=PROMPTS, **more):
    settings = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
    return subject.model.generate(**embedded(subject, prompts), **settings, **kwargs, **more)


def test_embeddings_alone_do_not_say_whether_the_model_thinks(subject):
    with pytest.raises(
        UnsupportedError, match=r"inputs_embeds.*input_ids.*prompt_ids.*first_token"
    ):
        generate_embedded(subject, soft_kwargs(subject))


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_embeddings_with_their_ids(subject, kind):
    prompts = PROMPTS if kind is list else PROMPTS[:1]
    kwargs = soft_kwargs(subject, Recipe(gumbel=0.5, seed=9), prompt_ids=kind(prompts))
    output = generate_embedded(subject, kwargs, prompts)
    for row, prompt in enumerate(prompts):
        one = subject.reference(prompt, Recipe(gumbel=0.5, seed=9))
        assert output[row].tolist() == one.tokens
    assert [trace.steps[0].position for trace in traces(kwargs)] == list(map(len, prompts))


def test_embeddings_beside_their_ids(subject):
    ids = batch(PROMPTS)["input_ids"]
    output = generate_embedded(subject, soft_kwargs(subject), input_ids=ids)
    assert output[:, ids.shape[1] :].tolist()[0] == expected(subject)[0]


def test_prompt_ids_of_another_batch(subject):
    with pytest.raises(UnsupportedError, match=r"prompt_ids: got 2 prompts"):
        generate_embedded(subject, soft_kwargs(subject, prompt_ids=PROMPTS[:2]))


# Other processes.


def in_another_process(model, kwargs, queue):
    torch.set_num_threads(1)
    output = model.generate(**batch(PROMPTS), **kwargs, max_new_tokens=STEPS, pad_token_id=0)
    found = [trace.counts.latent_steps for trace in traces(kwargs)]
    queue.put((output[:, len(PROMPTS[0]) :].tolist(), found))


def test_kwargs_go_to_another_process():
    # transformers 5 leaves hooks that cannot be pickled on a model that gave hidden states.
    subject = TinyModel("qwen3")
    kwargs = soft_kwargs(subject)
    subject.generate(**kwargs)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    sent = pickle.loads(pickle.dumps((subject.model, kwargs)))
    assert sent[1]["logits_processor"]._model is sent[0]
    process = context.Process(target=in_another_process, args=(*sent, queue))
    process.start()
    tokens, latent = queue.get(timeout=300)
    process.join()
    assert tokens == expected(subject)
    assert all(latent)


# What stands for a tokenizer, ends of text, compiled models.


def test_a_processor_in_place_of_its_tokenizer():
    from tokenlens import assets

    tokenizer = transformers.AutoTokenizer.from_pretrained(assets.path_of("tiny-reasoner-small"))

    class Both:
        """As AutoProcessor gives it: a tokenizer beside the processor of another modality."""

        def __init__(self):
            self.tokenizer = tokenizer

        def decode(self, *args, **kwargs):
            return self.tokenizer.decode(*args, **kwargs)

    model = transformers.AutoModelForCausalLM.from_pretrained(
        assets.path_of("tiny-reasoner-small"), dtype=torch.float32
    )
    ids = tokenizer("<think>\nso", return_tensors="pt", add_special_tokens=False)
    outputs = []
    for given in (tokenizer, Both()):
        kwargs = generate_kwargs(model, given, "tiny-soft")
        outputs.append(model.generate(**ids, **kwargs, max_new_tokens=6, do_sample=False).tolist())
        assert traces(kwargs)[0].counts.latent_steps
    assert outputs[0] == outputs[1]


class Beside:
    """A processor around something, under the name that processors have for it."""

    def __init__(self, **parts):
        self.__dict__.update(parts)


def test_what_is_no_tokenizer_is_refused_by_its_name(subject):
    from tokenizers import Tokenizer, models

    fast = Tokenizer(models.BPE())
    spec = subject.spec(None)
    for given, said in (
        ("some/model", "a str"),
        (Beside(image_processor=1), "a Beside"),
        (Beside(tokenizer=None), "a Beside"),
        (Beside(tokenizer="some/model"), "a Beside"),
        (transformers.PreTrainedTokenizerFast, "the class "),
        (subject.model, "a "),
        (fast, r"a Tokenizer; allowed: PreTrainedTokenizerFast\(tokenizer_object=...\)"),
    ):
        for make in (generate_kwargs, routed_generate_kwargs):
            arguments = (subject.model, given, spec) if make is generate_kwargs else (None, given)
            with pytest.raises(UnsupportedError, match=f"tokenizer: got {said}"):
                make(*arguments)


@pytest.mark.parametrize("ends", [-1, [-1], [95, -1], [95, 95, 500], [95] * 20, [[95]]])
def test_ids_that_end_nothing_may_be_named_as_ends(subject, ends):
    kwargs = soft_kwargs(subject)
    output = subject.generate(**kwargs, eos_token_id=ends)
    assert new_tokens(output).tolist() == expected(subject)


def test_more_ends_than_a_spec_knows_are_refused_by_their_name(subject):
    with pytest.raises(SpecError, match=r"eos_token_id: got .*at most 8 tokens.*stop_strings"):
        subject.generate(**soft_kwargs(subject), eos_token_id=list(range(70, 90)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.parametrize("what", ["forward", "part", "compile"])
def test_a_model_compiled_in_one_graph_is_our_error(what):
    own = TinyModel("qwen3")
    torch._dynamo.reset()
    settings = {"backend": "eager", "fullgraph": True, "dynamic": True}
    if what == "forward":
        own.model.forward = torch.compile(own.model.forward, **settings)
    elif what == "part":
        own.model.model.forward = torch.compile(own.model.model.forward, **settings)
    else:
        own.model.compile(**settings)
    try:
        with pytest.raises(ProtocolError, match=r"fullgraph=True.*static"):
            own.generate(**soft_kwargs(own), steps=4)
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("place", ["generation_config", "config"])
def test_the_model_s_own_ends_of_turns_count_whatever_the_call_stops_at(subject, place):
    spec = subject.spec(None)
    start = spec["phase"]["think_start"]
    prompt = [1, *start, 95, 11]
    settings = getattr(subject.model, place)
    before = settings.eos_token_id
    settings.eos_token_id = 95
    try:
        kwargs = generate_kwargs(subject.model, None, spec)
        subject.generate([prompt], **kwargs, steps=3, eos_token_id=-1)
    finally:
        settings.eos_token_id = before
    assert traces(kwargs)[0].counts.latent_steps == 0
