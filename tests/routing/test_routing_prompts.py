"""Prompts: what a template is given, what is refused before it costs, and where it is done."""

import asyncio
import threading

import httpx
import pytest
from routing_fakes import PATIENCE, Served
from routing_support import Scripted, byte_level_chat, vocabulary

from tokenlens.routing import Router, RouterVocabulary
from tokenlens.routing.http import HTTPBackend, HTTPSettings
from tokenlens.routing.prompts import Reader, RouterPrompts
from tokenlens.routing.protocol import ChatRequest, CompletionRequest, parse
from tokenlens.routing.server import make_app
from tokenlens.routing.service import ServerSettings
from tokenlens.routing.templates import ChatTemplate, check_messages
from tokenlens.spec import SpecError

NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
HI = [{"role": "user", "content": "hi"}]
TEMPLATE = (
    "{% if not date is defined %}{% set date = 'today' %}{% endif %}{{ bos_token }}{{ date }}"
    "{% for message in messages %}{% generation %}[{{ message.role }}:{{ message['content'] }}"
    "{% if message.name %}{{ message.name }}{% endif %}]{% endgeneration %}{% endfor %}"
    "{% if effort == 'high' %}!{% endif %}{% if add_generation_prompt %}>{% endif %}"
    "{% if tools or documents or max_length or padding or chat_template %}?{% endif %}"
    "{% if messages[0].role == 'tool' %}{{ raise_exception('no tool may begin') }}{% endif %}"
)


def chatty(limit=None, template=TEMPLATE, adds_bos=False):
    """A byte-level tokenizer with a template, and a BOS."""
    return RouterVocabulary(byte_level_chat(template, adds_bos))


def prompts(words=None, limits=(None, None), others=None):
    """Prompts for two scripted models."""
    words = words or chatty()
    backends = [Scripted(lambda text: "") for _ in limits]
    for backend, limit in zip(backends, limits):
        backend.max_length = limit
    spec = {"policy": "always_small", "think_end": None}
    router = Router(*backends, spec, small_vocabulary=words, large_vocabulary=others or words)
    return RouterPrompts(router, router.vocabularies, 2)


def chat(messages=HI, **fields):
    return parse(ChatRequest, {"messages": messages, **fields})


def written(made, body):
    """Text of the large model's prompt."""
    made.check(body)
    ids = asyncio.run(made.prepare(body)).prompts["large"]
    return made._readers["large"].words.decode(ids)


def test_a_template_reads_what_it_names():
    template = ChatTemplate(chatty())
    assert template.variables == {"date", "effort"}
    assert {"role", "content", "name"} <= template.attributes
    made = prompts()
    assert written(made, chat()) == "<s>today[user:hi]>"
    kwargs = {"date": "monday", "effort": "high"}
    assert written(made, chat(chat_template_kwargs=kwargs)) == "<s>monday[user:hi]!>"
    assert written(made, chat([{**HI[0], "name": "ann"}])) == "<s>today[user:hiann]>"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template", NESTED), ("padding", "max_length"), ("max_length", 10**9), ("tools", "x"),
        ("documents", "x"), ("add_generation_prompt", False), ("continue_final_message", True),
        ("return_tensors", "pt"), ("return_dict", True), ("tokenize", True), ("truncation", True),
        ("tokenizer_kwargs", {"padding": "max_length"}), ("messages", "x"), ("bos_token", "x"),
        ("raise_exception", "x"), ("conversation", "x"), ("unknown", 1), ("k" * 50_000, 1),
        ("date", ["x"]), ("date", {"x": 1}), ("date", "x" * 257), ("date", 1e300),
        ("date", 1 << 40), ("return_assistant_tokens_mask", True), ("self", 1),
    ],
)  # fmt: skip
def test_nothing_else_of_a_client_reaches_it(name, value):
    with pytest.raises(SpecError, match="chat_template_kwargs") as caught:
        prompts().check(chat(chat_template_kwargs={name: value}))
    assert name[:15] in str(caught.value)
    assert len(str(caught.value)) < 500


def test_both_models_templates_have_to_read_it():
    other = chatty(template=TEMPLATE.replace("effort == 'high'", "false"))
    with pytest.raises(SpecError, match=r"effort.*only the small model"):
        prompts(others=other).check(chat(chat_template_kwargs={"effort": "high"}))


def test_the_call_that_a_tool_answers_is_the_api_s_own():
    call = {"content": "5", "tool_call_id": "a"}
    templates = {"small": ChatTemplate(vocabulary())}
    check_messages([{"role": "tool", **call}], templates)
    with pytest.raises(SpecError, match="tool_call_id"):
        check_messages([{"role": "user", **call}], templates)


def test_fields_of_messages_that_no_template_reads_are_named():
    for name, value in (("reasoning_content", "so"), ("tool_calls", [{"a": 1}]), ("weight", 0)):
        with pytest.raises(SpecError, match=rf"messages\[0\]\.{name}"):
            prompts().check(chat([{**HI[0], name: value}]))
    # what a client's library sends back of an answer
    back = {"role": "assistant", "content": "x", "tool_calls": [], "refusal": None, "audio": None}
    prompts().check(chat([*HI, back, *HI]))


def test_a_template_s_own_words_are_bounded_and_its_faults_are_not_ours():
    assert "no tool may begin" in refusal(prompts(), chat([{"role": "tool", "content": "x"}]))
    long = chatty(template="{{ raise_exception(messages[0].content) }}")
    assert len(refusal(prompts(long), chat([{"role": "user", "content": "x" * 5000}]))) < 500
    broken = chatty(template="{{ messages[0].content + 1 }}{{ messages[0].role }}")
    assert "TypeError" in refusal(prompts(broken), chat())


def refusal(made, body):
    with pytest.raises(SpecError) as caught:
        written(made, body)
    return str(caught.value)


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, words):
        self._words, self.read = words, 0
        self.pieces, self.tokenizer = words.pieces, words.tokenizer

    def encode(self, text):
        self.read += len(text)
        return self._words.encode(text)

    def decode(self, ids):
        return self._words.decode(ids)


@pytest.mark.parametrize("limit", [10, 1000, 40_000])
@pytest.mark.parametrize("text", ["a", "ab ", "x\n\n"])
def test_what_cannot_fit_costs_next_to_nothing(limit, text):
    """Any prompt that fits is read; one that does not is read no further than a context."""
    words = Counting(chatty())
    reader = Reader("small", words, True, limit, None)
    for count in (limit - 1, limit, 3 * limit, 3_000_000):
        whole = (text * (count // len(text) + 1))[:count]
        words.read = 0
        fits = count <= 40_000 * 3 and len(words._words.encode(whole)) < limit
        if fits:
            assert reader.encode("prompt", whole)
            continue
        with pytest.raises(SpecError, match=r"prompt.*context of|prompt.*fits into"):
            reader.encode("prompt", whole)
        assert words.read <= 8 * limit + (1 << 17)


def test_far_too_long_is_refused_before_anything_is_read():
    made = prompts(limits=(100, 50))
    longest = max(map(len, chatty().pieces))
    for body in (
        parse(CompletionRequest, {"prompt": "x" * (50 * longest + 1)}),
        parse(CompletionRequest, {"prompt": [1] * 50}),
        chat([{"role": "user", "content": "x" * (50 * longest + 1)}]),
        chat([{"role": "user", "content": "x"}] * 51),
        parse(CompletionRequest, {"prompt": [1 << 30]}),
    ):
        with pytest.raises(SpecError, match=r"large model|vocabulary"):
            made.check(body)
    made.check(parse(CompletionRequest, {"prompt": [1] * 49}))


def test_writing_prompts_does_not_hold_the_server_up():
    """A template that waits: others are answered meanwhile, and so is /health."""
    words, entered, let_go = chatty(), threading.Event(), threading.Event()
    apply = words.tokenizer.apply_chat_template

    def slow(messages, **kwargs):
        if messages[0]["content"] == "slow":
            entered.set()
            assert let_go.wait(PATIENCE)
        return apply(messages, **kwargs)

    words.tokenizer.apply_chat_template = slow
    backend = Scripted(lambda text: "7")
    spec = {"policy": "always_small", "think_end": None}
    router = Router(backend, backend, spec, small_vocabulary=words, large_vocabulary=words)
    one = Served(make_app(router, ServerSettings()))

    def ask(content):
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
        return httpx.post(one.url + "/v1/chat/completions", json=body, timeout=PATIENCE,
                          trust_env=False).status_code  # fmt: skip

    found = []
    thread = threading.Thread(target=lambda: found.append(ask("slow")))
    try:
        thread.start()
        assert entered.wait(PATIENCE)
        health = httpx.get(one.url + "/health", timeout=PATIENCE, trust_env=False)
        assert health.status_code == 200
        assert ask("quick") == 200
        assert not found
        let_go.set()
        thread.join(PATIENCE)
        assert found == [200]
    finally:
        let_go.set()
        one.close()


def test_a_long_prompt_is_not_read_again_on_the_loop(monkeypatch):
    """Whether it leaves the thinking to the model is seen at its end."""
    words, lengths = vocabulary(), []
    decode = RouterVocabulary.decode

    def counted(self, ids):
        lengths.append(len(ids))
        return decode(self, ids)

    monkeypatch.setattr(RouterVocabulary, "decode", counted)
    backend = Scripted(lambda text: "7", prompt_length=20_000)
    router = Router(
        backend, backend, "always_small", small_vocabulary=words, large_vocabulary=words
    )
    (nine,) = words.encode("9")
    end = tuple(words.encode("</think>\n\n"))
    found = asyncio.run(router.run((nine,) * 20_000 + end, max_tokens=1))
    assert [step.phase for step in found.trace.steps] == ["answer"]
    assert max(lengths) <= 256
    found = asyncio.run(router.run((*end, *(nine,) * 20_000), max_tokens=1))
    assert [step.phase for step in found.trace.steps] == ["thinking"]


def test_many_at_once_read_the_same():
    """One tokenizer in several threads."""
    made = prompts()
    bodies = [chat([{"role": "user", "content": f"hi {i} " * 50}]) for i in range(40)]

    async def go():
        return await asyncio.gather(*(made.prepare(body) for body in bodies))

    for body, found in zip(bodies, asyncio.run(go())):
        assert made._readers["large"].words.decode(found.prompts["large"]) == (
            f"<s>today[user:{body.messages[0].content}]>"
        )


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("takes_ids", [True, False])
def test_a_model_reads_one_bos(adds_bos, takes_ids):
    """However the template and the tokenizer write it, and whoever reads the text."""
    words = chatty(adds_bos=adds_bos)
    reader = Reader("small", words, takes_ids, None, None)
    for text, lead in (("<s>hi", False), ("hi", True), ("<s>hi", True)):
        given, count = reader.prompt("prompt", text, lead=lead)
        # A server of text reads it as the tokenizer does.
        read = list(given) if takes_ids else words.tokenizer.encode(given)
        wanted = adds_bos or text.startswith("<s>")
        assert words.decode(read) == ("<s>hi" if wanted else "hi")
        assert count == len(read)


def test_a_server_says_what_it_puts_before_texts():
    """It wins over the tokenizer: a GGUF file may say otherwise."""
    reader = Reader("small", chatty(adds_bos=False), False, None, "<s>")
    assert reader.prompt("messages", "<s>hi", lead=False)[0] == "hi"
    reader = Reader("small", chatty(adds_bos=True), False, None, "")
    assert reader.prompt("messages", "<s>hi", lead=False)[0] == "<s>hi"


def test_a_server_of_text_decides_on_its_own_bos():
    words = chatty()
    backends = [HTTPBackend(r, f"http://127.0.0.1:9/{r}", r, api="text",
                            settings=HTTPSettings()) for r in ("small", "large")]  # fmt: skip
    router = Router(*backends, "always_small")
    made = RouterPrompts(router, {"small": words, "large": words}, 1)
    with pytest.raises(SpecError, match="add_special_tokens"):
        made.check(parse(CompletionRequest, {"prompt": "x", "add_special_tokens": False}))
    made.check(parse(CompletionRequest, {"prompt": "x", "add_special_tokens": True}))
