"""Measures of a judge against hand-made values: counts, calibration, agreement, bounds, tables, sources, limits."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, cohen_kappa_score, roc_auc_score

from spin_llm.errors import SpinError
from spin_llm.judges.local import SHIPPED, load_local
from spin_llm.judges.quality.check import check, check_judges, check_tables, measure_axis, probe_table, remarks
from spin_llm.judges.quality.labelled import (
    KINDS,
    PASSING,
    Labelled,
    labelled_rows,
    limits,
    limits_of,
    probes_for,
    read_probes,
    run_probes,
)
from spin_llm.judges.verdict import Verdict
from spin_llm.results.judged import Confusion
from spin_llm.stats.classification import (
    agreement,
    calibration_error,
    pairwise,
    quality_of,
    reliability,
    share_interval,
)


class FakeJudge:
    """A verdict from the answer's first letter: y, n, or none; probabilities where `sure` is given."""

    def __init__(self, name: str = "fake", label: str = "aware", sure: float | None = 0.9, swap: str = "") -> None:
        self.name, self.label, self.sure, self.swap = name, label, sure, swap
        self.axes, self.fingerprint, self.quality = ("fairness", "privacy"), "", {}

    def __call__(self, axis: str, prompts: Sequence[str], answers: Sequence[str], progress=None) -> list[Verdict]:
        assert axis in self.axes
        found = []
        for answer in answers:
            if answer[:1] not in ("y", "n"):
                found.append(Verdict(None, None))
                continue
            said = int((answer[0] == "y") != (self.swap in answer if self.swap else False))
            found.append(Verdict(None if self.sure is None else (self.sure if said else 1 - self.sure), said))
        return found


def rows_of(answers: str, labels: str, axis: str = "fairness", facet: str | None = "age") -> list[Labelled]:
    return [
        Labelled(concept=axis, prompt=f"prompt {place}", answer=answer, labels={"aware": int(label)}, facet=facet)
        for place, (answer, label) in enumerate(zip(answers.split(), labels, strict=True))
    ]


def test_quality_against_sklearn():
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, 200)
    probability = np.clip(0.5 + 0.25 * (y - 0.5) + draw.normal(0, 0.2, 200), 0, 1)
    found = quality_of(probability, 0.5, y, np.arange(200).astype(str))
    said = probability >= 0.5
    assert found.auc == pytest.approx(roc_auc_score(y, probability))
    assert found.brier == pytest.approx(brier_score_loss(y, probability))
    assert found.accuracy == (said == y).mean()
    assert found.sensitivity == (int((said & (y == 1)).sum()), int((y == 1).sum()))
    assert found.specificity == (int((~said & (y == 0)).sum()), int((y == 0).sum()))
    assert found.auc_ci95[0] < found.auc < found.auc_ci95[1]


def test_calibration_by_hand():
    probability, y = np.array([0.05, 0.07, 0.95, 1.0]), np.array([0, 1, 1, 1])
    table = reliability(probability, y)
    assert [(bin_["from"], bin_["n"], bin_["labelled"]) for bin_ in table] == [(0.0, 2, 0.5), (0.9, 2, 1.0)]
    assert calibration_error(table) == pytest.approx((2 * (0.5 - 0.06) + 2 * (1.0 - 0.975)) / 4)
    assert calibration_error(reliability(np.array([0.0, 1.0]), np.array([0, 1]))) == 0


def test_intervals_of_shares():
    assert share_interval([0, 0]) is None
    low, high = share_interval([6, 9])
    assert 0.3 < low < 6 / 9 < high < 0.92
    assert share_interval([9, 9])[1] == 1.0
    assert share_interval([0, 9])[0] == 0.0


def test_kappa_against_sklearn_and_its_ends():
    draw = np.random.default_rng(0)
    one = draw.integers(0, 2, 80)
    other = np.where(draw.random(80) < 0.2, 1 - one, one)
    prompts = [f"p{place // 2}" for place in range(80)]
    found = agreement(one.astype(float), other.astype(float), prompts)
    assert found.kappa == pytest.approx(cohen_kappa_score(one, other))
    assert found.ci95[0] < found.kappa < found.ci95[1]
    assert found.agree == (one == other).mean()
    assert agreement(one.astype(float), one.astype(float), prompts).kappa == 1.0
    assert agreement(np.ones(4), np.ones(4), list("abcd")).kappa is None
    assert agreement(np.ones(0), np.ones(0), []).n == 0


def test_kappa_resamples_whole_prompts():
    one, other = np.tile([1.0, 0.0, 1.0, 0.0], 10), np.tile([1.0, 0.0, 0.0, 0.0], 10)
    spread = [np.diff(agreement(one, other, [f"p{place // size}" for place in range(40)]).ci95)[0] for size in (1, 20)]
    assert spread[1] < 0.5 * spread[0], "prompts alike in everything say nothing of how prompts differ"


def test_agreement_leaves_out_what_one_of_the_two_could_not_judge():
    (found,) = pairwise({"a": [1, 0, None, 1], "b": [1, 0, 1, None]}, list("wxyz"))
    assert (found.between, found.n, found.kappa) == (("a", "b"), 2, 1.0)


def test_a_check_counts_everything():
    rows = rows_of("y1 y2 n3 n4 y5 ?6 ?7", "1101010") + rows_of("y1 n2", "10", "privacy", "health")
    found = check_judges({"fake": FakeJudge()}, rows).judges["fake"]
    fairness = found["fairness"]
    assert fairness.confusion == Confusion(found=2, missed=1, false_alarms=1, rejected=1)
    assert fairness.facets == {"age": fairness.confusion}
    assert (fairness.sensitivity, fairness.specificity) == ((2, 3), (1, 2))
    assert (fairness.n, fairness.unparsed, fairness.accuracy) == (5, 2, 0.6)
    # the two unparsed rows are labelled 1 and 0
    assert fairness.bounds["accuracy"] == pytest.approx((3 / 7, 5 / 7))
    assert fairness.bounds["sensitivity"] == (2 / 4, 3 / 4)
    assert fairness.bounds["specificity"] == (1 / 3, 2 / 3)
    assert found["privacy"].labels.kappa == 1.0
    assert not found["privacy"].measurable, "two answers show nothing"
    assert [part.n for part in fairness.groups] == [5]


def test_a_judge_that_is_often_without_a_verdict_is_not_measurable_by_the_others():
    """Its verdicts are all right; an empty answer is not its fault."""
    right = rows_of(" ".join(f"{'yn'[n % 2]}{n}" for n in range(60)), "10" * 30)
    assert check_judges({"fake": FakeJudge()}, right).judges["fake"]["fairness"].measurable
    empty = [replace(row, answer="") for row in rows_of("? " * 6, "1" * 6)]
    assert check_judges({"fake": FakeJudge()}, right + empty).judges["fake"]["fairness"].measurable
    silent = rows_of("?a " * 6, "1" * 6)
    assert not check_judges({"fake": FakeJudge()}, right + silent).judges["fake"]["fairness"].measurable


def test_a_judge_without_probabilities_has_the_auc_of_its_verdicts_and_no_calibration():
    found = check_judges({"fake": FakeJudge(sure=None)}, rows_of("y1 y2 n3 n4", "1001")).judges["fake"]["fairness"]
    assert found.auc == pytest.approx(0.5)
    assert (found.brier, found.calibration_error, found.reliability) == (None, None, [])


def test_several_judges_are_compared_on_every_axis_that_they_judge():
    rows = rows_of("y1 y2 n3 n4", "1100") + rows_of("y1 n2", "10", "over_refusal")
    judges = {"one": FakeJudge("one"), "two": FakeJudge("two", swap="4")}
    found = check_judges(judges, rows)
    assert list(found.judges["one"]) == ["fairness"]
    (pair,) = found.agreement["fairness"]
    assert (pair.between, pair.agree, pair.n) == (("one", "two"), 0.75, 4)
    assert found.agreement["over_refusal"][0].n == 0
    titles = [table.title.split()[0] for table in check_tables(found)]
    assert titles == ["Quality", "Where", "Confusion", "Reliability", "Agreement"]
    assert all(len(row) == len(table.columns) for table in check_tables(found) for row in table.rows)


def test_what_the_tables_hide_is_said():
    found = check_judges({"fake": FakeJudge()}, rows_of("y1 n2 n3 ?4", "0011"))
    lines = " ".join(remarks(found))
    assert "not measurable with fake" in lines
    assert "no verdict on 1 labelled answers" in lines
    assert "0.25 to 0.50" in lines


def test_rows_without_the_judges_label_are_an_error():
    with pytest.raises(SpinError, match="labelled for safe"):
        check_judges({"fake": FakeJudge(label="safe")}, rows_of("y1 n2", "10"))


def test_labelled_sources(tmp_path: Path):
    rows = labelled_rows("starter", most=3)
    assert [sum(row.concept == axis for row in rows) for axis in ("fairness", "privacy")] == [6, 6]
    assert {(row.labels["aware"], row.labels["safe"]) for row in rows} == {(0, 0), (1, 1)}
    assert all(row.facet for row in rows)
    others = labelled_rows("starter:truthfulness,helpfulness", most=2)
    assert [row.concept for row in others] == ["truthfulness"] * 4 + ["helpfulness"] * 4
    assert [row.labels["aware"] for row in others[:4]] == [1, 1, 0, 0]
    shipped = labelled_rows(str(SHIPPED.with_name("labelled_answers.jsonl")), most=5)
    assert len(shipped) == 15
    assert all(row.facet for row in shipped)
    for concept in ("fairness", "privacy"):
        for kind in ("safe", "unsafe"):
            with (tmp_path / f"beaver_{concept}_{kind}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("prompt", "response"), (f"{concept}?", f"{kind}.")])
    rows = labelled_rows("beavertails", data_dir=str(tmp_path))
    assert [(row.concept, row.answer, row.labels["safe"]) for row in rows] == [
        *(("fairness", "safe.", 1), ("fairness", "unsafe.", 0)),
        *(("privacy", "safe.", 1), ("privacy", "unsafe.", 0)),
    ]
    with pytest.raises(SpinError, match="no data file"):
        labelled_rows(str(tmp_path / "absent.jsonl"))


def test_the_probes_are_of_every_kind_and_written_twice_nowhere():
    rows = read_probes()
    assert {row.kind for row in rows} == set(KINDS)
    for kind in KINDS:
        mine = [row for row in rows if row.kind == kind]
        assert len(mine) >= 10
        assert {row.concept for row in mine} in ({"fairness", "privacy"}, {"over_refusal"})
    assert len({(row.kind, row.concept, row.prompt, row.answer) for row in rows}) == len(rows)


def test_the_probes_are_none_of_the_answers_that_judges_are_fitted_on():
    fitted = {row.answer for row in labelled_rows(str(SHIPPED.with_name("labelled_answers.jsonl")))}
    fitted |= {row.answer for row in labelled_rows("starter")}
    assert not fitted & {row.answer for row in read_probes()}


def test_probes_are_counted_by_kind_and_failing_kinds_are_limits():
    class Always(FakeJudge):
        def __call__(self, axis, prompts, answers, progress=None):
            return [Verdict(0.9, 1) for _ in answers]

    outcome = run_probes(Always())
    assert outcome["stated, then disavowed"] == (12, 12)
    assert outcome["disclaimer, then complies"] == (0, 12)
    assert outcome["in German"] == (6, 12)
    assert outcome["empty"][0] == 0, "an empty answer has no verdict"
    assert "refuses a benign question" not in outcome, "this judge does not judge over-refusal"
    lines = limits_of(outcome)
    assert len(lines) == sum(right < PASSING * of for right, of in outcome.values())
    assert any("German: right on 6 of 12" in line for line in lines)
    table = probe_table({"always": outcome})
    assert [row[-1] for row in table.rows].count("fails") == len(lines)
    assert check(["probes"], {"always": Always()})[0] == {"always": outcome}


def test_limits_come_from_the_judge_file_or_say_that_nothing_is_known():
    (line,) = limits(FakeJudge("mine"))
    assert "judge check probes --judge mine" in line
    assert limits(FakeJudge(label="coherent")) == []
    shipped = load_local()
    assert limits(shipped) == limits_of(shipped.about.probes["aware"])
    assert set(shipped.about.probes["aware"]) == set(KINDS)


def test_the_shipped_judge_states_its_errors_as_counts_that_fit_its_rates():
    heads = [*load_local().quality.values(), *load_local(label="safe").quality.values()]
    for quality in (entry for entries in heads for entry in entries):
        (hits, positives), (rejected, negatives) = quality.sensitivity, quality.specificity
        assert positives + negatives == quality.n
        assert (hits + rejected) / quality.n == pytest.approx(quality.accuracy)
        assert positives / quality.n == pytest.approx(quality.positive_rate[0])
        assert (hits + negatives - rejected) / quality.n == pytest.approx(quality.positive_rate[1])


def test_measures_of_labels_of_one_kind_only():
    rows = rows_of("y1 n2", "00")
    found = measure_axis("aware", [(row, Verdict(0.3, 0)) for row in rows])
    assert (found.auc, found.measurable, found.sensitivity) == (None, False, (0, 0))
    assert found.sensitivity_ci95 is None
    assert found.bounds["sensitivity"] == (None, None)
    probes = probes_for("safe")
    assert {right for _, right in probes} == {0, 1, None}
