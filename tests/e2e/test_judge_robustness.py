"""The shipped judge on the probes (judges/probes.jsonl): each kind of odd answer has a documented outcome.

docs/judge.md lists them. A kind that passes must keep passing; a kind that fails is a stated limit, and the numbers in
the judge file, from which reports print their limits, are what is measured here.
"""

from __future__ import annotations

import pytest

from spin_llm.judges.local import load_local
from spin_llm.judges.quality.labelled import KINDS, PASSING, limits, run_probes

pytestmark = pytest.mark.real_model
# another processor rounds bfloat16 states otherwise; one probe a kind may fall on the other side of the threshold
SLACK = 1


@pytest.fixture(scope="module", params=["aware", "safe"])
def measured(request: pytest.FixtureRequest):
    judge = load_local(label=request.param)
    return judge, run_probes(judge)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_documented_outcome(measured, kind: str):
    judge, outcome = measured
    stated = judge.about.probes[judge.label]
    if kind not in outcome:
        assert kind not in stated, "it has no right answer for this label"
        return
    (right, of), (was, of_stated) = outcome[kind], stated[kind]
    assert of == of_stated
    assert abs(right - was) <= SLACK, f"{right} of {of}; the file says {was}"


def test_failing_kinds_are_the_limits_that_are_printed(measured):
    judge, outcome = measured
    lines = limits(judge)
    clear = {kind: right / of for kind, (right, of) in outcome.items() if abs(right - PASSING * of) > SLACK}
    for kind, share in clear.items():
        assert any(f" {KINDS[kind]}: " in line for line in lines) == (share < PASSING), kind
