"""Sets of tokens found through an index, held against a look at every text with the pattern."""

import gc
import random
import re
import threading
import weakref

import pytest
from built_tokenizers import byte_level, sentence_piece, size_of, word_piece
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenlens.methods.nowait.step import pattern_of
from tokenlens.spec import NoWait, SpecError, Vocabulary
from tokenlens.spec import texts as texts_module
from tokenlens.spec.bounded import Bounded
from tokenlens.spec.text_index import TextIndex, fold
from tokenlens.spec.texts import Texts, holes, texts_of, vocabulary_size

# Letters with odd cases: dotless and dotted i, long s, Kelvin, sigmas, sharp s, ligatures.
LETTERS = "abBiIıİsSſkKKσςΣßẞﬅﬆ_1 .\n-中é"
PIECE = st.text(alphabet=st.sampled_from(LETTERS), max_size=6)
WORD = st.text(alphabet=st.sampled_from(LETTERS), min_size=1, max_size=5)


@given(
    texts=st.lists(PIECE, max_size=40),
    words=st.lists(WORD, min_size=1, max_size=4),
    exclude=st.lists(WORD, max_size=3),
    match=st.sampled_from(["word", "substring"]),
)
@settings(max_examples=400, deadline=None)
def test_the_index_finds_what_the_pattern_finds(texts, words, exclude, match):
    config = NoWait(words=tuple(words), quirks={"exclude": tuple(exclude), "match": match})
    search = re.compile(pattern_of(config)).search
    index = TextIndex(texts)
    found = index.holding(words, whole=match == "word") & ~index.holding(exclude)
    assert found.tolist() == [bool(search(text)) for text in texts]


@given(texts=st.lists(PIECE, max_size=40), ends=st.lists(WORD, min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_ends_are_found_case_included(texts, ends):
    assert TextIndex(texts).ending_in(ends).tolist() == [t.endswith(tuple(ends)) for t in texts]


def test_letters_fold_as_regular_expressions_fold_them():
    letters = [chr(code) for code in range(0x20, 0x2C00) if chr(code).isalpha()]
    same = {}
    for letter in letters:
        same.setdefault(fold(letter), []).append(letter)
    for group in same.values():
        pattern = re.compile(re.escape(group[0]), re.IGNORECASE)
        assert all(pattern.fullmatch(letter) for letter in group)
    for one in "aisſkKσςßẞİıμµ":
        pattern = re.compile(re.escape(one), re.IGNORECASE)
        assert [c for c in letters if pattern.fullmatch(c)] == same[fold(one)]


def test_a_word_costs_the_places_where_it_can_stand_and_no_pattern(monkeypatch):
    made = random.Random(0)
    texts = ["".join(made.choices("abcdefghijklmnopqrst", k=6)) for _ in range(30_000)]
    index = TextIndex(texts)
    monkeypatch.setattr(re, "compile", lambda *_: pytest.fail("a pattern"))
    words = [text[:5] for text in texts[:64]]
    found = index.holding(words) & ~index.holding([text[:4] for text in texts[64:128]])
    assert found.any()
    # 128 words over 180 000 letters: a look at every text would be 23 million.
    assert index.compared < 100_000


@pytest.mark.parametrize("make", [byte_level, sentence_piece, word_piece])
def test_texts_are_what_decode_writes(make):
    tokenizer = make()
    texts = texts_of(tokenizer, 0).texts
    known = tokenizer.get_vocab().values()
    if make is byte_level:
        assert [texts[i] for i in known] == [tokenizer.decode([i]) for i in known]
    else:
        # Alone, a token loses its blank, or gets a sign that it goes on.
        bare = [tokenizer.decode([i]).removeprefix("##").strip(" ") for i in known]
        assert [texts[i].strip(" ") for i in known] == bare


def test_nowait_on_a_tokenizer_with_blanks_of_its_own():
    tokenizer = sentence_piece()
    vocabulary = Vocabulary.of(tokenizer, size_of(tokenizer))
    ids = vocabulary.matching(["wait", "but"], "nowait.words", limit=99)
    assert {vocabulary.texts[i] for i in ids} == {"wait", " wait", "Wait", " Wait", " but", "but"}


def test_words_are_encoded_only_where_a_token_could_be_one(monkeypatch):
    tokenizer = byte_level()
    vocabulary = Vocabulary(tokenizer, size_of(tokenizer))
    asked = []
    encode = Texts.encode
    monkeypatch.setattr(Texts, "encode", lambda self, t: asked.extend(t) or encode(self, t))
    ids = vocabulary.words(("wait", "hippopotamus"), "tip.words", unknown="skip", limit=9)
    assert {vocabulary.texts[i] for i in ids} >= {"wait", " wait", "Wait"}
    assert all("wait" in text.lower() for text in asked)


def test_texts_are_made_once_whoever_asks(monkeypatch):
    made = []
    real = texts_module.token_bytes
    monkeypatch.setattr(texts_module, "token_bytes", lambda *a: made.append(1) or real(*a))
    tokenizer = byte_level()
    size = size_of(tokenizer)
    threads = [
        threading.Thread(target=lambda n=n: Vocabulary(tokenizer, size - n).texts) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    tokenizer.add_tokens(["<new>"])
    assert Vocabulary(tokenizer, size + 1).texts[-1] == "<new>"


def test_a_vocabulary_does_not_keep_its_tokenizer():
    tokenizer = byte_level()
    Vocabulary.of(tokenizer, size_of(tokenizer)).matching(["wait"], "nowait.words", limit=9)
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_many_refused_and_many_accepted_searches_do_not_grow():
    tokenizer = byte_level()
    vocabulary = Vocabulary.of(tokenizer, size_of(tokenizer))
    kept = texts_of(tokenizer, 0).kept
    for n in range(50):
        with pytest.raises(SpecError):
            vocabulary.matching(["a", "b", "c", f"{n}x"], "nowait.words", limit=3)
        with pytest.raises(SpecError):
            vocabulary.matching([f"zebra{n}"], "nowait.words", limit=3)
        with pytest.raises(SpecError):
            vocabulary.words((f"zebra{n}",), "tip.words", limit=3)
    assert len(kept) == kept.num_bytes == 0
    for n in range(2 * kept.max_entries):
        vocabulary.matching(["wait", f"zebra{n}"], "nowait.words", limit=9)
    assert len(kept) == kept.max_entries
    assert 0 < kept.num_bytes <= kept.max_bytes


def test_a_cache_lets_the_oldest_go_and_keeps_nothing_too_large():
    cache = Bounded(2, 100)
    cache.put("a", 1, 40)
    cache.put("b", 2, 40)
    assert cache.get("a") == 1
    cache.put("c", 3, 40)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
    cache.put("d", 4, 101)
    assert cache.get("d") is None
    cache.put("a", 5, 90)
    assert (len(cache), cache.num_bytes, cache.get("a")) == (1, 90, 5)


def given_to(found, **kwargs):
    tokenizer = byte_level()
    vocabulary = Vocabulary(tokenizer, size_of(tokenizer), {"nowait.words": found})
    return vocabulary.matching(["wait"], "nowait.words", limit=9, **kwargs)


def test_what_was_found_before_is_taken_without_a_search(monkeypatch):
    monkeypatch.setattr(TextIndex, "holding", lambda *_, **__: pytest.fail("a search"))
    assert given_to([5, 3]) == (5, 3)


@pytest.mark.parametrize(
    "found", [[-1], [10**6], ["5"], [1.0], [True], list(range(10)), "12", {"a": 1}, None]
)
def test_what_cannot_have_been_found_is_refused(found):
    with pytest.raises(SpecError, match=r"nowait\.words.*as the front end found"):
        given_to(found)


def test_the_size_goes_up_to_the_largest_id_within_the_logits():
    tokenizer = byte_level(holes=(3, 70), gap=500)
    largest = max(tokenizer.get_vocab().values())
    assert len(tokenizer) < largest
    assert vocabulary_size(tokenizer, 10_000) == largest + 1
    assert vocabulary_size(tokenizer, 300) == 300
    assert vocabulary_size(None, 300) == 300
    found = holes(tokenizer, 10_000)
    assert {3, 70} < set(found)
    assert set(found) == set(range(largest + 1)) - set(tokenizer.get_vocab().values())
    assert holes(tokenizer, 71) == (3, 70)
    assert holes(byte_level(), 10_000) == ()
