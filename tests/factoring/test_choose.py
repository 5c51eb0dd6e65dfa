"""Ranks by share, energy and budget, against brute force."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.factoring.choose import Offer, Rule, share, thinned
from onnxopt.factoring.forms import Choice, Form, counts, rounded_up


def weight(outputs: int, inputs: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((outputs, inputs)) * np.geomspace(1, 0.05, inputs)


def moment(size: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((3 * size, size))
    return x.T @ x / len(x)


def lost(w: np.ndarray, s: np.ndarray | None, rank: int) -> float:
    """The share of the outputs' energy without the smallest singular values, from numpy's decomposition."""
    a = w if s is None else w @ np.linalg.cholesky(s)
    energy = np.square(np.linalg.svd(a, compute_uv=False))
    return float(energy[rank:].sum() / energy.sum())


@settings(deadline=None, max_examples=40)
@given(
    o=st.integers(5, 40),
    i=st.integers(5, 40),
    ratio=st.floats(0.05, 1),
    energy=st.floats(0.05, 0.999),
    aware=st.booleans(),
    seed=st.integers(0, 9),
)
def test_share_and_energy_against_brute_force(
    o: int, i: int, ratio: float, energy: float, aware: bool, seed: int
) -> None:
    w, s = weight(o, i, seed), moment(i, seed) if aware else None
    form = Form("matrix", (o, i, 1, 1))
    choices = form.choices(w, s, 1)
    ranks = [r for r in range(1, min(o, i)) if r * (o + i) < o * i]
    assert [c.ranks for c in choices] == [(r,) for r in ranks]
    for choice in choices:
        assert choice.loss == pytest.approx(lost(w, s, choice.ranks[0]), abs=1e-9)
        assert choice.parameters == choice.ranks[0] * (o + i)
    fit = [r for r in ranks if r * (o + i) <= ratio * o * i]
    found = Rule(ratio=ratio).pick(form, choices, w, 1)
    assert (found.ranks[0] if isinstance(found, Choice) else None) == max(fit, default=None)
    enough = [r for r in ranks if 1 - lost(w, s, r) >= energy]
    found = Rule(energy=energy).pick(form, choices, w, 1)
    assert (found.ranks[0] if isinstance(found, Choice) else None) == min(enough, default=None)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), layers=st.integers(1, 4), keep=st.floats(0.3, 0.95), fixed=st.integers(0, 50))
def test_a_budget_against_brute_force(seed: int, layers: int, keep: float, fixed: int) -> None:
    """Where errors rise ever faster the steps are the best there are, but for the last one."""
    rng = np.random.default_rng(seed)
    offers = []
    for _ in range(layers):
        whole = float(rng.integers(50, 200))
        costs = whole * np.array([0.8, 0.6, 0.4, 0.2])
        losses = np.cumsum(np.cumsum(rng.random(4)))
        choices = [Choice((4 - k,), (0,), float(loss)) for k, loss in enumerate(losses)]
        offers.append(Offer(None, choices, whole, costs.tolist()))
    now = fixed + sum(o.whole for o in offers)
    limit = keep * now
    ways = []
    for states in product(range(5), repeat=layers):
        cost = fixed + sum(o.costs[k - 1] if k else o.whole for o, k in zip(offers, states, strict=True))
        error = sum(o.choices[k - 1].loss if k else 0.0 for o, k in zip(offers, states, strict=True))
        ways.append((cost, error))
    chosen, reached = share(offers, now, limit)
    assert reached == pytest.approx(
        fixed + sum(o.whole if c is None else o.costs[o.choices.index(c)] for o, c in zip(offers, chosen, strict=True))
    )
    met = [error for cost, error in ways if cost <= limit * (1 + 1e-12)]
    if not met:
        assert reached == pytest.approx(min(cost for cost, _ in ways))
        return
    assert reached <= limit * (1 + 1e-9)
    steps = [b - a for o in offers for a, b in pairwise([0.0, *(c.loss for c in o.choices)])]
    error = sum(c.loss for c in chosen if c is not None)
    assert min(met) - 1e-9 <= error <= min(met) + max(steps) + 1e-9


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.tuples(st.integers(6, 16), st.integers(6, 16)), min_size=3, max_size=4),
    seed=st.integers(0, 99),
    keep=st.floats(0.3, 0.95),
)
def test_ranks_of_matrices_under_one_budget_against_brute_force(
    sizes: list[tuple[int, int]], seed: int, keep: float
) -> None:
    """All ranks of all matrices, losses from numpy's decomposition: no choice is better by more than one step."""
    offers = []
    for i, (o, c) in enumerate(sizes):
        w = weight(o, c, seed + i)
        choices = Form("matrix", (o, c, 1, 1)).choices(w, None, 1)[::-1]
        assert [x.loss for x in choices] == pytest.approx([lost(w, None, x.ranks[0]) for x in choices], abs=1e-9)
        offers.append(Offer(None, choices, float(o * c), [float(x.parameters) for x in choices]))
    now = sum(o.whole for o in offers)
    best = np.inf
    for ways in product(*([(o.whole, 0.0), *((c.parameters, c.loss) for c in o.choices)] for o in offers)):
        if sum(cost for cost, _ in ways) <= keep * now:
            best = min(best, sum(loss for _, loss in ways))
    chosen, reached = share(offers, now, keep * now)
    if best == np.inf:
        assert reached > keep * now
        return
    assert reached <= keep * now * (1 + 1e-9)
    step = max(b - a for o in offers for a, b in pairwise([0.0, *(c.loss for c in o.choices)]))
    assert best - 1e-9 <= sum(c.loss for c in chosen if c is not None) <= best + step + 1e-9


def test_layers_that_lose_less_give_more() -> None:
    easy = [Choice((2,), (0,), 0.01), Choice((1,), (0,), 0.02)]
    hard = [Choice((2,), (0,), 0.5), Choice((1,), (0,), 0.9)]
    offers = [Offer(None, hard, 100.0, [70.0, 40.0]), Offer(None, easy, 100.0, [70.0, 40.0])]
    chosen, reached = share(offers, 250.0, 200.0)
    assert chosen == [None, easy[1]]
    assert reached == 190.0


def test_a_fixed_rank_is_what_it_is() -> None:
    w = weight(20, 30)
    found = Rule(rank=7).pick(Form("matrix", (20, 30, 1, 1)), [], w, 8)
    assert isinstance(found, Choice)
    assert found.ranks == (7,)
    assert Rule(rank=12).pick(Form("matrix", (20, 30, 1, 1)), [], w, 8) == "rank 12 of 20 x 30 saves nothing"
    tucker = Rule(rank=7).pick(Form("tucker", (20, 6, 3, 3)), [], weight(20, 54), 8)
    assert isinstance(tucker, Choice)
    assert tucker.ranks == (7, 6)


def test_ranks_that_stand_out_of_the_noise() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 6)) @ rng.standard_normal((6, 96)) + 0.1 * rng.standard_normal((64, 96))
    assert Form("matrix", (64, 96, 1, 1)).estimate(w) == (6,)
    found = Rule(auto=True).pick(Form("matrix", (64, 96, 1, 1)), [], w, 8)
    assert isinstance(found, Choice)
    assert found.ranks == (8,)
    core = np.einsum("oa,abij,bc->ocij", *(rng.standard_normal(s) for s in ((40, 3), (3, 5, 3, 3), (5, 30))))
    noisy = core + 0.1 * rng.standard_normal(core.shape)
    assert Form("tucker", core.shape).estimate(noisy.reshape(40, -1)) == (3, 5)
    with pytest.raises(ValueError, match="cannot be estimated"):
        Form("cp", core.shape).estimate(w)


def test_ranks_suit_the_target() -> None:
    assert counts(40, 16) == [4, 8, 16, 32]
    assert counts(17, 8) == [4, 8, 16]
    assert counts(3, 8) == [1, 2, 3]
    assert [rounded_up(r, 8) for r in (1, 4, 5, 8, 9, 100)] == [4, 4, 8, 8, 16, 104]


def test_tucker_loses_no_more_than_expected() -> None:
    w, s = weight(24, 144), moment(144)
    form = Form("tucker", (24, 16, 3, 3))
    power = float(np.vdot(w, w @ s))
    for choice in form.choices(w, s, 4)[::7]:
        d = w - form.compose(form.fit(w, choice.ranks, s))
        assert float(np.vdot(d, d @ s)) / power <= 1.05 * choice.loss
        assert choice.sizes == (16 * choice.ranks[1], 9 * choice.ranks[0] * choice.ranks[1], 24 * choice.ranks[0])
    by_energy = Rule(energy=0.8).pick(form, form.choices(w, s, 4), w, 4)
    assert isinstance(by_energy, Choice)
    assert by_energy.loss <= 0.2


def test_tucker_of_a_short_kernel_has_no_more_ranks_than_its_core_has_rows() -> None:
    form = Form("tucker", (24, 48, 3, 1))
    w = weight(24, 144)
    choices = form.choices(w, None, 8)
    assert {c.ranks for c in choices if c.ranks[0] <= 8} >= {(4, 8), (8, 24)}
    for choice in choices:
        assert choice.ranks[1] <= 3 * choice.ranks[0]
        assert form.fit(w, choice.ranks, None)[0].shape == (24, choice.ranks[0])
    assert form.clipped((4, 16)) == (4, 12)
    assert form.clipped((24, 2)) == (6, 2)


def test_canonical_products_are_tried() -> None:
    form = Form("cp", (16, 8, 3, 3))
    choices = form.choices(weight(16, 72), None, 8)
    assert 1 < len(choices) <= 5
    assert all(c.parameters == c.ranks[0] * (16 + 8 + 9) < form.whole for c in choices)
    assert all(late.loss < early.loss for early, late in pairwise(choices))


def test_what_is_tried_of_many_choices() -> None:
    choices = [Choice((r,), (r,), 1 - r / 100) for r in range(1, 100)]
    found = thinned(choices, 100)
    assert [c.ranks[0] for c in found] == [99, 90, 80, 70, 60, 50, 40, 30, 20, 10]
    assert thinned([], 100) == []


def test_multiplications_are_counted_where_they_are_made() -> None:
    assert Choice((2, 3), (10, 20, 30), 0).macs(4, 1) == 4 * 10 + 20 + 30
    assert Choice((2,), (10, 20), 0).macs(1, 1) == 30
