"""Each token's bytes, held against what the tokenizers write themselves."""

from pathlib import Path

import pytest
from built_tokenizers import byte_level, sentence_piece, size_of, word_piece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import tokenlens
from tokenlens.spec import token_bytes as module
from tokenlens.spec.token_bytes import token_bytes

TINY = Path(tokenlens.__file__).parent / "assets" / "tiny-reasoner-small"


class NoPieces:
    """A tokenizer of a made-up kind: it writes, but does not tell how tokens are spelled."""

    def __init__(self, tokenizer):
        self.encode, self.decode = tokenizer.encode, tokenizer.decode


@pytest.fixture(
    scope="module",
    params=["byte_level", "byte_level_holes", "sentence_piece", "gemma", "word_piece", "tiny"],
)
def tokenizer(request):
    return {
        "byte_level": byte_level,
        "byte_level_holes": lambda: byte_level(holes=(3, 70, 255), gap=900),
        "sentence_piece": sentence_piece,
        "gemma": lambda: sentence_piece(strip=False),
        "word_piece": word_piece,
        "tiny": lambda: AutoTokenizer.from_pretrained(TINY),
    }[request.param]()


def behind(tokenizer, token):
    """What a token adds to a text, by the tokenizer's own decoder."""
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
    return tokenizer.decode([*anchor, token]).removeprefix(tokenizer.decode(anchor))


def test_every_token_is_what_decode_adds_to_a_text(tokenizer):
    table = token_bytes(tokenizer, size_of(tokenizer))
    known = set(tokenizer.get_vocab().values())
    for token, content in enumerate(table):
        if token in known:
            assert content.decode("utf-8", "replace") == behind(tokenizer, token), token
        else:
            assert content == b""


TEXTS = st.text(alphabet=st.sampled_from(" \n\tabtwWuiny.é中🙂<>/"), max_size=24)


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_the_bytes_of_a_text_s_tokens_are_the_text(text):
    for tokenizer in ROUND_TRIPS:
        ids = tokenizer.encode("a" + text, add_special_tokens=False)
        written = b"".join(TABLES[id(tokenizer)][i] for i in ids)
        assert written.removeprefix(b" ") == ("a" + text).encode()


ROUND_TRIPS = [
    byte_level(added=("<think>", "</think>")),
    byte_level(added=("</think>",), gap=50),
    sentence_piece(),
]
TABLES = {id(one): token_bytes(one, size_of(one)) for one in ROUND_TRIPS}


def test_special_tokens_are_their_text_and_padding_is_nothing():
    tokenizer = byte_level()
    table = token_bytes(tokenizer, size_of(tokenizer) + 40)
    assert table[tokenizer.eos_token_id] == b"<|end|>"
    assert table[size_of(tokenizer) :] == [b""] * 40


def test_a_smaller_width_cuts_the_table():
    assert len(token_bytes(byte_level(), 100)) == 100


def test_a_blank_in_front_is_there_although_decode_leaves_it_away():
    tokenizer = sentence_piece()
    (token,) = tokenizer.encode("wait", add_special_tokens=False)
    assert tokenizer.decode([token]) == "wait"
    assert token_bytes(tokenizer, size_of(tokenizer))[token] == b" wait"


def test_parts_of_characters_are_bytes():
    tokenizer = byte_level()
    ids = tokenizer.encode("中", add_special_tokens=False)
    table = token_bytes(tokenizer, size_of(tokenizer))
    assert [table[i] for i in ids] == [b"\xe4", b"\xb8", b"\xad"]


def test_a_tokenizer_that_only_decodes():
    tokenizer = word_piece()
    assert token_bytes(NoPieces(tokenizer), 8) == token_bytes(tokenizer, 8)


def test_without_the_check_against_decode_a_spelling_is_taken_wrongly(monkeypatch):
    tokenizer = word_piece()
    monkeypatch.setattr(module, "_agreeing", lambda *args: args[2][0])
    table = token_bytes(tokenizer, size_of(tokenizer))
    token = tokenizer.convert_tokens_to_ids("##ing")
    assert table[token].decode() != behind(tokenizer, token)
