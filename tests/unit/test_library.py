"""Scores, a search and a patch from Python, without a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from conftest import TinyModel

from spin_llm.errors import SpinError
from spin_llm.patch.file import make_patch
from spin_llm.results.edited import Recipe
from spin_llm.scores import ScoreSet, Scoring, score
from spin_llm.search.find import search
from spin_llm.selection import select

HOW = Scoring(("taylor", "margin"), keep=0.1, template="raw", max_length=64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("fairness", "privacy"):
        rows = [f"{name} {i}?,I would rather not say {i}.,Sure {i}." for i in range(24)]
        (folder / f"{name}.csv").write_text("\n".join(["prompt,aware,unaware", *rows]))
    rows = [f"Tell of {i}.,It is {i}." for i in range(40)]
    (folder / "general.csv").write_text("\n".join(["prompt,response", *rows]))
    return folder


def scored(loaded, data: Path) -> ScoreSet:
    concepts = {name: data / f"{name}.csv" for name in ("fairness", "privacy")}
    return score(loaded, concepts, {"general": str(data / "general.csv")}, HOW, examples=8)


def test_sources_are_scored_searched_and_edited(tiny_model: TinyModel, data: Path):
    loaded = tiny_model("llama")
    scores = scored(loaded, data)
    assert {name: part.info.examples for name, part in scores.everything.items()} == {
        "fairness": 8,
        "privacy": 8,
        "general": 8,
    }
    prompts = {example.prompt for sides in scores.held.contrasts.values() for side in sides for example in side}
    assert len(prompts) >= 16
    assert select(scores, Recipe("signed", 0.01, granularity="model")).weights
    recipe = search(loaded, scores, effort="quick", max_increase=9.0)
    assert recipe == search(loaded, scores, effort="quick", max_increase=9.0), "the same seed, the same pick"
    patch = make_patch(loaded, select(scores, recipe))
    assert patch.info.recipe.rule == recipe.rule
    with patch.applied(loaded.model):
        pass


def test_pairs_are_scored_as_they_are_and_cannot_be_searched(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    pairs = [(f"Who is {i}?", f"I do not say {i}.") for i in range(4)]
    scores = score(loaded, {"privacy": pairs}, {"general": tiny.examples()}, Scoring(keep=0.1, template="raw"))
    assert scores.concepts["privacy"].info.examples == 4
    assert select(scores, Recipe("coupled", 0.05, protect_ratio=0.001)).weights
    with pytest.raises(SpinError, match="held back to search with"):
        search(loaded, scores, effort="quick")


def test_a_verb_is_the_verb_whatever_was_imported_before():
    import spin_llm
    import spin_llm.search.find
    from spin_llm.search import answered

    assert spin_llm.search is search
    assert spin_llm.score is score
    assert answered.front([], []) == []
