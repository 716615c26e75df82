"""Laws of the paired statistics on any counts, rates and p-values."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from spin_llm.stats.classification import kappa_of
from spin_llm.stats.correction import corrected
from spin_llm.stats.paired import detectable_rate, holm, paired_rates, rate_interval

counts = st.integers(0, 60)


def columns(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    kinds = [both, gained, lost, neither]
    return np.repeat([1.0, 0.0, 1.0, 0.0], kinds), np.repeat([1.0, 1.0, 0.0, 0.0], kinds)


@given(counts, counts, counts, counts)
def test_rates_lie_in_their_interval_and_turn_round(both: int, gained: int, lost: int, neither: int):
    assume(both + gained + lost + neither)
    there, back = (
        paired_rates(*columns(both, gained, lost, neither)),
        paired_rates(*columns(both, lost, gained, neither)),
    )
    low, high = there.ci95
    assert -1 <= low <= there.delta <= high <= 1
    assert np.allclose(back.ci95, (-high, -low))
    assert (back.delta, back.p, back.mde) == (-there.delta, there.p, there.mde)
    assert 0 < there.p <= 1


@given(counts, counts, counts)
def test_more_prompts_with_the_same_shares_narrow_the_interval(gained: int, lost: int, same: int):
    assume(gained + lost + same)
    one, four = (rate_interval(k * gained, k * lost, k * (gained + lost + same)) for k in (1, 4))
    assert four[1] - four[0] <= one[1] - one[0] + 1e-12


@given(st.integers(0, 40), st.integers(1, 200))
def test_a_detectable_difference_is_one_and_grows_with_what_changes(discordant: int, n: int):
    assume(discordant < n)
    found, more = detectable_rate(discordant, n), detectable_rate(discordant + 1, n)
    assert (found is None) == (n < 6)
    if found is not None and more is not None:
        assert 0 < found <= more + 1e-3


probability = st.floats(0, 1)


@given(st.lists(probability, min_size=1, max_size=8))
def test_holm_raises_keeps_order_and_is_at_most_bonferroni(p_values: list[float]):
    named = {str(place): p for place, p in enumerate(p_values)}
    adjusted = holm({**named, "none": None})
    assert adjusted.pop("none") is None
    for name, p in named.items():
        assert p <= adjusted[name] <= min(1.0, len(named) * p) + 1e-15
        assert all(adjusted[name] <= adjusted[other] for other, q in named.items() if p < q)


@given(counts, counts, counts, counts, st.integers(60, 100), st.integers(60, 100))
def test_a_correction_stretches_the_difference_by_the_judges_errors(
    both: int, gained: int, lost: int, neither: int, hits: int, rejected: int
):
    assume(both + gained + lost + neither)
    pair = columns(both, gained, lost, neither)
    found, plain = corrected(*pair, [hits, 100], [rejected, 100]), paired_rates(*pair)
    if found.delta is None:
        assert hits + rejected < 140
        return
    assert np.isclose(found.delta, plain.delta / ((hits + rejected) / 100 - 1))
    assert abs(found.delta) >= abs(plain.delta) - 1e-12
    # applying the judge's errors to the corrected rate gives the judged one back
    judged = found.base * hits / 100 + (1 - found.base) * (1 - rejected / 100)
    assert np.isclose(judged, plain.base)


@given(counts, counts, counts, counts)
def test_kappa_is_symmetric_and_at_most_1(a: int, b: int, c: int, d: int):
    assume(a + b + c + d)
    one, other = kappa_of(np.array([a, b, c, d])), kappa_of(np.array([a, c, b, d]))
    assert np.isnan(one) == np.isnan(other)
    if not np.isnan(one):
        assert np.isclose(one, other)
        assert one <= 1 + 1e-12
        assert (one > 1 - 1e-12) == (b + c == 0)
