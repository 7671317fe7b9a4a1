"""``signals_topk`` on the CPU against its naive version, and both against facts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from kernel_rows import VOCABULARIES, logits, mixed_parameters, parameters
from tokenlens_kernels import TopKSignals, philox, signals_topk
from tokenlens_kernels.signals_topk import cpu, naive

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _naive(z: torch.Tensor, arguments: dict[str, Any]) -> TopKSignals:
    return TopKSignals(*naive.signals_topk(z, **arguments))


def _assert_same(got: TopKSignals, expected: TopKSignals) -> None:
    for name in ("ids", "weight_ids"):
        assert getattr(got, name).equal(getattr(expected, name)), name
    for name, tolerance in (
        ("logsumexp", 1e-6),
        ("entropy", 1e-5),
        ("max_probability", 1e-6),
        ("probabilities", 1e-6),
        ("weights", 1e-6),
    ):
        torch.testing.assert_close(
            getattr(got, name),
            getattr(expected, name),
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def _assert_well_formed(got: TopKSignals, arguments: dict[str, Any]) -> None:
    computed = arguments["active"] & ~got.logsumexp.isnan()
    for values, ids in ((got.probabilities, got.ids), (got.weights, got.weight_ids)):
        torch.testing.assert_close(values.sum(-1), computed.float())
        assert (values[:, 1:] <= values[:, :-1]).all()
        assert (ids >= 0).all()
        assert (ids < arguments["vocab_size"]).all()
        assert torch.where(values > 0, ids[:, :1], ids).equal(ids[:, :1].expand_as(ids))
        one = (values > 0).sum(-1) == 1
        assert (values[one, 0] == 1.0).all()
    for tensor in (got.entropy, got.max_probability):
        assert (tensor[~computed] == 0).all()
    assert (got.logsumexp[~arguments["active"]] == 0).all()


@pytest.mark.parametrize("width", [1, 10, 64])
@pytest.mark.parametrize("num_rows", [1, 7, 64])
@pytest.mark.parametrize(("vocab_size", "columns"), VOCABULARIES[:2])
def test_equals_naive(vocab_size: int, columns: int, num_rows: int, width: int) -> None:
    z = logits(num_rows, vocab_size, columns, seed=width)
    arguments = mixed_parameters(num_rows, vocab_size, width, seed=vocab_size + width)
    got = signals_topk(z, **arguments)
    _assert_same(got, _naive(z, arguments))
    _assert_well_formed(got, arguments)


@pytest.mark.parametrize(("num_rows", "width"), [(1, 64), (7, 1), (16, 10)])
@pytest.mark.parametrize(("vocab_size", "columns"), VOCABULARIES[2:])
def test_equals_naive_at_large_vocabularies(
    vocab_size: int, columns: int, num_rows: int, width: int
) -> None:
    test_equals_naive(vocab_size, columns, num_rows, width)


@pytest.mark.slow
def test_equals_naive_at_a_full_batch_of_a_large_vocabulary() -> None:
    test_equals_naive(*VOCABULARIES[3], 64, 30)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [2, 5, 17, 33])
def test_equals_naive_in_every_dtype(dtype: torch.dtype, width: int) -> None:
    # Sixteen-bit logits tie all the time: the order by id is what is tested here.
    z = logits(16, 5003, 5003, dtype, seed=width)
    arguments = mixed_parameters(16, 5003, width, seed=width)
    _assert_same(signals_topk(z, **arguments), _naive(z, arguments))


@pytest.mark.parametrize("vocab_size", [1, 2, 127, 128, 129, 8191, 8193])
def test_equals_naive_around_the_tiles(vocab_size: int) -> None:
    width = min(9, vocab_size)
    z = logits(5, vocab_size, vocab_size + 3, seed=vocab_size)
    arguments = mixed_parameters(5, vocab_size, width, seed=vocab_size)
    _assert_same(signals_topk(z, **arguments), _naive(z, arguments))


def test_naive_signals_are_those_of_torch() -> None:
    z = torch.randn(6, 1000) * 3
    arguments = parameters(6, 1000, 10, inverse_temperature=1 / 0.6)
    got = _naive(z, arguments)
    p = (z.double() / 0.6).softmax(-1)
    torch.testing.assert_close(got.logsumexp, (z.double() / 0.6).logsumexp(-1).float())
    torch.testing.assert_close(got.entropy, torch.special.entr(p).sum(-1).float())
    torch.testing.assert_close(got.max_probability, p.amax(-1).float())
    values, ids = p.topk(10)
    assert got.ids.equal(ids)
    torch.testing.assert_close(got.probabilities, (values / values.sum(-1, keepdim=True)).float())


@pytest.mark.parametrize("function", ["op", "naive"])
class TestFacts:
    """What both versions must do, each stated without the other."""

    def run(self, function: str, z: torch.Tensor, arguments: dict[str, Any]) -> TopKSignals:
        return signals_topk(z, **arguments) if function == "op" else _naive(z, arguments)

    def test_published_records(self, function: str, soft_vectors: dict[str, Any]) -> None:
        z = torch.tensor(soft_vectors["logits"])
        shared = {"inverse_temperature": 1 / 0.6, "max_entries": 4}
        for record, filters in (
            ("st_T0.6_k30_p0.95_K4", {"top_k": 8, "top_p": 0.95}),
            ("st_minp0.2", None),
        ):
            expected = soft_vectors[record]
            candidates = (
                [filters]
                if filters
                # The record does not say which filters ran before min-p; both readings agree.
                else [{"top_p": 0.95, "min_p": 0.2}, {"top_k": 8, "top_p": 0.95, "min_p": 0.2}]
            )
            for chosen in candidates:
                got = self.run(function, z, parameters(3, 8, 8, **shared, **chosen))
                weights = torch.tensor(expected["topk_weights"])
                live = weights > 0
                torch.testing.assert_close(got.weights[:, :4], weights, rtol=1e-5, atol=1e-5)
                assert got.weight_ids[:, :4][live].equal(
                    torch.tensor(expected["topk_indices"])[live]
                )
                torch.testing.assert_close(
                    got.entropy, torch.tensor(expected["entropy"]), rtol=1e-5, atol=1e-5
                )

    def test_ties_are_ordered_by_id(self, function: str) -> None:
        z = torch.zeros(2, 1000)
        z[1, [999, 500, 3]] = 1.0
        got = self.run(function, z, parameters(2, 1000, 5))
        assert got.ids.tolist() == [[0, 1, 2, 3, 4], [3, 500, 999, 0, 1]]

    def test_negative_zero_ties_with_zero(self, function: str) -> None:
        z = torch.full((1, 300), -1.0)
        z[0, [2, 200]] = torch.tensor([-0.0, 0.0])
        got = self.run(function, z, parameters(1, 300, 2))
        assert got.ids.tolist() == [[2, 200]]

    def test_top_k_keeps_exactly_k_of_tied_logits(self, function: str) -> None:
        got = self.run(function, torch.zeros(1, 50), parameters(1, 50, 8, top_k=3))
        torch.testing.assert_close(got.probabilities[0, :3], torch.full((3,), 1 / 3))
        assert (got.probabilities[0, 3:] == 0).all()
        assert got.ids[0].tolist() == [0, 1, 2, 0, 0, 0, 0, 0]

    def test_top_p_keeps_the_entry_whose_mass_before_equals_it(self, function: str) -> None:
        z = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
        got = self.run(function, z, parameters(1, 4, 4, top_p=0.75))
        # 0.5 + 0.25 lie before the third entry: equal, so it stays; the fourth goes.
        assert int((got.probabilities > 0).sum()) in (2, 3)
        z = torch.zeros(1, 4)
        got = self.run(function, z, parameters(1, 4, 4, top_p=0.5))
        assert got.ids[0].tolist() == [0, 1, 2, 0]
        got = self.run(function, z, parameters(1, 4, 4, top_p=0.49))
        assert got.ids[0].tolist() == [0, 1, 0, 0]

    def test_top_p_without_top_k_is_about_the_full_vocabulary(self, function: str) -> None:
        # Ten entries hold 10 % of the mass: nothing inside the window reaches top_p.
        got = self.run(function, torch.zeros(1, 100), parameters(1, 100, 10, top_p=0.5))
        torch.testing.assert_close(got.probabilities, torch.full((1, 10), 0.1))
        got = self.run(function, torch.zeros(1, 100), parameters(1, 100, 10, top_k=10, top_p=0.45))
        torch.testing.assert_close(got.probabilities[0, :5], torch.full((5,), 0.2))
        assert (got.probabilities[0, 5:] == 0).all()

    def test_min_p_is_relative_to_the_largest(self, function: str) -> None:
        z = torch.tensor([[0.0, -0.6, -0.8, -3.0]])
        got = self.run(function, z, parameters(1, 4, 4, min_p=0.5))
        assert got.ids[0].tolist() == [0, 1, 0, 0]

    def test_probabilities_are_not_cut_to_max_entries(self, function: str) -> None:
        z = torch.randn(1, 100)
        got = self.run(function, z, parameters(1, 100, 8, top_k=8, max_entries=3))
        assert int((got.probabilities > 0).sum()) == 8
        assert int((got.weights > 0).sum()) == 3
        expected = got.probabilities[0, :3] / got.probabilities[0, :3].sum()
        torch.testing.assert_close(got.weights[0, :3], expected)

    def test_a_million_is_one_hot(self, function: str) -> None:
        z = torch.randn(8, 3000) * 1e-3
        z[3] *= 1e5
        got = self.run(function, z, parameters(8, 3000, 4, inverse_temperature=1e6))
        highest = z.max(-1)
        assert got.ids[:, 0].equal(highest.indices)
        far = z.topk(2).values.diff().abs().squeeze(-1) > 1e-4
        assert bool(far.any())
        assert (got.weights[far, 0] == 1.0).all()
        assert (got.entropy[far] < 1e-30).all()

    def test_inactive_rows_are_zero(self, function: str) -> None:
        z = torch.randn(4, 500)
        z[1] = torch.nan
        active = torch.tensor([False, False, True, False])
        got = self.run(function, z, parameters(4, 500, 5, active=active, noise_temperature=1.0))
        for tensor in got:
            assert (tensor[~active] == 0).all()
        assert got.logsumexp[2] != 0
        nothing = self.run(function, z, parameters(4, 500, 5, active=False))
        assert all((tensor == 0).all() for tensor in nothing)

    def test_invalid_rows_are_marked(self, function: str) -> None:
        z = torch.randn(5, 500)
        z[0, 499] = torch.nan
        z[1, 0] = torch.inf
        z[2] = -torch.inf
        z[3, 1:] = -torch.inf
        got = self.run(function, z, parameters(5, 500, 5, noise_temperature=0.5))
        assert got.logsumexp.isnan().tolist() == [True, True, True, False, False]
        for tensor in got[1:]:
            assert (tensor[:3] == 0).all()
        assert got.weights[3].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
        assert got.entropy[3] == 0

    @pytest.mark.parametrize("statistics", [True, False])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e-44])
    @pytest.mark.parametrize("name", ["inverse_temperature", "noise_temperature"])
    def test_whatever_the_parameters_no_weight_is_not_finite(
        self, function: str, name: str, value: float, statistics: bool
    ) -> None:
        z = torch.randn(3, 500)
        z[:, 7] = -torch.inf
        wild = parameters(3, 500, 6, top_k=6, noise_temperature=0.5)
        wild[name][1] = value
        calm = parameters(3, 500, 6, top_k=6, noise_temperature=0.5)
        got = self.run(function, z, {**wild, "statistics": statistics})
        expected = self.run(function, z, {**calm, "statistics": statistics})
        for tensor, same in zip(got, expected):
            assert tensor[[0, 2]].equal(same[[0, 2]])
        if got.logsumexp[1].isnan():
            assert all((tensor[1] == 0).all() for tensor in got[1:])
        assert all(tensor.isfinite().all() for tensor in got[1:])
        mass = got.weights[1].sum()
        assert bool(mass == 0) == bool(got.logsumexp[1].isnan())
        assert mass == 0 or abs(float(mass) - 1) < 1e-5

    def test_the_lowest_finite_logits_are_valid(self, function: str) -> None:
        z = torch.full((1, 300), torch.finfo(torch.float32).min)
        got = self.run(function, z, parameters(1, 300, 3))
        torch.testing.assert_close(got.entropy, torch.tensor([300.0]).log())
        z[0, 7] = torch.finfo(torch.float32).max
        got = self.run(function, z, parameters(1, 300, 3))
        assert got.weights.tolist() == [[1.0, 0.0, 0.0]]
        assert got.ids.tolist() == [[7, 7, 7]]

    def test_padding_is_ignored(self, function: str) -> None:
        z = torch.randn(3, 140)
        arguments = parameters(3, 133, 6, noise_temperature=0.3)
        expected = self.run(function, z[:, :133].clone(), arguments)
        for poison in (torch.nan, torch.inf, 1e30):
            z[:, 133:] = poison
            got = self.run(function, z, arguments)
            assert all(a.equal(b) for a, b in zip(got, expected))

    def test_noise_is_a_function_of_seed_position_and_id(self, function: str) -> None:
        z = torch.randn(1, 400).expand(6, 400)
        seed = torch.tensor([1, 1, 2, 2, 1, 1])
        position = torch.tensor([5, 5, 5, 6, 6, 5])
        arguments = parameters(
            6, 400, 10, noise_temperature=0.5, seed=seed, position=position, top_k=10
        )
        got = self.run(function, z, arguments)
        assert got.weights[0].equal(got.weights[1])
        assert got.weights[0].equal(got.weights[5])
        assert got.weights[:5].unique(dim=0).shape[0] == 4
        noise = philox.gumbel(1, philox.offset(5, got.ids[0], philox.GUMBEL))
        expected = ((got.probabilities[0].log() + noise) / 0.5).softmax(-1).sort(descending=True)
        torch.testing.assert_close(got.weights[0], expected.values, rtol=1e-5, atol=1e-6)
        assert got.weight_ids[0].equal(got.ids[0][expected.indices])
        quiet = self.run(function, z, parameters(6, 400, 10, top_k=10))
        assert got.probabilities.equal(quiet.probabilities)

    def test_the_largest_noised_weight_is_a_fair_draw(self, function: str) -> None:
        """Frequencies follow the probabilities; what was masked or filtered is never drawn."""
        count, vocab = 20_000, 111
        row = torch.randn(vocab, generator=torch.Generator().manual_seed(5)) * 2
        row[::4] = -torch.inf
        z = row.expand(count, vocab)
        arguments = parameters(
            count, vocab, 12, top_k=12, top_p=0.95, noise_temperature=0.7, seed=77
        )
        got = self.run(function, z, arguments)
        counts = torch.bincount(got.weight_ids[:, 0], minlength=vocab)
        probabilities = torch.zeros(vocab)
        live = got.probabilities[0] > 0
        probabilities[got.ids[0][live]] = got.probabilities[0][live]
        assert (counts[probabilities == 0] == 0).all()
        assert (got.weight_ids % 4 != 0).all()
        expected = probabilities[probabilities > 0] * count
        chi_square = ((counts[probabilities > 0] - expected) ** 2 / expected).sum()
        # With at most 11 degrees of freedom, a fair sampler exceeds 40 once in 25 000 seeds.
        assert chi_square < 40
        assert torch.cosine_similarity(counts.float(), probabilities, dim=0) > 0.999


def test_published_gumbel_records(soft_vectors: dict[str, Any]) -> None:
    """The pure functions of the naive version, with the published noise injected."""
    z = torch.tensor(soft_vectors["logits"])
    base = soft_vectors["st_T0.6_k30_p0.95_K4"]
    arguments = parameters(3, 8, 8, inverse_temperature=1 / 0.6, top_k=8, top_p=0.95, max_entries=4)
    quiet = _naive(z, arguments)
    for record, tau in (("st_gumbel_tau0.5", 0.5), ("softgrpo_gumbel_tau0.1_nf1.0", 0.1)):
        expected = soft_vectors[record]
        gumbel = -torch.tensor(expected["exp"]).log()
        if tau == 0.1:
            # SofT-GRPO clamps its noise and adds 1e-6 to the weights before the logarithm.
            gumbel = gumbel.clamp(-1.5, 3.0)
        weights, ids = naive.gumbel_softmax(
            quiet.weights[:, :4], quiet.weight_ids[:, :4], gumbel, torch.full((3,), tau)
        )
        wanted = torch.tensor(expected["topk_weights"])
        torch.testing.assert_close(weights, wanted, rtol=1e-4, atol=1e-5)
        live = wanted > 0
        assert ids[live].equal(torch.tensor(expected["topk_indices"])[live])
    assert quiet.weight_ids[:, 0].tolist() == base["next_token"]


def test_filters_on_a_published_top_p_boundary() -> None:
    kept = naive.filter_probabilities(
        torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64),
        torch.tensor([0]),
        torch.tensor([0.8], dtype=torch.float64),
        torch.tensor([0.0]),
    )
    assert (kept > 0).tolist() == [[True, True, True]]


def test_gumbel_softmax_leaves_rows_without_noise_alone() -> None:
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.7, 0.3, 0.0]])
    ids = torch.tensor([[4, 9, 4], [1, 2, 1]])
    gumbel = torch.tensor([[0.0, 2.0, -torch.inf], [0.0, 2.0, torch.nan]])
    noised, noised_ids = naive.gumbel_softmax(weights, ids, gumbel, torch.tensor([0.0, 1.0]))
    assert noised[0].equal(weights[0])
    assert noised_ids[0].equal(ids[0])
    assert noised_ids[1].tolist() == [2, 1, 2]
    torch.testing.assert_close(noised[1].sum(), torch.tensor(1.0))


def _differing_rows(step: Any, z: torch.Tensor, arguments: dict[str, Any]) -> int:
    """How many rows give other bits alone than in the batch."""
    batch = step(z, arguments)
    differing = 0
    for row in range(z.shape[0]):
        alone = {
            name: value[row : row + 1] if isinstance(value, torch.Tensor) else value
            for name, value in arguments.items()
        }
        outputs = step(z[row : row + 1], alone)
        same = all(
            torch.equal(a[0].nan_to_num(7.0), b[row].nan_to_num(7.0))
            for a, b in zip(outputs, batch)
        )
        differing += not same
    return differing


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("num_rows", "vocab_size", "columns"),
    [(64, 111, 111), (64, 32000, 32000), (7, 128001, 128001), (16, 151669, 151936)],
)
def test_a_row_alone_equals_the_row_in_a_batch(
    num_rows: int, vocab_size: int, columns: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    z = logits(num_rows, vocab_size, columns, seed=1)
    arguments = mixed_parameters(num_rows, vocab_size, 10, seed=3)
    assert _differing_rows(lambda z, a: signals_topk(z, **a), z, arguments) == 0


@pytest.mark.parametrize("filters", ["top_k", "mixed"])
@pytest.mark.parametrize(("vocab_size", "columns"), [(111, 111), (32000, 32000)])
def test_statistics_that_nobody_reads_change_nothing_else(
    vocab_size: int, columns: int, filters: str
) -> None:
    z = logits(16, vocab_size, columns, seed=2)
    arguments = mixed_parameters(16, vocab_size, 10, seed=4)
    if filters == "top_k":
        # Then no row needs the whole vocabulary's mass.
        arguments["top_k"] = arguments["top_k"].clamp(min=3)
    full = signals_topk(z, **arguments)
    got = signals_topk(z, **arguments, statistics=False)
    for name in ("probabilities", "ids", "weights", "weight_ids"):
        assert torch.equal(getattr(got, name), getattr(full, name)), name
    assert torch.equal(got.logsumexp.isnan(), full.logsumexp.isnan())
    if filters == "top_k":
        assert (got.entropy == 0).all()


def test_the_batch_check_can_fail() -> None:
    def variant(z: torch.Tensor, arguments: dict[str, Any]) -> tuple[torch.Tensor]:
        # A reduction whose order follows the batch: split over all rows, then over a row's pieces.
        flat = z.flatten().view(z.shape[0] * 2, -1).cumsum(0)[-1]
        return (z.sum(-1) + 0.0 * flat.sum() + (z / z.abs().max()).sum(-1),)

    z = torch.randn(16, 4096)
    assert _differing_rows(variant, z, parameters(16, 4096, 10)) > 0


def test_poison_reaches_the_package() -> None:
    scratch = cpu._reduce_tiles(torch.ones(1, cpu.TILE + 2), "sum")
    assert scratch.tolist() == [[float(cpu.TILE), 2.0]]
    probe = compile("torch.empty(3)", cpu.__file__, "eval")
    assert eval(probe, {"torch": torch}).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    z = torch.randn(3, 300).to(dtype)
    arguments = mixed_parameters(3, 297, 5, seed=1)
    torch.library.opcheck(torch.ops.tokenlens.signals_topk.default, (z, *arguments.values()))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(dynamic: bool) -> None:
    def step(z: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
        signals = signals_topk(z * 2, **arguments)
        return signals.weights * signals.entropy.unsqueeze(-1)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for num_rows in (3, 5):
        z = torch.randn(num_rows, 300)
        arguments = mixed_parameters(num_rows, 297, 5, seed=num_rows)
        torch.testing.assert_close(compiled(z, arguments), step(z, arguments))


def test_no_rows_at_all() -> None:
    got = signals_topk(torch.zeros(0, 50), **parameters(0, 50, 4))
    assert [tuple(tensor.shape) for tensor in got] == [(0,)] * 3 + [(0, 4)] * 4
    assert all(
        a.shape == b.shape for a, b in zip(got, _naive(torch.zeros(0, 50), parameters(0, 50, 4)))
    )


def test_rejections_name_the_argument_and_what_is_allowed() -> None:
    z = torch.randn(3, 100)

    def rejected(message: str, z: torch.Tensor = z, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            signals_topk(z, **(parameters(3, 100, 4) | changes))

    rejected(r"logits: got dtype torch.float64, allowed are", z=z.double())
    rejected(r"logits: got 1 dimensions", z=z[0])
    rejected(r"logits: got a column stride of 3, allowed is 1", z=torch.randn(100, 3).t())
    rejected(r"vocab_size: got 101, allowed is 1 to .* 100", vocab_size=101)
    rejected(r"vocab_size: got 0", vocab_size=0)
    rejected(r"width: got 65, allowed is 1 to 64", width=65)
    rejected(r"width: got 0", width=0)
    rejected(r"width: got 9, allowed is 1 to 8", vocab_size=8, width=9)
    rejected(r"top_k: got dtype torch.int32", top_k=torch.zeros(3, dtype=torch.int32))
    rejected(r"active: got shape \(2,\), allowed is \[3\]", active=torch.ones(2, dtype=torch.bool))
    rejected(r"top_p: got dtype torch.float64", top_p=torch.ones(3, dtype=torch.float64))
    rejected(r"seed: got device meta", seed=torch.zeros(3, dtype=torch.int64, device="meta"))
