"""Think markers become token ids through the request's own tokenizer, or an error says why not."""

from pathlib import Path

import pytest

import tokenlens
from tokenlens import SpecError, preset
from tokenlens.spec import encode_text, preset_names, resolve_marker
from tokenlens.spec.markers import marker_of, stands_alone

TINY = Path(tokenlens.__file__).parent / "assets" / "tiny-reasoner-small"


class Greedy:
    """A tokenizer that takes the longest piece it knows; everything else is one unknown token."""

    def __init__(self, *pieces):
        self.pieces = ["<unk>", *pieces]

    def encode(self, text, *, add_special_tokens=True):
        ids = [self.pieces.index("<s>")] if add_special_tokens and "<s>" in self.pieces else []
        while text:
            fits = [p for p in self.pieces if text.startswith(p)]
            piece = max(fits, key=len, default=None)
            ids.append(self.pieces.index(piece) if piece else 0)
            text = text[len(piece) if piece else 1 :]
        return ids

    def decode(self, ids, **kwargs):
        return "".join(self.pieces[i] for i in ids)


LETTERS = [*"abcdefghijklmnopqrstuvwxyz</>\n "]
WHOLE = Greedy("<think>", "</think>", *LETTERS)
PIECES = Greedy("</", "think", ">", "<", *LETTERS)
# Merges the marker's last piece with a newline behind it, as byte-pair encoders do.
MERGING = Greedy("</", "think", ">", ">\n", ">\n\n", "\n</", "<", *LETTERS)


def resolve(tokenizer, marker=None, default="</think>", field="phase.think_end"):
    return resolve_marker(tokenizer, marker, default=default, field=field)


def words(tokenizer, spellings):
    return [[tokenizer.pieces[i] for i in spelling] for spelling in spellings]


def test_a_default_marker_of_one_token():
    assert words(WHOLE, resolve(WHOLE)) == [["</think>"]]


def test_special_tokens_are_not_added():
    assert words(Greedy("<s>", "</think>"), resolve(Greedy("<s>", "</think>"))) == [["</think>"]]


def test_added_tokens_are_listed_once():
    # A library makes the list anew each time, which took milliseconds a marker's token.
    class Listed(Greedy):
        asked = 0

        def get_added_vocab(self):
            self.asked += 1
            return {"</think>": 1}

        def __len__(self):
            return len(self.pieces)

    tokenizer = Listed("</think>", *LETTERS)
    assert [stands_alone(tokenizer, token) for token in (1, 2, 1)] == [True, False, True]
    assert tokenizer.asked == 1
    tokenizer.pieces.append("more")
    assert stands_alone(tokenizer, 1)
    assert tokenizer.asked == 2


@pytest.mark.parametrize("field", ["phase.think_start", "phase.think_end"])
def test_a_missing_default_marker_names_its_field(field):
    with pytest.raises(SpecError, match=rf"{field}.*</think>.*not a token of this tokenizer"):
        resolve(PIECES, field=field)


def test_an_explicit_marker_may_take_several_tokens():
    assert words(PIECES, resolve(PIECES, "</think>")) == [["</", "think", ">"]]


def test_a_marker_of_ordinary_tokens_is_followed_as_text():
    for marker in ("</think>", "a"):
        found = marker_of(MERGING, marker, default="", field="phase.think_end")
        assert found.text == marker.encode()
    assert marker_of(MERGING, (3, 4), default="", field="phase.think_end").text is None


def test_an_added_token_is_followed_as_itself(tiny):
    end = tiny.convert_tokens_to_ids("</think>")
    assert stands_alone(tiny, end)
    assert not stands_alone(tiny, tiny.encode("wait")[0])
    assert marker_of(tiny, None, default="</think>", field="phase.think_end") == ((end,), None)


def test_a_marker_given_as_ids_needs_no_tokenizer():
    assert resolve(None, (5, 6)) == [[5, 6]]


@pytest.mark.parametrize("marker", [None, "</think>"])
def test_a_marker_given_as_text_needs_a_tokenizer(marker):
    with pytest.raises(SpecError, match=r"phase\.think_end.*token ids.*no tokenizer"):
        resolve(None, marker)


def test_a_marker_that_the_tokenizer_cannot_write():
    with pytest.raises(SpecError, match=r"phase\.think_end: got '\[END\]'.*would write '<unk>"):
        resolve(WHOLE, "[END]")


def test_a_marker_of_too_many_tokens():
    with pytest.raises(SpecError, match="at most 8 tokens"):
        resolve(PIECES, "a long marker")


def test_a_text_that_becomes_no_token_is_refused():
    class Stripping(Greedy):
        def encode(self, text, *, add_special_tokens=True):
            return super().encode(text.strip(), add_special_tokens=add_special_tokens)

    with pytest.raises(SpecError, match=r"no_thinking\.text"):
        encode_text(Stripping(*LETTERS), "  ", "no_thinking.text")


def test_blanks_that_a_tokenizer_adds_are_no_problem():
    class Prefixing(Greedy):
        def decode(self, ids, **kwargs):
            return " " + super().decode(ids)

    assert words(WHOLE, resolve(Prefixing("<think>", "</think>"))) == [["</think>"]]


@pytest.fixture(scope="module")
def tiny():
    if not (TINY / "tokenizer.json").exists():
        pytest.skip("the embedded model is not in this checkout")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(TINY)


def test_tiny_markers_are_tokens_of_their_own(tiny):
    assert resolve(tiny, default="<think>") == [[tiny.convert_tokens_to_ids("<think>")]]
    assert resolve(tiny) == [[tiny.convert_tokens_to_ids("</think>")]]


def test_tiny_cannot_write_a_foreign_marker(tiny):
    with pytest.raises(SpecError, match=r"phase\.think_end"):
        resolve(tiny, "[END]")


def test_a_marker_of_several_tiny_tokens(tiny):
    spellings = resolve(tiny, "wait =")
    assert tiny.decode(spellings[0]).replace(" ", "") == "wait="
    assert 1 < len(spellings[0]) <= 8


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_binds_to_the_tiny_tokenizer(name, tiny):
    core = pytest.importorskip("tokenlens.core")
    eos = [tiny.eos_token_id]
    methods = pytest.importorskip("tokenlens.methods").METHODS
    request = core.bind(
        preset(name), methods=methods, tokenizer=tiny, vocab_size=len(tiny), eos_ids=eos
    )
    assert request.methods == {config.method for config in preset(name).methods}
    assert request.end_markers[0] == (tiny.convert_tokens_to_ids("</think>"),)
