"""Markers on real vocabularies: after every token the phase is the one that the text has."""

import random
from dataclasses import replace

import pytest
import torch
from built_in import Core, bind
from core_solo import Letters
from real_vocabularies import NAMES, load

from tokenlens import SpecError, parse_spec
from tokenlens.core import Phase, marker_table
from tokenlens.core import automaton as automata
from tokenlens.core.automaton import Ends, Tokens, of_texts
from tokenlens.core.columns import PHASE
from tokenlens.core.marker_columns import EFFECT, STATE_SHIFT
from tokenlens.spec.texts import texts_of
from tokenlens.spec.turns import Turns, turns_of

PAIRS = [
    ("<think>", "</think>"),
    ("<think>\n", "</think>\n\n"),
    ("<|im_start|>think", "<|im_start|>answer"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("Here is my thought process:", "Here is my response:"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("\U0001f914", "\u7b54\u6848"),
]
PIECES = [
    *("", " ", "\n", "\n\n", ".", ". ", "<", "</", ">", ">>", "/", "think", "Here is my", "5", "a"),
    *(
        "the",
        "The",
        "\u4e2d\u6587",
        "\U0001f600",
        "\u00e9",
        "**",
        "`",
        "x < 5",
        "'</",
        "</div>",
        "|>",
    ),
    *("<|im_start", "<|", "\u25c1", "\U0001f60e"),
]


@pytest.fixture(params=NAMES)
def tokenizer(request):
    return load(request.param)


def bound(tokenizer, start, end, *methods, **more):
    spec = {
        "methods": list(methods) or [{"method": "no_thinking"}],
        "phase": {"think_start": start, "think_end": end},
    }
    return bind(parse_spec(spec), tokenizer=tokenizer, vocab_size=len(tokenizer), **more)


def written(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def wanted(before, text, start, end):
    """The phase of a text whose beginning was a prompt, read off the text alone."""

    def last(where):
        stops = [where.rfind(marker) + len(marker) if marker in where else -1
                 for marker in (start, end)]  # fmt: skip
        return stops

    opened, closed = last(text)
    # Half a character is not there yet.
    if max(opened, closed) <= len(before.rstrip("\ufffd")):
        opened, closed = last(before)
        if opened == closed:
            return Phase.PROMPT
        if closed > opened and before[closed:].strip():
            return Phase.PROMPT
    return Phase.THINKING if opened > closed else Phase.ANSWER


def random_ids(draw, tokenizer, start, end, cuts):
    """Tokens of a text with markers in it, cut where the tokenizer would, or anywhere."""
    parts = draw.choices(PIECES, k=draw.randint(2, 9))
    for _ in range(draw.randint(1, 3)):
        parts.insert(draw.randrange(len(parts) + 1), draw.choice([start, end]))
    text = "".join(parts)
    places = sorted(draw.randrange(len(text) + 1) for _ in range(draw.choice([0, 0, 3]) * cuts))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    return [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False)]


def phases_on_device(core, request, sequences):
    """The phase after every token of some sequences, each of which begins with a prompt."""
    slots = torch.arange(len(sequences))
    for slot, (prompt, _) in enumerate(sequences):
        core.add(slot, request, prompt)
    found = [core.table.column(PHASE)[slots]]
    for step in range(max(len(ids) for _, ids in sequences)):
        sampled = torch.tensor([ids[step] if step < len(ids) else 0 for _, ids in sequences])
        core.commit(sampled, slots, torch.tensor([step < len(ids) for _, ids in sequences]))
        found.append(core.table.column(PHASE)[slots])
    return torch.stack(found, dim=1).tolist()


def differences(tokenizer, number=40):
    draw = random.Random(7)
    core = Core(max_slots=number, vocab_size=len(tokenizer))
    found, checked = [], 0
    for start, end in PAIRS:
        try:
            request = bound(tokenizer, start, end)
        except SpecError as error:
            assert "at most 8 tokens" in str(error)  # noqa: PT017
            continue
        texts = request.markers.automaton is not None and all(
            marker.text for marker in (*request.markers.starts, *request.markers.ends)
        )
        sequences = []
        for _ in range(number):
            ids = random_ids(draw, tokenizer, start, end, texts)
            cut = draw.randrange(len(ids))
            sequences.append((ids[:cut], ids[cut:]))
        rows = phases_on_device(core, request, sequences)
        for (prompt, ids), phases in zip(sequences, rows, strict=True):
            before = written(tokenizer, prompt)
            if request.markers.turns.follow_text(before):
                continue  # see below
            for step in range(len(ids) + 1):
                text = written(tokenizer, prompt + ids[:step])
                checked += 1
                if phases[step] != wanted(before, text, start, end):
                    found.append((before, text, start, end, phases[step]))
    assert checked > 1500
    return found


def test_the_phase_after_every_token_is_the_one_that_the_text_has(tokenizer):
    assert differences(tokenizer)[:3] == []


def test_without_the_pieces_of_markers_it_would_not_be(monkeypatch):
    monkeypatch.setattr(automata, "_groups", lambda patterns, tokens: iter(()))
    texts = Letters("_ab<>/think\n.")
    tokens = Tokens(texts_of(texts, 13).contents)
    whole = {tuple(b"</think>"): 2}
    broken = of_texts(whole, tokens, Ends({}, {}))
    monkeypatch.undo()
    sound = of_texts(whole, tokens, Ends({}, {}))
    ids = texts.encode("a</think>")
    assert sound.run(ids)[1] == Phase.ANSWER
    assert broken.run(ids)[1] != Phase.ANSWER


SURROUNDED = [".", ",", ")", '"', " ", "\n", "\n\n", ":", "!", "**", "<", "a", "5", "\u4e2d"]


@pytest.mark.parametrize("after", [0, 2])
def test_a_forced_end_ends_thinking_in_every_surrounding(tokenizer, after):
    for start, end in (PAIRS[0], PAIRS[1]):
        request = bound(tokenizer, start, end, {"method": "answer_now", "after": after})
        opening = tokenizer.encode(f"a{start}", add_special_tokens=False)
        core = Core(max_slots=len(SURROUNDED), vocab_size=len(tokenizer))
        slots = torch.arange(len(SURROUNDED))
        for slot, text in enumerate(SURROUNDED):
            core.add(slot, request, opening + tokenizer.encode(text, add_special_tokens=False))
        steps = after + len(request.end_markers[0])
        for _ in range(steps):
            edited = core.step(torch.zeros(len(slots), len(tokenizer)), slots)
            core.commit(edited.argmax(1), slots)
        assert core.table.column(PHASE)[slots].tolist() == [Phase.ANSWER] * len(slots)


def piece(random):
    """A short text of few letters, which is often a part of another one."""
    return bytes(random.choice(b"ab <") for _ in range(random.randint(1, 6)))


def test_the_text_of_tokens_is_joined_with_its_stops():
    tokens = Tokens([b"a", b"", b"bcd"])
    assert tokens.joined([2, 1, -1, 0, 3, 2]) == (b"bcdabcd", [3, 3, 3, 4, 4, 7])
    assert tokens.joined([]) == (b"", [])


@pytest.mark.parametrize("seed", range(20))
def test_what_each_token_does_is_what_its_bytes_do(seed):
    r = random.Random(seed)
    texts = [b"", b" " * 300, *{piece(r) for _ in range(200)}]
    start, end = piece(r), piece(r) + b"!"
    patterns = {tuple(start): 1, tuple(end): 2}
    made = of_texts(patterns, Tokens(texts), Ends({}, {}))
    trie = automata.Trie(patterns)
    place = {symbol: 1 + index for index, symbol in enumerate(trie.symbols)}
    for token, text in enumerate(texts):
        for state in range(len(trie.paths)):
            node, effect = state, 0
            for symbol in text:
                column = place.get(symbol, 0)
                node, effect = trie.delta[node, column], trie.out[node, column] or effect
            entry = int(made.moves[state, made.classes[token]])
            assert (entry >> STATE_SHIFT, entry & EFFECT) == (node, effect), (text, state)


def test_what_clients_write_does_not_grow_the_device_s_memory():
    tokenizer = Letters("_abcdefghijklmnopqrstuvwxyz<>/")
    rows, size = 3, 2 * 32 + 4 * marker_table.MAX_MOVES
    core = Core(max_slots=8, vocab_size=30, max_markers=rows)

    def markers(i):
        spec = {
            "methods": [{"method": "no_thinking"}],
            "phase": {"think_start": f"<{chr(97 + i)}", "think_end": f"</{chr(97 + i)}"},
        }
        return bind(parse_spec(spec), tokenizer=tokenizer, vocab_size=30)

    for i in range(20):
        core.add(i % 2, markers(i), tokenizer.encode(f"b<{chr(97 + i)}"))
        assert core.table.column(PHASE)[i % 2] == Phase.THINKING
        core.commit(torch.tensor(tokenizer.encode("<")), torch.tensor([i % 2]))
        core.commit(torch.tensor(tokenizer.encode("/")), torch.tensor([i % 2]))
        core.commit(torch.tensor(tokenizer.encode(chr(97 + i))), torch.tensor([i % 2]))
        assert core.table.column(PHASE)[i % 2] == Phase.ANSWER
    classes, moves = core.marker_table.tensors
    assert 2 * len(classes) + 4 * len(moves) <= (rows + 1) * size
    core.add(2, markers(0), [])
    core.add(3, markers(18), [])  # somebody else has it
    with pytest.raises(SpecError, match=r"beside 3 other ones that are in use"):
        core.add(4, markers(1), [])
    suspended = core.suspend(2)
    with pytest.raises(SpecError, match=r"at most 3 different ones at once"):
        core.add(4, markers(1), [])
    core.discard(suspended)
    core.add(4, markers(1), [])


def numbered(i, kind, fresh):
    """A request with the i-th pair of markers, as texts, as ids or as both."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = (f"<{letters[i]}", f"</{letters[i]}")
    tokenizer = NUMBERED[kind % 2] if fresh else NUMBERED[0]
    start, end = (list(tokenizer.encode(text)) for text in texts)
    phase = [
        {"think_start": texts[0], "think_end": texts[1]},
        {"think_start": start, "think_end": end},
        {"think_start": [texts[0], f"[{letters[i]}"], "think_end": texts[1]},
    ][kind]
    spec = parse_spec({"methods": [{"method": "no_thinking"}], "phase": phase})
    return bind(spec, tokenizer=tokenizer, vocab_size=33), start, end


NUMBERED = [Letters("_abcdefghijklmnopqrstuvwxyz<>/[]") for _ in range(2)]
"""Two of the same: what is known of one is not known of the other."""


@pytest.mark.parametrize("seed", range(4))
def test_places_for_markers_are_shared_taken_and_given_back(seed):
    draw = random.Random(seed)
    most, slots = draw.choice([1, 2, 5]), 8
    core = Core(max_slots=slots, vocab_size=33, max_markers=most)
    seated, away, refused, shared = {}, [], 0, 0
    for _ in range(200):
        slot = draw.randrange(slots)
        act = draw.choice(["add", "add", "remove", "suspend", "resume", "discard"])
        if act == "add":
            i, kind = draw.randrange(most + 3), draw.randrange(3)
            request, start, end = numbered(i, kind, fresh=True)
            held = [key for key, _ in (*seated.values(), *((k, e) for k, e, _ in away))]
            key = request.markers.automaton.key
            if key not in held and len(set(held)) == most:
                before = core.marker_table.rows_in_use
                with pytest.raises(SpecError, match=f"at most {most} different ones"):
                    core.add(slot, request, start)
                assert core.marker_table.rows_in_use == before
                refused += 1
                continue
            shared += key in held
            core.add(slot, request, start)
            seated[slot] = key, end
        elif act == "remove":
            core.remove(slot)
            seated.pop(slot, None)
        elif act == "suspend" and slot in seated:
            away.append((*seated.pop(slot), core.suspend(slot)))
        elif act == "resume" and away:
            key, end, suspended = away.pop(draw.randrange(len(away)))
            core.resume(slot, suspended)
            seated[slot] = key, end
        elif act == "discard" and away:
            core.discard(away.pop()[2])
        held = [key for key, _ in seated.values()] + [key for key, _, _ in away]
        assert core.marker_table.rows_in_use == len(set(held))
    assert refused > 0
    assert shared > 0
    # Who has a place has the right one: each ends with its own end.
    for slot, (_, end) in seated.items():
        assert core.table.column(PHASE)[slot] == Phase.THINKING
        for token in end:
            core.commit(torch.tensor([token]), torch.tensor([slot]))
        assert core.table.column(PHASE)[slot] == Phase.ANSWER
    for _, _, suspended in away:
        core.discard(suspended)
    for slot in list(seated):
        core.remove(slot)
    assert core.marker_table.rows_in_use == 0


def test_a_batch_may_have_other_markers_in_every_row():
    # As many places as slots where nobody says how many: Hugging Face's batches.
    tokenizer = Letters("".join(map(chr, range(200, 400))))
    core = Core(max_slots=90, vocab_size=200)
    for i in range(90):
        phase = {"think_start": [2 * i, 2 * i + 1], "think_end": [2 * i + 1, 2 * i]}
        spec = parse_spec({"methods": [{"method": "no_thinking"}], "phase": phase})
        request = bind(spec, tokenizer=tokenizer, vocab_size=200)
        core.add(i, request, [2 * i, 2 * i + 1])
    slots = torch.arange(90)
    assert (core.table.column(PHASE)[slots] == Phase.THINKING).all()
    for step in (1, 0):
        core.commit(2 * slots + step, slots)
    assert (core.table.column(PHASE)[slots] == Phase.ANSWER).all()


# Prompts.

TEMPLATED = [name for name in NAMES if name != "gptoss"]


@pytest.fixture(params=TEMPLATED)
def chat(request):
    return load(request.param)


def prompt_of(tokenizer, *contents, **template):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **template
    )
    return tokenizer.encode(text, add_special_tokens=False)


WORDS = ["what does {} mean?", "{}", "a {}\n", "say {} and {} twice", "{} I think"]
MARKED = [("<think>", "</think>"), ("<think>\n", "</think>\n\n"), ("[THINK]", "[/THINK]")]


def test_a_marker_in_somebody_else_s_words_is_none(chat):
    draw, checked = random.Random(3), 0
    for start, end in MARKED:
        request = bound(chat, start, end)
        for _ in range(12):
            turns = draw.choice([1, 1, 3, 5])
            contents = [draw.choice(WORDS) for _ in range(turns)]
            marked = [text.format(draw.choice([start, end]), start) for text in contents]
            # An assistant's turn that was cut off inside its thinking is one of them.
            plain = [text.format("it", "it") for text in contents]
            found, same = (request.markers.after(prompt_of(chat, *c)) for c in (marked, plain))
            assert found[:2] == same[:2], marked
            checked += 1
            ids = prompt_of(chat, *marked)
            going_on = ids + chat.encode(f"{start}so far", add_special_tokens=False)
            phase, thinking, _ = request.markers.after(going_on)
            assert phase == Phase.THINKING, "a thought that the request itself began"
            assert thinking > 0
    assert checked == 36


ROLES = (
    ("system", "system", "user"),
    ("system", "user", "system"),
    ("system", "user", "assistant", "system", "user"),
    ("user", "system", "system"),
)


def templated(tokenizer, roles, contents):
    """Ids, ``None`` where the template takes no such conversation."""
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents)]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception:
        return None
    return tokenizer.encode(text, add_special_tokens=False)


def test_several_system_turns_open_no_thought(chat):
    # Some templates merge them, some write each, some refuse them.
    for start, end in MARKED:
        request = bound(chat, start, end)
        for roles in ROLES:
            plain = templated(chat, roles, ["it"] * len(roles))
            if plain is None:
                continue
            same = request.markers.after(plain)
            for place in range(len(roles)):
                contents = ["it"] * len(roles)
                contents[place] = f"think in {start} it"
                ids = templated(chat, roles, contents)
                assert request.markers.after(ids)[:2] == same[:2], (roles, place)
                going_on = ids + chat.encode(f"{start}so far", add_special_tokens=False)
                assert request.markers.after(going_on)[0] == Phase.THINKING


def test_several_system_turns_are_taken_by_most_templates():
    taken = {name: templated(load(name), ROLES[0], ["it"] * 3) for name in TEMPLATED}
    assert sum(ids is not None for ids in taken.values()) >= 3, taken


def test_without_the_ends_of_turns_it_would_be_one(chat):
    request = bound(chat, "<think>", "</think>")
    ids = prompt_of(chat, "what does <think> mean?")
    plain = request.markers.after(prompt_of(chat, "what does it mean?"))[0]
    assert request.markers.after(ids)[0] == plain
    assert replace(request.markers, turns=Turns()).after(ids)[0] == Phase.THINKING


def test_a_completion_without_turns_may_be_thinking(tokenizer):
    for start, end in (PAIRS[0], PAIRS[4]):
        request = bound(tokenizer, start, end)
        ids = tokenizer.encode(f"2+2? {start} well, 5 <", add_special_tokens=False)
        assert request.markers.after(ids)[0] == Phase.THINKING
        ids = tokenizer.encode(f"2+2? {start} well, 5{end}\n\n", add_special_tokens=False)
        assert request.markers.after(ids)[0] == Phase.ANSWER
        ids = tokenizer.encode(f"2+2? {start} well, 5{end}\n\nFour", add_special_tokens=False)
        assert request.markers.after(ids)[0] == Phase.PROMPT


def test_qwen_s_template_switches_thinking_off():
    qwen = load("qwen3")
    request = bound(qwen, None, None)
    assert request.markers.automaton is None
    off = prompt_of(qwen, "what does <think> mean?", enable_thinking=False)
    assert request.markers.after(off)[0] == Phase.ANSWER
    assert request.markers.after(prompt_of(qwen, "<think>"))[0] == Phase.PROMPT


class Plain:
    """A tokenizer whose template separates turns with words."""

    chat_template = "of some sort"

    def apply_chat_template(self, messages, **_):
        names = {"user": "\n\nUSER: ", "assistant": "\n\nASSISTANT: "}
        return "".join(names[m["role"]] + m["content"] for m in messages) + "\n\nASSISTANT: "

    def encode(self, text, *, add_special_tokens=True):
        return [ord(letter) for letter in text]

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


def test_turns_may_be_separated_by_words():
    turns = turns_of(Plain())
    assert turns.plain == ("ASSISTANT:", "USER:", "ASSISTANT:")
    ids = Plain().encode("what is <think>?\n\nASSISTANT: ")
    assert turns.follow(ids, Plain())
    assert not turns.follow(Plain().encode("well, 5"), Plain())


class Pieces(Plain):
    """A tokenizer with tokens of several characters, and a template of its own."""

    pieces = ("]\n", "> USER", ">[", *map(chr, range(128)))

    def __init__(self, write=None):
        self.write = write

    def apply_chat_template(self, messages, **_):
        return self.write(messages)

    def encode(self, text, *, add_special_tokens=True):
        ids = []
        while text:
            ids.append(next(i for i, piece in enumerate(self.pieces) if text.startswith(piece)))
            text = text[len(self.pieces[ids[-1]]) :]
        return ids

    def decode(self, ids, **_):
        return "".join(self.pieces[i] for i in ids)


def vicuna(messages):
    turns = [f" {'USER' if m['role'] == 'user' else 'BOT'}: {m['content']}" for m in messages]
    return "".join(turns) + " BOT:"


def bracketed(messages):
    return "".join(f"[{m['role'][0]}]{m['content']}" for m in messages) + "[a]"


def demanding(messages):
    if messages[0]["role"] != "system":
        raise ValueError("a system message first")
    return bracketed(messages)


def of_parts(messages):
    return bracketed([{**m, "content": m["content"][0]["text"]} for m in messages])


def the_last(messages):
    return f"Q: {messages[-1]['content']}\nA: "


def only_one(messages):
    if len(messages) > 1:
        raise ValueError("one message")
    return the_last(messages)


@pytest.mark.parametrize("write", [vicuna, bracketed, demanding, of_parts, the_last, only_one])
def test_whatever_a_template_demands_the_ends_of_turns_are_known(write):
    tokenizer = Pieces(write)
    request = bind(
        parse_spec({
            "methods": [{"method": "no_thinking"}],
            "phase": {"think_start": "<think>", "think_end": "</think>"},
        }),
        tokenizer=tokenizer,
        vocab_size=len(tokenizer.pieces),
    )  # fmt: skip
    messages = [{"role": "user", "content": "what is <think>"}]
    if write is demanding:
        messages.insert(0, {"role": "system", "content": "hi"})
    if write is of_parts:
        messages[0]["content"] = [{"type": "text", "text": "what is <think>"}]
    prompt = write(messages)
    # Also where the marker's last token has begun the next turn.
    assert request.markers.after(tokenizer.encode(prompt))[0] == Phase.PROMPT
    open_ = tokenizer.encode(f"{prompt}<think>so")
    assert request.markers.after(open_)[:2] == (Phase.THINKING, 2)


@pytest.mark.parametrize(("start", "end"), [("[THINK]", "]"), ("]", "[/THINK]"), ("ab]", "b]")])
def test_of_markers_that_stop_at_the_same_place_the_longer_counts_in_prompts_too(start, end):
    tokenizer = Pieces()
    tokenizer.chat_template = None
    spec = {
        "methods": [{"method": "no_thinking"}],
        "phase": {"think_start": start, "think_end": end},
    }
    request = bind(parse_spec(spec), tokenizer=tokenizer, vocab_size=len(tokenizer.pieces))
    for text, phase in ((start, Phase.THINKING), (end, Phase.ANSWER), (f"x{end}{start}", 1)):
        ids = tokenizer.encode(text)
        assert request.markers.after(ids)[0] == request.markers.leads(ids) == phase


# S1 with a real vocabulary.


def s1_text(tokenizer, start, end, script, ignore=1):
    """What is written where the model's favourite is a script's next token, whatever came."""
    request = bound(tokenizer, start, end, {"method": "s1", "ignore_end": ignore, "text": " Wait"})
    core = Core(max_slots=1, vocab_size=len(tokenizer))
    prompt = tokenizer.encode(f"a{start}", add_special_tokens=False)
    core.add(0, request, prompt)
    slots, out, left = torch.tensor([0]), [], list(script)
    while left:
        logits = torch.zeros(1, len(tokenizer))
        logits[0, left[0]] = 9.0
        token = int(core.step(logits, slots).argmax(1))
        core.commit(torch.tensor([token]), slots)
        out.append(token)
        if token == left[0]:
            left.pop(0)
        elif len(out) > 3 * len(script):
            break
        elif token == tokenizer.encode(" Wait", add_special_tokens=False)[0]:
            # The end was replaced: a model reads that and goes on with something else.
            while left and end not in written(tokenizer, script[: len(script) - len(left)]):
                left.pop(0)
    return written(tokenizer, out), int(core.table.column(PHASE)[0])


@pytest.mark.parametrize("marker", [*PAIRS[:3], PAIRS[5]])
@pytest.mark.parametrize("before", ["it is 5.", "it is 5", "it is 5)\n\n", "so **5** "])
def test_s1_leaves_nothing_of_an_end_that_it_replaces(tokenizer, marker, before):
    start, end = marker
    script = tokenizer.encode(f"{before}{end}", add_special_tokens=False)
    rest = tokenizer.encode(" check", add_special_tokens=False)
    text, phase = s1_text(tokenizer, start, end, script + rest)
    assert phase == Phase.THINKING
    assert " Wait" in text
    # A bracket alone is common: it is no part of an end yet.
    assert not any(piece in text for piece in ("</", "<|", "\u25c1/", "think", "answer")), text
    # Nothing is replaced: the end ends.
    text, phase = s1_text(tokenizer, start, end, script + rest, ignore=0)
    assert phase == Phase.ANSWER
    assert text.lstrip() == f"{before}{end} check".lstrip()
