"""Noise with a log-probability: the authors' numbers, and recomputation equal to the rollout."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from built_in import Core, bind
from tokenlens_kernels import philox

from tokenlens import DecodingSpec
from tokenlens.core.recorder import Recorder
from tokenlens.methods.rollout_scores import (
    cot2_log_probability,
    gaussian_log_probability,
    latent_grpo_log_probability,
    soft_grpo_log_probability,
)
from tokenlens.spec import (
    Cot2,
    LatentGrpo,
    PhaseConfig,
    SoftGrpoNoise,
    SoftThinking,
    TraceConfig,
)
from tokenlens.trace.rollouts import load_rollouts, save_rollouts

VECTORS = json.loads(
    (Path(__file__).parent.parent / "vectors" / "soft_methods.json").read_text(encoding="utf-8")
)
LOGITS = torch.tensor(VECTORS["logits"])
VOCAB = LOGITS.shape[1]
K = 4
TOLERANCE = 1e-5


def core_of(*methods, rows=3, vocab=VOCAB, seed=0):
    phase = PhaseConfig(think_start=(4,), think_end=(5,))
    spec = DecodingSpec(
        methods=methods, phase=phase, seed=seed, trace=TraceConfig(level="full", max_entries=64)
    )
    request = bind(spec, tokenizer=None, vocab_size=vocab)
    core = Core(max_slots=rows, vocab_size=vocab)
    for slot in range(rows):
        # Positions differ, and the noise with them.
        core.add(slot, request, [4], 1 + 100 * slot)
    return core, request


def decided(core, logits=LOGITS):
    slots = torch.arange(len(logits))
    tokens = core.step(logits, slots).argmax(1)
    return core.commit(tokens, slots)


def inject(monkeypatch, draws):
    """Give the k-th entry of each row its k-th draw."""

    def gumbel(seed, offset):
        noise = torch.zeros(offset.shape)
        noise[:, : draws.shape[1]] = draws[: len(offset)]
        return noise

    monkeypatch.setattr(philox, "gumbel", gumbel)


SOFT = SoftThinking(top_k=VOCAB, max_entries=K)


def soft_grpo_step(monkeypatch, **settings):
    """What the record's draws make of the noise, beside the record."""
    record = VECTORS["softgrpo_gumbel_tau0.1_nf1.0"]
    inject(monkeypatch, -torch.tensor(record["exp"]).log())
    core, _ = core_of(SOFT, SoftGrpoNoise(**settings))
    step = decided(core)
    return record, step, core.next_input.weights[:-1, :K]


def test_soft_grpo(monkeypatch):
    record, step, weights = soft_grpo_step(monkeypatch)
    wanted = torch.tensor(record["topk_weights"])
    torch.testing.assert_close(weights, wanted, rtol=0, atol=TOLERANCE)
    assert step.token.tolist() == record["next_token"]
    live = wanted > 1e-12
    assert torch.equal(step.ids[:, :K][live], torch.tensor(record["topk_indices"])[live])
    torch.testing.assert_close(
        step.scores[:, :K][live], torch.tensor(record["topk_gumbels"])[live], rtol=0, atol=TOLERANCE
    )
    torch.testing.assert_close(
        step.log_probability, torch.tensor(record["logp"]), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("wrong", [{"clamp_high": 0.1}, {"scale": 0.9}, {"temperature": 0.2}])
def test_the_record_is_not_met_by_other_settings(monkeypatch, wrong):
    record, step, weights = soft_grpo_step(monkeypatch, **wrong)
    off = (weights - torch.tensor(record["topk_weights"])).abs().max()
    off = off + (step.log_probability - torch.tensor(record["logp"])).abs().max()
    assert float(off) > 10 * TOLERANCE


def test_latent_sft():
    name = "latentgrpo_deterministic_K4 (softmax of top-K raw logits, no temperature)"
    record = VECTORS[name]
    core, _ = core_of(LatentGrpo(max_entries=K))
    step = decided(core)
    wanted = torch.tensor(record["topk_weights"])
    torch.testing.assert_close(core.next_input.weights[:-1, :K], wanted, rtol=0, atol=TOLERANCE)
    assert step.token.tolist() == record["next_token"]
    # Ties are broken by the lower id here, arbitrarily there: row 1 has seven equal logits.
    for row in (0, 2):
        assert step.ids[row, :K].tolist() == record["topk_indices"][row]


def test_latent_grpo_by_hand():
    core, _ = core_of(LatentGrpo(max_entries=2, noise="two_sided", top_p=0.6), rows=1, seed=5)
    step = decided(core, LOGITS[:1])
    log_p = torch.log_softmax(LOGITS[0].double(), 0)
    # The nucleus of 0.6 holds the first two (0.349 + 0.285 before the third).
    place = philox.offset(1, torch.arange(VOCAB), philox.GUMBEL)
    noise = philox.gumbel(5, place).clamp(-1.5, 3.0).double()
    order = torch.sort(log_p, descending=True).indices
    before = log_p[order].exp().cumsum(0) - log_p[order].exp()
    kept = order[(before < 0.6) | (torch.arange(VOCAB) < 2)]
    scores = log_p[kept] + noise[kept]
    top = scores.argsort(descending=True)[:2]
    assert step.ids[0, :2].tolist() == kept[top].tolist()
    weights = torch.softmax(scores[top], 0).float()
    torch.testing.assert_close(step.weights[0, :2], weights, rtol=0, atol=TOLERANCE)
    logp = (-noise[kept[top]] - torch.exp(-noise[kept[top]])).mean()
    assert float(step.log_probability[0]) == pytest.approx(float(logp), abs=TOLERANCE)


def test_one_sided_noise_gives_the_same_mixture_and_another_score():
    found = [
        decided(core_of(LatentGrpo(max_entries=K, noise=noise))[0])
        for noise in ("two_sided", "one_sided")
    ]
    assert torch.equal(found[0].ids, found[1].ids)
    torch.testing.assert_close(found[0].weights, found[1].weights)
    assert bool(((found[1].scores - found[0].scores)[:, :K] > 1.4).all())
    assert not torch.allclose(found[0].log_probability, found[1].log_probability)


def test_latent_grpo_leaves_the_end_of_thinking_alone():
    logits = LOGITS[:1].clone()
    logits[0, 5] = 6.0
    core, _ = core_of(LatentGrpo(max_entries=K, noise="two_sided"), rows=1)
    step = decided(core, logits)
    assert step.token.tolist() == [5]
    assert not step.latent.any()


def test_cot2_ratio():
    record = VECTORS["cot2_mts"]
    ids = torch.tensor([record["tokens"]])
    for scaled in (True, False):
        new, old = (
            cot2_log_probability(torch.tensor([record[name]]), ids, scaled)
            for name in ("new_logits", "old_logits")
        )
        found = record[f"sampling_normalization_{scaled}"]
        assert float((new - old).exp()) == pytest.approx(found["ratio"], abs=TOLERANCE)
        p = torch.softmax(torch.tensor(record["new_logits"]) / (record["K"] if scaled else 1), 0)
        torch.testing.assert_close(p, torch.tensor(found["p_new"]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("scaled", [True, False])
def test_cot2_draws_from_the_whole_vocabulary(scaled):
    rows = 3000
    core, _ = core_of(Cot2(draws=3, scale_logits=scaled), rows=rows, seed=2)
    step = decided(core, LOGITS[:1].expand(rows, -1))
    p = torch.softmax(LOGITS[0] / (3 if scaled else 1), 0)
    drawn = torch.bincount(step.ids[:, :3].flatten(), minlength=VOCAB) / (3 * rows)
    assert float((drawn - p).abs().max()) < 5 * 0.5 / (3 * rows) ** 0.5
    assert torch.equal(step.token, step.ids[:, 0])
    torch.testing.assert_close(core.next_input.weights[0, :3], torch.full((3,), 1 / 3))


def test_cot2_never_draws_padding():
    core, _ = core_of(Cot2(draws=3), rows=200)
    wide = torch.cat([LOGITS[:1], torch.full((1, 4), 9.0)], dim=1).expand(200, -1)
    assert int(decided(core, wide).ids.max()) < VOCAB


METHODS = {
    "soft_grpo": (SOFT, SoftGrpoNoise()),
    "soft_grpo scaled": (SOFT, SoftGrpoNoise(scale=0.5, temperature=0.3)),
    "soft_grpo cut": (SoftThinking(top_k=3, max_entries=2, top_p=0.7), SoftGrpoNoise()),
    "latent_grpo": (LatentGrpo(max_entries=K, noise="two_sided"),),
    "latent_grpo one-sided": (LatentGrpo(max_entries=K, noise="one_sided", noise_scale=0.7),),
    "cot2": (Cot2(),),
}


def rollouts_of(methods, tmp_path, steps=6, vocab=40):
    """A file of three requests, and the logits that they saw, in its order."""
    core, request = core_of(*methods, vocab=vocab)
    recorder = Recorder(core, [request] * 3, "hf")
    slots = torch.arange(3)
    generator = torch.Generator().manual_seed(4)
    seen = []
    for _ in range(steps):
        logits = 3 * torch.randn(3, vocab, generator=generator)
        logits[:, 5] = -30
        seen.append(logits)
        recorder.append(core.commit(core.step(logits, slots).argmax(1), slots))
    path = tmp_path / "rollouts.safetensors"
    save_rollouts(path, recorder.traces(), [[4]] * 3)
    return load_rollouts(path), torch.stack(seen, dim=1).flatten(0, 1)


def recomputed(methods, file, logits):
    arrays = {name: torch.from_numpy(array) for name, array in file.arrays.items()}
    ids, scores = arrays["ids"], arrays["scores"]
    first = methods[0]
    if isinstance(first, LatentGrpo):
        return latent_grpo_log_probability(logits, ids, scores)
    if isinstance(first, Cot2):
        return cot2_log_probability(logits, ids, first.scale_logits)
    noise = methods[1]
    return soft_grpo_log_probability(
        logits, ids, scores, temperature=first.temperature, scale=noise.scale
    )


@pytest.mark.parametrize("name", METHODS)
def test_the_recomputed_log_probability_is_the_rollouts(name, tmp_path):
    methods = METHODS[name]
    file, logits = rollouts_of(methods, tmp_path)
    recorded = torch.from_numpy(file.arrays["log_probability"])
    assert file.arrays["latent"].all()
    found = recomputed(methods, file, logits)
    torch.testing.assert_close(found, recorded, rtol=0, atol=TOLERANCE)
    other = recomputed(methods, file, logits + torch.randn(logits.shape))
    assert not torch.allclose(other, recorded, atol=1e-3)
    assert file.specs[0].methods == methods


def test_published_records_the_draw_which_a_scale_other_than_1_makes_another_density(tmp_path):
    settings = {"profile": "published", "scale": 0.5}
    methods = (SOFT, SoftGrpoNoise.model_validate(settings))
    file, logits = rollouts_of(methods, tmp_path)
    recorded = torch.from_numpy(file.arrays["log_probability"])
    assert not torch.allclose(recomputed(methods, file, logits), recorded, atol=1e-3)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(recomputed(methods, file, logits), recorded)


def gumbel_density(margin):
    return -margin - math.exp(-margin)


FLIPPED = {
    # What pulls a flipped margin, and its slope in closed form.
    "default": (lambda m: -gumbel_density(m), lambda m: 1 - math.exp(-m)),
    "published": (lambda m: gumbel_density(-m), lambda m: 1 - math.exp(m)),
}


def flip_grad(logits, ids, scores, advantage, profile):
    """Gradient of one step's log-probability by central differences, and in closed form."""
    pulled, slope = FLIPPED[profile]

    def margins(z):
        largest = max(z)
        total = largest + math.log(sum(math.exp(x - largest) for x in z))
        return [y - (z[i] - total) for i, y in zip(ids, scores, strict=True)]

    flips = [advantage is not None and advantage <= 0 and m < 0 for m in margins(logits)]

    def surrogate(z):
        terms = [pulled(m) if flip else gumbel_density(m) for flip, m in zip(flips, margins(z))]
        return sum(terms) / len(terms)

    total = sum(math.exp(x) for x in logits)
    numeric, exact = [], []
    for place in range(len(logits)):
        up, down = list(logits), list(logits)
        up[place] += 1e-5
        down[place] -= 1e-5
        numeric.append((surrogate(up) - surrogate(down)) / 2e-5)
        p = math.exp(logits[place]) / total
        slopes = [slope(m) if flip else math.exp(-m) - 1 for flip, m in zip(flips, margins(logits))]
        # A margin falls with its own log-probability.
        exact.append(sum(s * (p - (i == place)) for i, s in zip(ids, slopes)) / len(ids))
    return numeric, exact


@pytest.mark.parametrize("profile", FLIPPED)
def test_flip_grad_is_a_gradient_in_closed_form(profile):
    draw = random.Random(5)
    for _ in range(50):
        logits = [draw.gauss(0, 2) for _ in range(6)]
        ids = draw.sample(range(6), 3)
        log_p = torch.log_softmax(torch.tensor(logits), 0)[ids].tolist()
        scores = [y + draw.uniform(-1.5, 3) for y in log_p]
        for advantage in (-0.7, 0.0, 0.7, None):
            z = torch.tensor([logits], requires_grad=True)
            given = None if advantage is None else torch.tensor([advantage])
            arguments = (torch.tensor([ids]), torch.tensor([scores]))
            value = latent_grpo_log_probability(z, *arguments, given, profile=profile)
            assert torch.equal(value, latent_grpo_log_probability(z, *arguments))
            (gradient,) = torch.autograd.grad(value.sum(), z)
            numeric, exact = flip_grad(logits, ids, scores, advantage, profile)
            assert numeric == pytest.approx(exact, abs=1e-6)
            assert gradient[0].tolist() == pytest.approx(exact, rel=1e-4, abs=1e-5)


def test_flip_grads_profiles_differ_below_zero_alone():
    ids, z = torch.tensor([[0]]), torch.zeros(1, 2, requires_grad=True)
    for margin, differ in ((-0.5, True), (0.5, False)):
        scores = torch.log_softmax(z.detach(), 1)[:, :1] + margin
        found = [
            torch.autograd.grad(
                latent_grpo_log_probability(z, ids, scores, torch.tensor([-1.0]), profile=name), z
            )[0]
            for name in FLIPPED
        ]
        assert (not torch.allclose(*found)) is differ


def test_another_profile_of_flip_grad_is_refused():
    with pytest.raises(ValueError, match=r"profile: got 'paper'; allowed: 'default', 'published'"):
        latent_grpo_log_probability(LOGITS, LOGITS.long(), LOGITS, profile="paper")


def test_gaussian_log_probability():
    mean, sigma = torch.zeros(2, 3), 0.5
    fed = torch.tensor([[0.5, 0.0, 0.0], [0.5, 0.5, 0.5]])
    found = gaussian_log_probability(fed, mean, sigma)
    normal = torch.distributions.Normal(0.0, sigma)
    constant = 3 * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(found, normal.log_prob(fed).sum(1) + constant)


def test_a_trace_without_all_its_steps_is_no_rollout(tmp_path):
    core, request = core_of(SOFT, rows=1)
    recorder = Recorder(core, [request], "hf")
    recorder.append(decided(core, LOGITS[:1]))
    trace = recorder.traces()[0]
    with pytest.raises(ValueError, match=r"traces\[0\]: got 0 steps of 1"):
        save_rollouts(tmp_path / "x", [trace.model_copy(update={"steps": ()})], [[4]])
    with pytest.raises(ValueError, match="prompts"):
        save_rollouts(tmp_path / "x", [trace], [])


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="a safetensors file"):
        load_rollouts(path)
