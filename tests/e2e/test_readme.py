"""The README's Python, as it stands there, on a tiny model with few examples and questions; and the verbs beside the
command: without a folder they give what it gives."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
from conftest import TinyFolder, TinyModel
from driver import MadeUpJudge, use_made_up_judge
from harness import contrast_words

import spin_llm
from spin_llm.errors import SpinError
from spin_llm.results.file import read_results
from spin_llm.settings import RunSettings

README = Path(__file__).resolve().parents[2] / "README.md"
FEW = RunSettings("smollm2-135m", examples=16, max_questions=4, new_tokens=4)


def example() -> str:
    """The only block of Python in the README."""
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return str(block)


def test_the_readme_s_python(tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    loaded = tiny_model("llama", chat=True)
    monkeypatch.setattr(spin_llm, "load", {"smollm2-135m": loaded}.__getitem__)
    monkeypatch.setattr(spin_llm, "score", partial(spin_llm.score, examples=16))
    monkeypatch.setattr(spin_llm, "evaluate", partial(spin_llm.evaluate, settings=FEW))
    before = {name: weight.clone() for name, weight in loaded.model.named_parameters()}
    names: dict[str, object] = {}
    exec(compile(example(), str(README), "exec"), names)
    assert all(bool((weight == before[name]).all()) for name, weight in loaded.model.named_parameters())
    results = names["results"]
    assert set(results.axes) == {"fairness", "privacy", "over_refusal", "coherence", "answered", "perplexity", "kl"}
    assert results.axes["perplexity"].ci95
    made = {path.name for path in (tmp_path / "out").iterdir() if path.suffix and not path.name.startswith(".")}
    assert made == {
        *("results.json", "report.html", "report.md", "run.json"),
        *("patch.safetensors", "generations.jsonl", "verdicts.jsonl"),
    }
    assert read_results(tmp_path / "out").axes == results.axes
    assert f"{results.edit.weights:,} weights edited" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert spin_llm.load_patch(tmp_path / "out").edits.keys() == names["patch"].edits.keys()
    with pytest.raises(SpinError, match="exists"):
        spin_llm.write_report(results, "out")
    assert spin_llm.write_report(results, "out", overwrite=True).read_bytes()
    assert spin_llm.__version__


def test_the_verbs_give_what_the_command_gives(
    tiny_folder: TinyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A search that ends with answers, and a comparison of the same patch on other questions than the search put."""
    from spin_llm.search import find

    use_made_up_judge(monkeypatch.setattr)
    monkeypatch.setattr(find, "load_coherence_judge", MadeUpJudge)
    model = str(tiny_folder("llama"))
    contrast_words(tmp_path, questions=1)
    concepts = {name: str(tmp_path / f"{name}.csv") for name in ("fairness", "privacy")}
    protect, questions = {"general": str(tmp_path / "general.csv")}, str(tmp_path / "questions.csv")
    told = {"concepts": concepts, "protect": protect, "questions": questions, "examples": 8, "new_tokens": 64}
    told |= {"keep": 0.1, "dtype": "float32", "effort": "quick", "max_perplexity_increase": 0.2}
    swept = spin_llm.sweep(RunSettings(model, **told), tmp_path / "swept")

    loaded = spin_llm.load(model, dtype="float32")
    how = spin_llm.Scoring(("taylor", "margin"), keep=0.1)
    scores = spin_llm.score(loaded, concepts, protect, how, examples=8)
    judge = MadeUpJudge()
    recipe = spin_llm.search(
        loaded, scores, effort="quick", judge=judge, questions=questions, max_increase=told["max_perplexity_increase"]
    )
    assert recipe == swept.recipe
    patch = spin_llm.make_patch(loaded, spin_llm.select(scores, recipe))
    assert {name: edit.indices.tolist() for name, edit in patch.edits.items()} == {
        name: edit.indices.tolist() for name, edit in spin_llm.load_patch(tmp_path / "swept").edits.items()
    }
    settings = RunSettings(model, **told)
    compared = spin_llm.evaluate_models(settings, tmp_path / "compared", patch_file=tmp_path / "swept")
    results = spin_llm.evaluate(loaded, patch, questions, judge, settings=settings)
    assert results.axes == read_results(tmp_path / "compared").axes
    assert results.edit.per_matrix == compared.edit.per_matrix
    fewer = spin_llm.evaluate(loaded, patch, questions, judge, settings=settings, searched="quick")
    n = {axis: result.n for axis, result in results.axes.items()}
    assert {axis: result.n for axis, result in fewer.axes.items() if axis in concepts} == {
        axis: n[axis] - n[axis] // 2 for axis in concepts
    }
