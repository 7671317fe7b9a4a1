"""Where steps end, on a byte-level tokenizer with many entries that hold a blank line."""

import json

import pytest
from routing_support import vocabulary
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokenlens.routing import RouterVocabulary, parse_routing, same_vocabulary
from tokenlens.routing.vocabulary import Matcher, StepEnds, TextStream


def byte_level(extra=(), shift=0):
    """A byte-level BPE: all bytes, some merges that end in blank lines, think markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: index for index, letter in enumerate([*alphabet[shift:], *alphabet[:shift]])}
    merges = [("\u010a", "\u010a"), (".", "\u010a\u010a"), (")", "\u010a\u010a"), *extra]
    for left, right in merges:
        words.setdefault(left + right, len(words))
    raw = Tokenizer(models.BPE(vocab=words, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken("<eos>", special=True)])
    raw.add_tokens([AddedToken("<think>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


def ends_at(words, ids, **spec):
    """Index and kind of the first end in ids."""
    matcher = Matcher(StepEnds.of(parse_routing(spec), words), words)
    for index, token in enumerate(ids):
        if (end := matcher.push(token)) is not None:
            return index, end
    return None


def test_every_entry_that_holds_a_blank_line_is_a_boundary():
    words = RouterVocabulary(byte_level())
    assert {words.piece(i) for i in words.boundary_ids("\n\n")} == {"\n\n", ".\n\n", ")\n\n"}
    for text in ("so.\n\n", "(x)\n\n", "so\n\n"):
        ids = words.encode(text)
        assert ends_at(words, ids) == (len(ids) - 1, "boundary")
    # The one id that most code looks for would miss two of the three.
    one = words.encode("\n\n")[0]
    assert [one in words.encode(text) for text in ("so.\n\n", "(x)\n\n", "so\n\n")] == [
        False, False, True,
    ]  # fmt: skip


def test_ids_with_holes_are_all_read():
    """The number of a tokenizer's entries is not its last id."""
    raw = byte_level().backend_tokenizer
    data = json.loads(raw.to_str())
    words = {word: i + 1000 for word, i in data["model"]["vocab"].items() if i > 200}
    data["model"]["vocab"] |= words
    for token in data["added_tokens"]:
        token["id"] += 2000
    holes = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)))
    found = RouterVocabulary(holes)
    assert len(found.pieces) == 1 + max(holes.get_vocab().values()) > len(holes)
    for text in ("so.\n\n", "<think>"):
        ids = found.encode(text)
        assert "".join(found.piece(i) for i in ids) == text
    (last,) = (i for i in found.encode("so.\n\n") if "\n\n" in found.piece(i))
    assert last >= 1000
    assert last in found.boundary_ids("\n\n")


def test_a_delimiter_of_two_tokens_is_a_boundary():
    words = RouterVocabulary(byte_level())
    (newline,) = words.encode("\n")
    ids = [*words.encode("ab"), newline, newline, *words.encode("c")]
    assert ends_at(words, ids) == (3, "boundary")
    assert ends_at(words, [*words.encode("a"), newline, *words.encode("b"), newline]) is None


def test_the_end_marker_and_the_end_of_the_text():
    words = RouterVocabulary(byte_level())
    # "</think>" is no token here: eight letters
    ids = words.encode("so </think> x")
    assert ends_at(words, ids) == (len(words.encode("so </think>")) - 1, "think_end")
    assert ends_at(words, [*words.encode("so"), words.tokenizer.eos_token_id]) == (2, "eos")
    assert ends_at(words, ids, think_end=None) is None
    # an answer has no step ends
    matcher = Matcher(None, words)
    assert [matcher.push(i) for i in words.encode("a\n\n</think>")] == [None] * 10


def test_the_tail_of_the_other_model_counts():
    words = RouterVocabulary(byte_level())
    matcher = Matcher(StepEnds.of(parse_routing({}), words), words)
    matcher.read("so\n")
    assert matcher.push(words.encode("\n")[0]) == "boundary"


def test_same_vocabulary():
    assert same_vocabulary(RouterVocabulary(byte_level()), RouterVocabulary(byte_level()))
    assert not same_vocabulary(
        RouterVocabulary(byte_level()), RouterVocabulary(byte_level(shift=1))
    )
    more = [("a", "b")]
    assert not same_vocabulary(RouterVocabulary(byte_level()), RouterVocabulary(byte_level(more)))
    assert not same_vocabulary(RouterVocabulary(byte_level()), vocabulary())


@pytest.mark.parametrize("text", ["x \u00e9\u4e2d\U0001f600 y", "a.\n\nb", "\U0001f600"])
def test_text_comes_in_whole_characters(text):
    words = RouterVocabulary(byte_level())
    stream, pieces = TextStream(words), []
    for token in words.encode(text):
        pieces.append(stream.push([token]))
    pieces.append(stream.flush())
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    # without holding back there would be one
    assert any("\ufffd" in words.piece(i) for i in words.encode(text)) == (not text.isascii())
