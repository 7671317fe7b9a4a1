"""The gated methods give the numbers of the authors' step functions, through the core's own steps.

The records hold what each step fed to a model whose embedding of token ``i`` is ``(i, i^2 / 10)``.
"""

import json
from pathlib import Path

import pytest
import torch
from built_in import Core, bind
from tokenlens_kernels import concept_mixture, dense_mixture

from tokenlens import DecodingSpec
from tokenlens.methods._shared.gate.step import SWITCHES
from tokenlens.spec import (
    Blend,
    Gate,
    Lead,
    PhaseConfig,
    Selar,
    SwiReasoning,
    SwitchControl,
    ThinkRouter,
)
from tokenlens.spec.needs import Need

VECTORS = json.loads(
    (Path(__file__).parent.parent / "vectors" / "soft_methods.json").read_text(encoding="utf-8")
)
VOCAB = 12
IDS = torch.arange(VOCAB, dtype=torch.float32)
TABLE = torch.stack([IDS, IDS**2 / 10], dim=1)
IMAGE_PAD, START, END, BACKSLASH_N, EOS = 7, 8, 9, 10, 11
TOLERANCE = 1e-5


class Tables:
    """An engine's vectors: the product with the whole table."""

    hosts = Need.DENSE_MIXTURE
    hidden_size = 2

    def dense(self, logits, active, inverse_temperature):
        return dense_mixture(
            logits, TABLE, active=active, inverse_temperature=inverse_temperature, vocab_size=VOCAB
        )


def core_of(*methods, eos=(EOS,), seed=0):
    phase = PhaseConfig(think_start=(START,), think_end=(END,))
    spec = DecodingSpec(methods=methods, phase=phase, seed=seed)
    core = Core(max_slots=1, vocab_size=VOCAB, engine_vectors=Tables())
    request = bind(spec, tokenizer=None, vocab_size=VOCAB, eos_ids=eos)
    core.add(0, request, [START])
    return core


def peak(token, height):
    logits = torch.zeros(1, VOCAB)
    logits[0, token] = height
    return logits


def entropy(height):
    """Of a peaked row, in nats."""
    return float(torch.special.entr(torch.softmax(peak(0, height)[0].double(), 0)).sum())


def fed(core, step):
    """What the next forward pass embeds, and whether it is latent."""
    feed = core.next_input
    if not bool(feed.latent[0]):
        return TABLE[step.token[0]], False
    mixture = concept_mixture(TABLE, feed.ids[:1], feed.weights[:1])[0]
    return mixture + feed.base[0] * feed.base_weight[0], True


def follow(core, script, tokens=None):
    """Drive scripted peaks through a core; what was sampled, fed and latent at each step."""
    slots = torch.tensor([0])
    for place, (token, height) in enumerate(script):
        sampled = core.step(peak(token, height), slots).argmax(1)
        if tokens is not None:
            sampled = torch.tensor([tokens[place]])
        step = core.commit(sampled, slots)
        x, latent = fed(core, step)
        yield int(sampled), x, latent


def swir(published=True, **settings):
    profile = {"profile": "published"} if published else {}
    given = {
        "gate": Gate(of="raw", trend=True, first="latent", dwell_discrete=2),
        "first": Blend(tokens=(BACKSLASH_N,), keep=0.9),
        "enter": Blend(tokens="think_start", keep=0.6, moves=True),
        "leave": Blend(tokens="think_end", keep=0.7, moves=True),
        "budget": 20,
    }
    return SwiReasoning.model_validate({**profile, **given, **settings})


def test_swi_reasoning():
    record = VECTORS["swir_basic"]
    for place, (token, x, _) in enumerate(follow(core_of(swir()), record["steps"])):
        assert token == record["tokens"][place]
        if place < len(record["fed_embeddings"]):
            wanted = torch.tensor(record["fed_embeddings"][place])
            torch.testing.assert_close(x, wanted, rtol=0, atol=TOLERANCE)


def test_the_top_k_mixture_is_the_full_one_where_the_tail_is_light():
    script = [(0, 14.0), (3, 12.0), (3, 13.0), (2, 11.0), (5, 12.5)]
    exact, near = (follow(core_of(swir(mixture=m)), script) for m in ("full", "top_k"))
    for (_, x, latent), (_, y, also) in zip(exact, near, strict=True):
        assert latent == also
        torch.testing.assert_close(x, y, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gate": Gate(of="raw", trend=True, first="latent", dwell_discrete=3)},
        {"first": None},
        {"enter": Blend(tokens="think_start", keep=0.6)},
        {"leave": Blend(tokens="think_end", keep=0.7)},
        {"budget": 21},
    ],
)
def test_the_record_is_not_met_by_other_settings(wrong):
    record = VECTORS["swir_basic"]
    found = [x for _, x, _ in follow(core_of(swir(**wrong)), record["steps"])]
    wanted = torch.tensor(record["fed_embeddings"])
    assert float((torch.stack(found[: len(wanted)]) - wanted).abs().max()) > 10 * TOLERANCE


# The trace of section 4.1: the model ends its thinking in a latent block.
NATURAL_END = [(0, 1.0), (1, 0.5), (END, 0.8), (3, 0.9), (4, 3.0), (5, 0.5), (6, 0.5), (4, 3.0)]


def test_published_a_blend_may_follow_the_end_of_thinking():
    core = core_of(swir(gate=Gate(of="raw", trend=True, first="latent", dwell_discrete=2)))
    found = list(follow(core, NATURAL_END))
    latent = [latent for _, _, latent in found]
    # The lock keeps mixtures out; a switch in the answer still feeds its blend, once.
    end = next(place for place, (token, _, _) in enumerate(found) if token == END)
    assert sum(latent[end:]) == 1
    assert latent[end + 1 :].count(True) == 1


def test_default_nothing_is_latent_after_the_end_of_thinking():
    core = core_of(swir(published=False))
    found = list(follow(core, NATURAL_END))
    end = next(place for place, (token, _, _) in enumerate(found) if token == END)
    assert not any(latent for _, _, latent in found[end:])


def lead(published=True, **settings):
    profile = {"profile": "published"} if published else {}
    given = {
        "gate": Gate(
            of="raw", trend=True, enter=1.0, leave=0.2, enter_at_bound=False, first="latent",
            dwell_discrete=2,
        ),
        "first": None,
        "enter": Blend(tokens=(IMAGE_PAD,), keep=0.6, moves=True),
        "switch_control": None,
        "budget": 20,
    }  # fmt: skip
    return Lead.model_validate({**profile, **given, **settings})


# Heights whose entropies are those of the trace in section 5: 1.83 is below the reference but not
# below 0.2; 0.854 is above the reference and not above 1.0.
LEAD_SCRIPT = [(0, 2.0), (0, 2.5), (1, 6.5), (2, 6.5), (3, 4.5), (4, 3.2), (5, 0.0)]


def test_lead_switches_between_its_bounds():
    heights = [height for _, height in LEAD_SCRIPT]
    assert 0.2 < entropy(heights[1]) < entropy(heights[0])
    assert entropy(heights[2]) < 0.2 < entropy(heights[4]) < 1.0 < entropy(heights[5])
    core = core_of(lead())
    found = list(follow(core, LEAD_SCRIPT))
    # Latent, latent, the blend at leaving, discrete, discrete (below 1.0), latent with the anchor.
    assert [latent for _, _, latent in found] == [True, True, True, False, False, True, True]
    p = torch.softmax(peak(4, 3.2)[0], 0)
    keep = 0.6 + 0.4 * 5 / 20
    wanted = keep * (p @ TABLE) + (1 - keep) * TABLE[IMAGE_PAD]
    torch.testing.assert_close(found[5][1], wanted, rtol=0, atol=TOLERANCE)
    assert int(core.table.column(SWITCHES)[0]) == 1


def test_leads_default_follows_the_trend_alone():
    core = core_of(
        lead(published=False, gate=Gate(of="raw", trend=True, first="latent", dwell_discrete=1),
             enter=None, leave=None)
    )  # fmt: skip
    latent = [latent for _, _, latent in follow(core, LEAD_SCRIPT)]
    # Down at once, without a bound; up when the entropy passes that of the switch, 1.83 nats.
    assert latent == [True, False, False, False, False, False, True]


def test_leads_visual_anchor_is_the_mean_of_three():
    blend = Blend(tokens=(6, IMAGE_PAD, 8), keep=0.4)
    core = core_of(lead(enter=blend))
    found = list(follow(core, LEAD_SCRIPT))
    p = torch.softmax(peak(4, 3.2)[0], 0)
    wanted = 0.4 * (p @ TABLE) + 0.6 * TABLE[[6, 7, 8]].mean(0)
    torch.testing.assert_close(found[5][1], wanted, rtol=0, atol=TOLERANCE)
    assert Lead.VISION.tokens[1] == "<|image_pad|>"


def selar_row():
    record = VECTORS["selar"]
    logits = torch.full((1, VOCAB), -50.0)
    logits[0, record["ids"]] = torch.tensor(record["top3_probs"]).log()
    return logits, record


def test_selar():
    logits, record = selar_row()
    gate = Gate(of="topk", unit="fraction", enter=0.5)
    core = core_of(Selar(gate=gate, temperature=1.0, top_k=VOCAB))
    slots = torch.tensor([0])
    # The engine samples the visible token, whatever it is.
    core.step(logits, slots)
    step = core.commit(torch.tensor([6]), slots)
    x, latent = fed(core, step)
    assert latent
    torch.testing.assert_close(x, torch.tensor(record["fed"]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("enter", "latent"), [(0.9515, True), (0.9516, False)])
def test_selars_gate_is_of_the_top_three_as_a_fraction(enter, latent):
    logits, record = selar_row()
    assert record["H_normalised"] == pytest.approx(0.95155, abs=1e-5)
    core = core_of(
        Selar(gate=Gate(of="topk", unit="fraction", enter=enter), temperature=1.0, top_k=VOCAB)
    )
    slots = torch.tensor([0])
    core.step(logits, slots)
    step = core.commit(torch.tensor([2]), slots)
    assert fed(core, step)[1] is latent


@pytest.mark.parametrize(("published", "latent"), [(True, True), (False, False)])
def test_published_selar_is_latent_in_the_answer_too(published, latent):
    profile = {"profile": "published"} if published else {}
    gate = Gate(of="topk", unit="fraction", enter=0.5)
    core = core_of(Selar.model_validate({**profile, "gate": gate, "top_k": VOCAB}))
    found = list(follow(core, [(END, 0.1), (2, 0.1), (3, 0.1)], tokens=[END, 2, 3]))
    assert [latent for _, _, latent in found[1:]] == [latent, latent]


def test_exempt_tokens_are_fed_as_themselves():
    gate = Gate(of="topk", unit="fraction", enter=0.5, exempt=(3,))
    core = core_of(Selar(gate=gate, top_k=VOCAB))
    found = list(follow(core, [(3, 0.1)] * 2, tokens=[3, 2]))
    assert [latent for _, _, latent in found] == [False, True]
    assert torch.equal(found[0][1], TABLE[3])


@pytest.mark.parametrize(("height", "latent"), [(3.0, True), (2.0, False)])
def test_think_router_samples_where_the_model_is_not_sure(height, latent):
    core = core_of(
        ThinkRouter(
            temperature=1.0, top_k=4, max_entries=4,
            gate=Gate(signal="max_probability", enter=0.5),
        )
    )  # fmt: skip
    slots = torch.tensor([0])
    logits = peak(3, height)
    edited = core.step(logits, slots)
    # A discrete step leaves the logits to the engine's sampler.
    assert torch.equal(edited, logits) is not latent
    step = core.commit(torch.tensor([3]), slots)
    assert bool(step.latent[0]) is latent
    assert bool(step.forced[0]) is latent


def test_think_router_goes_latent_at_the_bound_itself():
    p = float(torch.softmax(peak(3, 1.0)[0], 0).max())
    for enter, latent in ((p, True), (p + 1e-6, False)):
        gate = Gate(signal="max_probability", of="raw", enter=enter)
        core = core_of(ThinkRouter(temperature=0.6, top_k=4, max_entries=4, gate=gate))
        assert next(iter(follow(core, [(3, 1.0)])))[2] is latent


@pytest.mark.parametrize(
    ("of", "height", "latent"),
    # The same row: sure after temperature 0.5, not sure before; surest after the filters.
    [("raw", 2.0, False), ("tempered", 2.0, True), ("filtered", 1.0, True), ("topk", 1.0, False)],
)
def test_where_the_probability_is_taken(of, height, latent):
    gate = Gate(signal="max_probability", of=of, enter=0.6, top=12)
    core = core_of(
        ThinkRouter(temperature=0.5, top_k=0 if of == "topk" else 3, max_entries=3, gate=gate)
    )
    assert next(iter(follow(core, [(3, height)])))[2] is latent


@pytest.mark.parametrize(
    ("published", "tokens"),
    [
        # Switches 1 and 2 converge with token 1 at the next step; the third terminates with 2, and
        # three tokens later, counted from the switch, the request ends.
        (False, [3, 3, 1, 4, 1, 5, 2, 6, EOS, EOS, EOS]),
        # The reference arms again at each switch beyond the last.
        (True, [3, 3, 1, 4, 1, 5, 2, 6, 2, 3, EOS]),
    ],
)
def test_switch_control_injects_and_ends(published, tokens):
    gate = Gate(of="raw", trend=True, first="latent")
    control = SwitchControl.model_validate(
        {"after": 1, "converge": "c", "terminate": "d", "answer_tokens": 3}
    )

    class Letters:
        def encode(self, text, *, add_special_tokens=True):
            return [{"c": 1, "d": 2}[letter] for letter in text]

        def decode(self, ids, **_):
            return "".join({1: "c", 2: "d"}[i] for i in ids)

    phase = PhaseConfig(think_start=(START,), think_end=(END,))
    spec = DecodingSpec(methods=(swir(published, gate=gate, switch_control=control),), phase=phase)
    core = Core(max_slots=1, vocab_size=VOCAB, engine_vectors=Tables())
    core.add(0, bind(spec, tokenizer=Letters(), vocab_size=VOCAB, eos_ids=(EOS,)), [START])
    # Down, up, down, ...: each low step leaves a latent block.
    script = [(3, 1.0), (3, 3.0), (4, 2.0), (4, 4.0), (5, 3.0), (5, 5.0), (6, 4.0), (6, 6.0)]
    found = [token for token, _, _ in follow(core, [*script, (3, 1.0), (3, 1.0), (3, 1.0)])]
    assert found == tokens
