"""The tiny reasoner with a tokenizer that can write JSON, and requests for structured answers.

Twelve numbers that its questions do not have are other texts: the weights are the trained ones.
"""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MODEL = Path(__file__).parents[2] / "tokenlens" / "assets" / "tiny-reasoner-latent"

TEXTS = [
    "{",
    "}",
    '"',
    "[",
    "]",
    "answer",
    "name",
    "parameters",
    "arguments",
    "f",
    "<tool_call>",
    "</tool_call>",
]

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer", "minimum": 100, "maximum": 999}},
    "required": ["answer"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}
"""Strict: an engine may hold a call to its name only, else."""
NAMED = {"type": "function", "function": {"name": "f"}}
NO_BLANKS = {"6": -100, "7": -100, "8": -100}
"""A bias against blanks, which a call may have anywhere: the model would write them for ever."""
REGEX = "[0-9]{3}=[0-9]"
"""Nothing that the model would write by itself."""

QUESTIONS = ("make 6 using 4,11,9", "make 24 using 3,5,7,2", "make 12 using 5,8,9")

SOFT = {"method": "soft_thinking"}
ENDED = {"method": "answer_now", "after": 12}

SPECS = {
    "plain": None,
    "soft": [SOFT],
    "soft, ended": [SOFT, ENDED],
    "soft, cold": [{**SOFT, "cold_stop": {"entropy_threshold": 10.0, "patience": 6}}],
    "gumbel": [SOFT, {"method": "gumbel_noise"}, ENDED],
    "ended": [ENDED],
    "budget": [{"method": "thinking_budget", "budget": 12, "stop": "hard"}],
    "no thinking": [{"method": "no_thinking"}],
    "s1": [{"method": "s1", "max_thinking": 30}],
    "edits": [{"method": "min_p", "min_p": 0.1}, {"method": "cyclic_reflex", "words": ["wait"]}],
}
"""Methods of the requests; all of them may have their answer in JSON."""

FORBIDDEN = {
    "answer_now.text": [{**ENDED, "text": "</think>\n\n"}],
    "no_thinking.text": [{"method": "no_thinking", "text": "</think>\n\n"}],
    "s1.final": [{"method": "s1", "max_thinking": 12, "answer_prefix": "=1"}],
}
"""What would be forced behind the end of thinking, by the field that the refusal names."""


def save(folder):
    """A copy of the model that can write JSON."""
    place = Path(folder) / "json-reasoner"
    shutil.copytree(MODEL, place)
    file = place / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for number, text in zip(range(88, 100), TEXTS):
        vocabulary[text] = vocabulary.pop(str(number))
    file.write_text(json.dumps(tokenizer))
    return place


def messages(index=0):
    """A chat of one question."""
    return [{"role": "user", "content": QUESTIONS[index % len(QUESTIONS)]}]


def check(text, kind):
    """An answer is what its grammar allows."""
    if kind == "regex":
        assert re.fullmatch(REGEX, text.strip()), text
        return
    found = json.loads(text)
    assert list(found) == ["answer"]
    assert 100 <= found["answer"] <= 999


def told(answer):
    """What is in an answer, without what differs from request to request."""
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["message"], choice["finish_reason"], choice.get("logprobs")


def check_fifty(ask, trace, held):
    """Fifty requests at once, some with latent thinking, some held to a grammar, some plain.

    Parameters
    ----------
    ask
        Posts one chat: methods of the spec (``None``: without one), and fields of the body.
    trace
        The trace in an answer.
    held
        By kind, fields that hold an answer to a grammar.
    """
    free, alone = ask(), {}
    for kind, fields in held.items():
        alone[kind] = ask(**fields)
        check(told(alone[kind])[0]["content"], kind)
    cases = [(name, kind) for kind in held for name in SPECS] * 2 + [(None, None)] * 10

    def one(case):
        name, kind = case
        return ask(SPECS.get(name), **held.get(kind, {}))

    assert len(cases) == 50
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, cases))
    latent = {}
    for (name, kind), answer in zip(cases, answers):
        message, finish, logprobs = told(answer)
        if name is None:
            assert (message, finish, logprobs) == told(free)
            continue
        assert finish == "stop", (name, kind, message)
        check(message["content"], kind)
        if name == "plain":
            assert (message, finish, logprobs) == told(alone[kind])
            continue
        found = trace(answer)
        assert found["final_phase"] == "answer"
        assert not found["spec"]["phase"]["reopens"]
        latent.setdefault(name, set()).add(found["counts"]["latent_steps"])
    for name in ("soft", "soft, ended", "soft, cold", "gumbel"):
        assert min(latent[name]) > 3, latent
    # The same as without a grammar, up to the end of thinking.
    softly = ask(SPECS["soft"])
    assert latent["soft"] == {trace(softly)["counts"]["latent_steps"]}
