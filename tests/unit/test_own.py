"""Own answers: dividing them by verdict, and when they are too few."""

from __future__ import annotations

import torch

from spin_llm.data import Question
from spin_llm.evaluate.own import LEAST_HELD_BACK, LEAST_SCORED, OwnPairs, divide, too_few, too_few_prompts
from spin_llm.results.rows import OwnAnswer


def rows(concept: str, aware: int, unaware: int) -> list[OwnAnswer]:
    kinds = [True] * aware + [False] * unaware
    return [OwnAnswer(concept, f"{i}", "a", kind) for i, kind in enumerate(kinds)]


def test_answers_without_text_or_verdict_belong_to_neither_kind():
    more = [OwnAnswer("privacy", "x", " ", True), OwnAnswer("privacy", "y", "a", None)]
    found = divide([*rows("privacy", 2, 3), *more, *rows("fairness", 1, 0)], {"privacy": (), "fairness": ()})
    assert [len(found["privacy"].aware), len(found["privacy"].unaware)] == [2, 3]
    assert [len(found["fairness"].aware), len(found["fairness"].unaware)] == [1, 0]


def test_held_back_answers_are_not_scored():
    own = divide(rows("privacy", 40, 200), {"privacy": ()})["privacy"]
    aware, unaware, held_aware, held_unaware = own.divided(128, 32)
    assert [len(part) for part in (aware, unaware, held_aware, held_unaware)] == [30, 128, 10, 200 - 128]
    assert len(own.divided(16, 8)[3]) == 4 * 8, "what is not scored is held back, up to a limit"
    assert not {pair.prompt for pair in held_aware} & {pair.prompt for pair in aware}
    assert not {pair.prompt for pair in held_unaware} & {pair.prompt for pair in unaware}


def test_the_least_number_is_enough_and_one_less_is_not():
    least = LEAST_SCORED + LEAST_HELD_BACK
    enough = divide(rows("privacy", least, 300), {"privacy": ()})
    assert too_few(enough, {}) == ""
    aware, _, held_aware, _ = enough["privacy"].divided(128, 32)
    assert len(held_aware) >= LEAST_HELD_BACK
    assert len(aware) >= LEAST_SCORED
    assert f"{least - 1} were aware" in too_few(divide(rows("privacy", least - 1, 300), {"privacy": ()}), {})


def test_a_probe_is_judged_by_its_share_of_all_prompts():
    asked = {"privacy": [Question(str(i)) for i in range(512)]}
    probe = divide(rows("privacy", 3, 45), {"privacy": ()})
    assert too_few(probe, asked) == "", "3 of 48 may well become 32 of 512"
    assert "of 48 own answers" in too_few(divide(rows("privacy", 1, 47), {"privacy": ()}), asked)
    assert "64 are the least" in too_few_prompts({"privacy": asked["privacy"][:40]})
    assert too_few_prompts(asked) == ""


def test_the_margin_of_own_answers_is_the_gradient_of_the_rate():
    """The identity of the module's docstring on a softmax over five answers, two of them aware."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    verdicts = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    policy = weights.softmax(0)
    rate = (policy * verdicts).sum()
    (expected,) = torch.autograd.grad(rate, weights, retain_graph=True)
    scores = torch.stack([torch.autograd.grad(policy[i].log(), weights, retain_graph=True)[0] for i in range(5)])
    aware, unaware = (
        (policy * kind) @ scores / (policy * kind).sum() for kind in (verdicts, 1 - verdicts)
    )  # E[grad log pi | A]
    found = rate * (1 - rate) * (aware - unaware)
    assert torch.allclose(found, expected, atol=1e-12)
    assert expected.abs().max() > 0.01


def test_own_pairs_rarer():
    assert OwnPairs((), ()).rarer == 0
