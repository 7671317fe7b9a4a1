"""The published profiles give the numbers of the authors' code, through the core's own steps.

The records were made by running the reference functions alone, in float32 on a CPU.
"""

import json
from pathlib import Path

import pytest
import torch
from built_in import Core, bind
from tokenlens_kernels import concept_mixture
from tokenlens_kernels.signals_topk import entries

from tokenlens import DecodingSpec
from tokenlens.core import Phase
from tokenlens.core.columns import PHASE
from tokenlens.methods.soft_thinking.step import ABORTED, COUNTER
from tokenlens.spec import ColdStop, GumbelNoise, PhaseConfig, SoftThinking

VECTORS = json.loads(
    (Path(__file__).parent.parent / "vectors" / "soft_methods.json").read_text(encoding="utf-8")
)
LOGITS = torch.tensor(VECTORS["logits"])
VOCAB = LOGITS.shape[1]
K = 4
TOLERANCE = 1e-5


def published(**settings):
    """The published profile at the records' settings.

    The records ask for top-k 30 of a vocabulary of 8, which cuts nothing; the core refuses a top-k
    above the vocabulary, and 8 cuts nothing either.
    """
    return SoftThinking.model_validate(
        {"profile": "published", "top_k": VOCAB, "max_entries": K, **settings}
    )


def core_of(*methods, vocab=VOCAB, rows=3, eos=(), **core):
    """A core with one request a row. Token 5 ends thinking: it is on top of no record's weights.

    The Cold Stop records have a vocabulary of 10 and end thinking with token 9.
    """
    phase = PhaseConfig(think_start=(4,), think_end=(9,) if vocab == 10 else (5,))
    # A full trace: the records' entropies are compared, which nobody else asks for.
    spec = DecodingSpec(methods=methods, phase=phase, trace={"level": "full"})
    request = bind(spec, tokenizer=None, vocab_size=vocab, eos_ids=eos)
    made = Core(max_slots=rows, vocab_size=vocab, **core)
    for slot in range(rows):
        made.add(slot, request, [])
    return made


def decided(core, logits=LOGITS):
    """What one step feeds: ids and weights ``[rows, K]``, the visible tokens, and the entropies."""
    slots = torch.arange(len(logits))
    tokens = core.step(logits, slots).argmax(1)
    step = core.commit(tokens, slots)
    return core.next_input.ids[:-1, :K], core.next_input.weights[:-1, :K], tokens, step


def check(record, core):
    ids, weights, tokens, step = decided(core)
    wanted = torch.tensor(record["topk_weights"])
    torch.testing.assert_close(weights, wanted, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(
        step.entropy, torch.tensor(record["entropy"]), rtol=0, atol=TOLERANCE
    )
    assert tokens.tolist() == record["next_token"]
    # The reference leaves arbitrary ids where the weight is zero.
    live = wanted > 0
    assert torch.equal(ids[live], torch.tensor(record["topk_indices"])[live])
    return step


def test_temperature_topk_topp_and_the_cut():
    step = check(VECTORS["st_T0.6_k30_p0.95_K4"], core_of(published()))
    # No row's token ends thinking: every row feeds a mixture.
    assert step.latent.tolist() == [True, True, True]


def test_min_p():
    check(VECTORS["st_minp0.2"], core_of(published(min_p=0.2)))


@pytest.mark.parametrize("wrong", [{"temperature": 1.0}, {"top_p": 0.5}, {"max_entries": 3}])
def test_the_record_is_not_met_by_other_settings(wrong):
    with pytest.raises(AssertionError):
        check(VECTORS["st_T0.6_k30_p0.95_K4"], core_of(published(**wrong)))


def inject_gumbel(monkeypatch, record):
    """Let the signals op draw the record's noise: the k-th largest entry gets its k-th draw."""
    draws = -torch.tensor(record["exp"]).log()

    def gumbel(seed, counter):
        noise = torch.zeros(counter.shape)
        noise[:, :K] = draws[: len(counter)]
        return noise.numpy()

    monkeypatch.setattr(entries, "gumbel", gumbel)


def test_gumbel_with_the_records_noise(monkeypatch):
    record = VECTORS["st_gumbel_tau0.5"]
    inject_gumbel(monkeypatch, record)
    check(record, core_of(published(), GumbelNoise(profile="published")))


def test_gumbel_with_other_noise_gives_other_numbers():
    with pytest.raises(AssertionError):
        check(VECTORS["st_gumbel_tau0.5"], core_of(published(), GumbelNoise(profile="published")))


def scripted(entropies, entries, width):
    """A signals op that says what the script says, step by step."""
    script = iter(zip(entropies, entries, strict=True))

    def signals(logits, **arguments):
        entropy, (ids, weights) = next(script)
        rows = len(logits)
        flat = torch.full((rows,), float(entropy))
        padded_ids = torch.full((rows, width), ids[0])
        padded_ids[:, : len(ids)] = torch.tensor(ids)
        padded = torch.zeros(rows, width)
        padded[:, : len(weights)] = torch.tensor(weights)
        return torch.zeros(rows), flat, torch.ones(rows), padded, padded_ids, padded, padded_ids

    return signals


def state(core, field):
    return int(core.table.ints[0, core.table.columns[field].start])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weighted_embedding(dtype):
    record = VECTORS["st_weighted_embedding"]
    table = torch.linspace(-1, 1, 24).reshape(6, 4).to(dtype)
    wanted = torch.tensor(record[str(dtype)])
    for row, (ids, weights) in enumerate(zip(record["ids"], record["weights"], strict=True)):
        # The second record's weights do not sum to 1: the feed plan divides, as the reference does.
        core = core_of(
            published(top_k=6), vocab=6, rows=1, signals=scripted([1.0], [(ids, weights)], 6)
        )
        slots = torch.tensor([0])
        # A marker on top would end thinking; the script's top entry is never one.
        core.commit(core.step(torch.zeros(1, 6), slots).argmax(1), slots)
        mixture = concept_mixture(table, core.next_input.ids[:1], core.next_input.weights[:1])[
            0
        ].float()
        # The reference sums in bfloat16; the sum here is in float32 and rounded once.
        two_ulp = 2 * 2.0**-8 * wanted[row].abs()
        tolerance = two_ulp if dtype == torch.bfloat16 else torch.tensor(TOLERANCE)
        assert bool(((mixture - wanted[row]).abs() <= tolerance).all())


def cold_stop_core(record, soft_settings=None):
    stop = None
    if record["thr"] > 0:
        stop = ColdStop(entropy_threshold=record["thr"], patience=record["length"])
    steps = record["rows"]
    # While soft, a record's entries start at its arg-max; afterwards it holds what was recorded.
    entries = [(s["ids"], s["w"]) if s["soft_after"] else ([s["argmax"]], [1.0]) for s in steps]
    settings = {"cold_stop": stop, **(soft_settings or {})}
    return core_of(
        published(**settings),
        vocab=10,
        rows=1,
        eos=(0,),
        signals=scripted([s["H"] for s in steps], entries, 10),
    )


def follow(record, core):
    """Drive a record's steps through a core; yields the record's line beside what happened."""
    slots = torch.tensor([0])
    for line in record["rows"]:
        aborting = bool(state(core, ABORTED))
        token = core.step(torch.zeros(1, 10), slots).argmax(1)
        core.commit(token, slots)
        feed = core.next_input
        live = feed.weights[0] > 0
        found = {
            "out": int(token),
            "soft_after": state(core, PHASE) == Phase.THINKING,
            "counter": state(core, COUNTER),
            "abort": bool(state(core, ABORTED)),
            "ids": feed.ids[0][live].tolist(),
            "w": feed.weights[0][live].tolist(),
        }
        yield line, found, aborting


@pytest.mark.parametrize("index", range(len(VECTORS["st_cold_stop"])))
def test_cold_stop(index):
    record = VECTORS["st_cold_stop"][index]
    for line, found, aborting in follow(record, cold_stop_core(record)):
        if aborting:
            # The reference engine ends an aborted request outside the recorded function; the core
            # does it here, with the end-of-text token. The record just goes on.
            assert found["out"] == 0
            return
        live = [place for place, weight in enumerate(line["w"]) if weight > 0]
        assert found["ids"] == [line["ids"][place] for place in live]
        assert found["w"] == pytest.approx([line["w"][place] for place in live], abs=TOLERANCE)
        assert bool(found["soft_after"]) == line["soft_after"]
        assert {k: found[k] for k in ("out", "counter", "abort")} == {
            k: line[k] for k in ("out", "counter", "abort")
        }


def test_some_record_aborts_and_some_ends_by_itself():
    outs = [[line["out"] for line in record["rows"]] for record in VECTORS["st_cold_stop"]]
    aborts = [any(line["abort"] for line in record["rows"]) for record in VECTORS["st_cold_stop"]]
    assert True in aborts
    assert any(9 in out for out in outs)


def test_the_default_profile_does_not_abort_the_answer():
    record = VECTORS["st_cold_stop"][0]
    core = cold_stop_core(record, {"quirks": {"abort_answer_on_low_entropy": False}})
    lines = [found for _, found, _ in follow(record, core)]
    assert not any(line["abort"] for line in lines)
    # In the answer nothing counts then.
    assert [line["counter"] for line in lines if not line["soft_after"]] == [0] * 5


def test_a_threshold_is_strict():
    record = VECTORS["st_cold_stop"][1]
    first = next(iter(follow(record, cold_stop_core(record))))[1]
    assert (record["rows"][0]["H"], record["thr"], first["counter"]) == (0.1, 0.1, 0)
