"""The tiny reasoner with a tokenizer that can write JSON, and requests for structured answers.

Twelve numbers that its questions do not have are other texts: the weights are the trained ones.
"""

import json
import re
import shutil
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
