"""The benchmarks on a tiny model: baselines that compute what they claim, sound accounting, complete results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch
from conftest import TinyFolder, TinyModel
from torch.utils.flop_counter import FlopCounterMode

from spin_llm.data import Example
from spin_llm.models import editable_matrices
from spin_llm.scores import importance

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = ("common", "baselines", "work", "scoring", "precision", "generation", "beyond", "own")


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules; they find each other in their own folder, as when they are run."""
    import importlib

    sys.path.insert(0, str(FOLDER))
    threads = torch.get_num_threads()
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
        torch.set_num_threads(threads)


def one_line(text: str) -> str:
    """A paragraph, or a page, whose lines end elsewhere says the same."""
    return " ".join(text.split())


def shown_page() -> str:
    return one_line((FOLDER.parent / "docs" / "beyond.md").read_text(encoding="utf-8"))


def test_the_released_algorithm_forms_the_same_sums(benchmarks: dict[str, Any], tiny_model: TinyModel):
    """In float32 its sums times |W| / n are importance; so it is the same statistic that is raced."""
    loaded, examples = tiny_model("llama"), tiny.examples()[2:]
    matrices = editable_matrices(loaded.model, "mlp")
    sums = benchmarks["baselines"].released(loaded, examples)
    expected = importance(loaded, examples, matrices)
    assert sums.keys() == expected.keys()
    for matrix in matrices:
        found = sums[matrix.name] * matrix.weight.abs() / len(examples)
        assert (found - expected[matrix.name]).abs().max() <= 1e-5 * expected[matrix.name].max()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in loaded.model.parameters())


def test_the_released_algorithm_sums_in_the_weights_dtype_on_the_layers_asked_for(
    benchmarks: dict[str, Any], tiny_model: TinyModel
):
    loaded = tiny_model("llama", dtype="bfloat16")
    sums = benchmarks["baselines"].released(loaded, tiny.examples()[2:4], [0, 2])
    assert {name.split(".")[2] for name in sums} == {"0", "2"}
    assert all(total.dtype == torch.bfloat16 for total in sums.values())


def test_the_plain_pass_leaves_nothing_behind(benchmarks: dict[str, Any], tiny_model: TinyModel):
    loaded = tiny_model("llama")
    benchmarks["baselines"].plain(loaded, tiny.examples()[2:4])
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in loaded.model.parameters())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_work_that_is_called_unavoidable_is_what_scoring_does(
    name: str, benchmarks: dict[str, Any], tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
):
    """Counted by torch, which sees its own operators alone, on equally long examples: the same number, the quadratic
    attention aside."""
    monkeypatch.setenv("CC", "")
    loaded = tiny_model(name)
    matrices = editable_matrices(loaded.model, "mlp")
    examples = [Example(tuple(range(3 + n, 43 + n)), 30, 0, "") for n in range(4)]
    with FlopCounterMode(display=False) as counter:
        importance(loaded, examples, matrices)
    products = benchmarks["work"].unavoidable(loaded, matrices, examples)
    linear = sum(product.gflop for product in products if not product.purpose.startswith("attention"))
    counted = counter.get_flop_counts()["Global"]
    done = sum(flops for operation, flops in counted.items() if "attention" not in str(operation)) / 1e9 / len(examples)
    assert linear == pytest.approx(done, rel=0.02)
    assert 0 < sum(product.gflop for product in products) - linear < linear


def test_jaccard(benchmarks: dict[str, Any]):
    jaccard = benchmarks["precision"].jaccard

    def sets(**named: list[int]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(indices) for name, indices in named.items()}

    assert jaccard(sets(a=[1, 2, 3], b=[4]), sets(a=[2, 3, 5])) == 2 / 5
    assert jaccard(sets(a=[1]), sets(a=[1])) == 1
    assert jaccard(sets(a=[1]), sets(b=[1])) == 0
    assert jaccard({}, {}) is None


def test_examples_have_the_length_asked_for(benchmarks: dict[str, Any], tiny_model: TinyModel):
    loaded, common = tiny_model("llama"), benchmarks["common"]
    exact = common.examples_of_exactly(loaded, 50, 7)
    assert {len(example.input_ids) for example in exact} == {50}
    assert len(exact) == 7
    near = common.examples_of_about(loaded, 240, 6)
    assert all(200 < len(example.input_ids) <= 240 > example.response_tokens for example in near)


def test_rounds_are_interleaved(benchmarks: dict[str, Any]):
    seen: list[str] = []
    timings = benchmarks["common"].interleaved({name: lambda name=name: seen.append(name) for name in "ab"}, 3)
    assert "".join(seen) == "ababab"
    assert all(value["least"] <= value["median"] <= value["most"] for value in timings.values())


@pytest.mark.slow
def test_the_scoring_benchmark_runs_and_writes_its_sections(
    benchmarks: dict[str, Any], tiny_folder: TinyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "scoring.json"
    small = "--threads 1 --tokens 240 --examples 4 --plain-examples 1 --released-examples 1 --layers 2 --rounds 1"
    small += " --lengths 20 40 --length-examples 2 --checkpoint-examples 8 --pass-examples 4 --passes 2"
    common = ["--model", str(tiny_folder("llama")), "--output", str(output), *small.split()]
    benchmarks["scoring"].main(["--only", "speed,examples,length,work,sums,profile,checkpoint", *common])
    found = json.loads(output.read_text(encoding="utf-8"))
    assert set(found) == {"speed", "examples", "length", "work", "sums", "profile", "checkpoint"}
    assert all(
        {"processor", "versions", "date", "threads", "load_before"} <= part["made"].keys() for part in found.values()
    )
    assert len(found["speed"]["seconds_an_example"]) == 6
    assert found["speed"]["released_is_extrapolated_from_layers"] == 2
    assert all(0 < found["work"][dtype]["fraction_of_bound"] < 1 for dtype in ("float32", "bfloat16"))
    assert 0 < len(found["profile"]["float32"]["operators"]) <= 12
    assert "released / ours, bfloat16" in capsys.readouterr().out
    benchmarks["scoring"].main(["--only", "passes", *common])
    again = json.loads(output.read_text(encoding="utf-8"))
    assert {name: again[name] for name in found} == found, "other sections stay"
    assert again["passes"]["accumulators_ratio"] < 1
    assert 0.5 < again["passes"]["2"]["plan_over_measured"]["median"] < 2


@pytest.mark.slow
def test_the_plan_is_held_against_the_work(benchmarks: dict[str, Any], tiny_folder: TinyFolder, tmp_path: Path):
    output, model = tmp_path / "scoring.json", str(tiny_folder("llama"))
    small = "--threads 1 --tokens 240 --pass-examples 4 --plan-questions 2 --rounds 1"
    benchmarks["scoring"].main(["--only", "plan", "--output", str(output), *small.split(), "--plan-models", model])
    (found,) = (
        row for row in json.loads(output.read_text(encoding="utf-8"))["plan"].values() if "planned_over_measured" in row
    )
    kinds = {"scoring", "reading", "answers", "verdicts", "in all", "peak memory", "batch by arithmetic"}
    assert kinds < found["planned_over_measured"].keys()
    assert all(row["median"] > 0 for row in found["planned_over_measured"].values())


def test_an_unknown_section_is_refused(benchmarks: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        benchmarks["scoring"].main(["--only", "sped"])
    assert "no section sped; there are speed," in capsys.readouterr().err


def test_the_precision_benchmark_runs(benchmarks: dict[str, Any], tiny_folder: TinyFolder, tmp_path: Path):
    output = tmp_path / "precision.json"
    given = ["--model", str(tiny_folder("llama")), "--examples", "3", "--ratios", "1e-6", "5e-3"]
    benchmarks["precision"].main([*given, "--output", str(output)])
    found = json.loads(output.read_text(encoding="utf-8"))["agreement"]["jaccard"]
    assert len(found) == 3
    for rows in found.values():
        assert rows.keys() == {"0.005"}, "a ratio below one weight is left out"
        assert 0 < rows["0.005"]["top"]["fairness"] <= 1


def test_the_generation_benchmark_compares_the_same_answers(
    benchmarks: dict[str, Any], tiny_folder: TinyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "generation.json"
    given = ["--model", str(tiny_folder("llama")), "--template", "raw", "--dtype", "float32", "--threads", "1"]
    given += ["--prompts", "11", "--new-tokens", "5", "--rounds", "2", "--output", str(output)]
    benchmarks["generation"].main(given)
    found = json.loads(output.read_text(encoding="utf-8"))
    assert set(found) == {"speed", "parts", "sizes"}
    for section, others in ((found["speed"], 2), (found["parts"], 10)):
        assert len({row["tokens"] for row in section["rates"].values()}) == 1
        assert all(len(row["tokens_a_second"]["rounds"]) == 2 for row in section["rates"].values())
        assert len(section["ours_times"]) == others
    assert not any(found["parts"]["answers_that_differ"].values())
    assert [row["rows"] for row in found["sizes"]["sizes"]] == [16, 32, 64, 96, 128]
    assert "ours / one at a time" in capsys.readouterr().out


def test_the_comparison_s_table_is_made_of_the_committed_results(
    benchmarks: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    """Remade here from the files, entry by entry; and it is the one that the page shows."""
    benchmarks["beyond"].main(["--table"])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in printed.splitlines() if "|" in line]
    results = [
        json.loads((FOLDER / "results" / f"beyond-{seed}.json").read_text(encoding="utf-8")) for seed in range(3)
    ]
    shown = {(row[0], row[1]): row for row in rows}
    for found in results:
        for name, rule in (("auto", "auto"), ("signed at 1%", "signed"), ("random", "random")):
            edit, row = found["edits"][name], shown[rule, str(found["seed"])]
            assert row[2:4] == [edit["recipe"], f"{edit['weights']:,}"]
            low, high = edit["axes"]["privacy"]["ci95"]
            assert row[5].startswith("**") == (low > 0 or high < 0)
            numbers = [float(word.strip("*()")) for word in row[5].split() if word != "to"]
            assert numbers == pytest.approx([100 * n for n in (edit["axes"]["privacy"]["delta"], low, high)], abs=0.051)
            cost = edit["axes"]["perplexity"]
            assert float(row[8].strip("*").split()[0]) == pytest.approx(100 * cost["delta"] / cost["base"], abs=0.051)
        assert ("coupled", str(found["seed"])) in shown
        assert f"- seed {found['seed']}: `found` is {str(found['search']['found']).lower()}. " in printed
    privacy = [100 * found["edits"]["signed at 1%"]["axes"]["privacy"]["delta"] for found in results]
    mean = shown["signed", "mean of 3 (range)"][5]
    wanted = [sum(privacy) / 3, min(privacy), max(privacy)]
    assert [float(word.strip("()")) for word in mean.split() if word != "to"] == pytest.approx(wanted, abs=0.051)
    assert one_line(printed) in shown_page(), "the page shows what the command prints"


def test_the_table_of_own_answers_is_made_of_the_committed_results(
    benchmarks: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    """Checked entry by entry against the files; and every table is one that the page shows."""
    benchmarks["own"].main(["--table"])
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert len(blocks) == 5, "two tables with a line on the base below each, and what readers made of the answers"
    for block in blocks:
        assert one_line(block) in shown_page(), "the page shows what the command prints"
    for name, table in (("own", blocks[0]), ("readers", blocks[2])):
        check_own_table(table, sorted((FOLDER / "results").glob(f"{name}-*.json")))
    for found in (json.loads(file.read_text()) for file in sorted((FOLDER / "results").glob("readers-*.json"))):
        for label, axes in found["readers"].items():
            for axis, edits in axes.items():
                for name, edit in edits.items():
                    start = f"| {name} | {found['seed']} | {found['edits'][name]['weights']:,} | {axis} | {label} |"
                    (line,) = (line for line in blocks[4].splitlines() if line.startswith(start))
                    assert f"| {edit['n']} | {edit['base']:.1%} |" in line
                    assert f"{100 * edit['delta']:+.1f} (" in line
                    assert ("**" in line) == (edit["ci95"][0] > 0 or edit["ci95"][1] < 0)


def check_own_table(table: str, files: list[Path]) -> None:
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    shown = {(row[0], row[1]): row for row in rows}
    assert files
    for found in (json.loads(file.read_text(encoding="utf-8")) for file in files):
        for name, edit in found["edits"].items():
            row, axis = shown[name, str(found["seed"])], edit["axes"]["privacy"]
            low, high = axis["ci95"]
            assert row[2] == f"{edit['weights']:,}"
            assert row[4].startswith("**") == (low > 0 or high < 0)
            numbers = [float(word.strip("*()")) for word in row[4].split() if word != "to"]
            assert numbers == pytest.approx([100 * n for n in (axis["delta"], low, high)], abs=0.051)


def test_the_comparison_needs_data_or_its_results(benchmarks: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        benchmarks["beyond"].main(["--seeds", "0"])
    assert "--data-dir and --work are needed, or --table" in capsys.readouterr().err


def test_the_script_for_a_gpu_runs_where_only_torch_and_transformers_are(tmp_path: Path):
    """On the CPU, at a tiny size; modules that neither of the two needs are hidden."""
    hidden = "import sys, importlib.util as u; find = u.find_spec; sys.argv = sys.argv[1:]\n"
    hidden += "u.find_spec = lambda name, *p: None if name in ('msgspec', 'psutil') else find(name, *p)\n"
    hidden += "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    output = tmp_path / "gpu.json"
    script, only = str(FOLDER / "gpu.py"), "kernel,scoring,answers,patch"
    options = ["--device", "cpu", "--models", "tiny", "--only", only, "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    command = [sys.executable, "-c", hidden, script, *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(output.read_text())
    assert found["about"]["stood_in"] == ["msgspec", "psutil"]
    assert found["kernel tiny"]["float32"]["compiled"]["error"] < 1e-5
    assert found["scoring tiny"]["compiled"]["seconds"] > 0
    assert found["answers tiny"]["answers"] == 16
    assert found["patch tiny"]["reverted_bit_for_bit"]


def test_the_script_for_a_gpu_says_that_there_is_none(tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("this is about a machine without a GPU")
    result = subprocess.run([sys.executable, str(FOLDER / "gpu.py")], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "No CUDA device is here" in result.stderr
