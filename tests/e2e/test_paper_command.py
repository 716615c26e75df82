"""`paper EXPERIMENT`: every experiment on a tiny model, shared steps done once, an interrupted one goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from harness import WORDS, Command, contrast_words

from spin_llm.files import write_json
from spin_llm.paper.arms import Work
from spin_llm.paper.conduct import shared_settings, write_failure, write_pages, write_record
from spin_llm.paper.estimate import arms_of, planned, work_left
from spin_llm.paper.experiments import experiments
from spin_llm.paper.tables import printed, printed_rows
from spin_llm.pipeline.estimate import Rates
from spin_llm.results.paper import AboutArm, ArmRecord, Experiment
from spin_llm.settings import RunSettings

pytest_plugins = ["harness"]


@pytest.fixture(scope="module")
def words(tiny_folder, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    sources = contrast_words(tmp_path_factory.mktemp("paper"), questions=3, facets=True)
    limits = "--template raw --dtype float32 --keep 0.1 --new-tokens 4 --max-perplexity-increase 0.3 --limit 8"
    return [str(tiny_folder("llama")), *sources, *limits.split(), "--epochs", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One work folder for all experiments of this module, as `all` has."""
    return tmp_path_factory.mktemp("work")


def test_table1_has_all_methods_and_ours_below_the_line(words: list[str], command: Command, folder: Path):
    outcome = command("paper", "table1", *words, "-o", folder)
    assert outcome.code == 0, outcome.err
    text = (folder / "table1.md").read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == ["origin", "FFT", "LoRA", "DoRA", "ReFT", "SPIN", "auto (ours), not the paper's"]
    assert "What differs from the paper" in text
    assert "to do: 4 to fine-tune, 2 to edit, 7 to answer 24 questions" in outcome.err
    assert re.search(r"about \d+ minutes on this machine: fine-tuning \d", outcome.err)
    results = json.loads((folder / "table1.json").read_text())["results"]
    base, *others = (row["axes"]["fairness"] for row in results)
    assert base["delta"] == 0
    assert all(row["base"] == base["base"] and row["n"] == base["n"] == 8 for row in others)
    assert (folder / "table1.png").is_file()
    assert "table1" in outcome.out
    assert "Table 1" in (folder / "paper.md").read_text()

    again = command("paper", "table1", *words, "-o", folder)
    assert "7 of them done; to do: 0 to fine-tune, 0 to edit" in again.err
    assert "answers, " not in again.err, "nothing is answered twice"
    assert "minutes" not in again.err, "nothing is left to do"
    assert (folder / "table1.md").read_text() == text


@pytest.mark.parametrize(
    "name", ["malicious", "few-shot", "mixing", "ratio", "modules", "selector", "phrases", "sizes"]
)
def test_every_experiment_of_answers(words: list[str], command: Command, folder: Path, name: str):
    outcome = command("paper", name, *words, "-o", folder)
    assert outcome.code == 0, outcome.err
    assert "answers, base" not in outcome.err or name == "sizes" or "answers, base-" in outcome.err
    found = json.loads((folder / f"{name}.json").read_text())
    arms = experiments(8)[name].arms
    assert [row["name"] for row in found["results"]] == [
        arm.name if name != "sizes" else f"{Path(words[0]).name}, {arm.name}" for arm in arms
    ]
    for row in found["results"]:
        assert row.get("axes") or row["about"]["why"], "measured, or said why not"
    text = (folder / f"{name}.md").read_text()
    for row in found["results"]:
        if "why" in row["about"]:
            assert row["about"]["why"] in text


def test_kept_verdicts_are_those_of_the_answers(words: list[str], command: Command, folder: Path):
    """The base is judged once, and an answer that an arm did not change keeps its verdict: the rates are those of the
    answers under the made-up judge (an odd length is aware), for every arm."""
    assert command("paper", "table1", *words, "-o", folder).code == 0
    checked = 0
    for file in (folder / "progress").glob("answers-*.jsonl"):
        arm = folder / "arms" / f"{file.stem.removeprefix('answers-')}.json"
        if not arm.is_file():
            continue
        rows = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda row: row["index"])
        odd = [len(row["answer"]) % 2 for row in rows]
        axes = json.loads(arm.read_text())["axes"]
        start = 0
        for axis in ("fairness", "privacy", "over_refusal"):
            n = axes[axis]["asked"]
            assert axes[axis]["edited"] == pytest.approx(sum(odd[start : start + n]) / n)
            start += n
        checked += 1
    assert checked >= 6


def test_an_edit_of_nothing_is_said(words: list[str], command: Command, folder: Path):
    command("paper", "ratio", *words, "-o", folder)
    text = (folder / "ratio.md").read_text()
    assert "1e-07: The rule 'coupled' at ratio 1e-07 selects no weight at all." in text
    assert "ratio chosen by perplexity" not in text, "every row names its ratio"


def test_concepts_are_measured_by_margins(words: list[str], command: Command, tmp_path: Path):
    own = [*words]
    outcome = command("paper", "concepts", *own, "-o", tmp_path)
    assert outcome.code == 0, outcome.err
    text = (tmp_path / "concepts.md").read_text()
    assert "truthfulness" in text
    assert "nats per token" in text


@pytest.mark.slow
def test_information(words: list[str], command: Command, folder: Path):
    outcome = command("paper", "information", *words, "-o", folder)
    assert outcome.code == 0, outcome.err
    report = json.loads((folder / "information.json").read_text())["results"][1]
    assert set(report["information"]) == {"SPIN, shuffled pairs", "SPIN, framed pairs", "random, framed pairs"}
    text = (folder / "information.md").read_text()
    assert "HSIC before" in text
    location = report["location"]
    assert list(location["selections"])[:3] == ["SPIN", "random", "released"]
    assert location["agreement"]["weights"][0][0] == 1
    selectors = {f"selector {name}" for name in ("wanda", "sparsegpt", "magnitude", "random")}
    assert selectors | {"unaware responses", "seed 1", "0.5 x the ratio"} <= set(location["about"])
    for name in location["about"]:
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} | "))
        chosen = location["selections"].get(name, {"weights": 0})["weights"]
        assert chosen or "selects nothing" in row or "not kept" in row, "an empty selection is said"
    own = location["selections"]["SPIN"]
    assert sum(own["layers"]) == own["weights"] > 0
    assert own["gini_layers"]["by_chance"] is not None, "a Gini stands beside its chance"
    assert "Gini coefficient of SPIN's weights over layers" in text
    assert "dimensions that recur" in text
    assert (folder / "information.png").is_file()
    again = command("paper", "information", *words, "-o", folder)
    assert "scoring" not in again.err, "scores and places are kept"


@pytest.mark.slow
def test_table2_runs_a_task(words: list[str], command: Command, tmp_path: Path):
    pytest.importorskip("lm_eval")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "data.jsonl").write_text(
        "\n".join(
            json.dumps({"q": f"Is {w} a word?", "choices": ["yes", "no"], "gold": i % 2}) for i, w in enumerate(WORDS)
        )
    )
    (folder / "tiny_task.yaml").write_text(
        "task: tiny_task\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: "
        f"{folder / 'data.jsonl'}\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\n"
        "doc_to_choice: choices\ndoc_to_target: gold\nmetric_list:\n  - metric: acc\n"
    )
    outcome = command(
        "paper", "table2", *words, "-o", tmp_path / "out", "--capabilities", "tiny_task", "--capability-tasks", folder
    )
    assert outcome.code == 0, outcome.err
    assert "tiny" in (tmp_path / "out" / "table2.md").read_text().lower()


def two_experiments(limit: int | None = None, ratio: float | None = None) -> dict[str, Experiment]:
    """`table2`, which these tests make impossible, and what is quick."""
    return {name: experiments(limit, ratio)[name] for name in ("table2", "phrases")}


def test_all_goes_on_after_an_experiment_that_cannot_be_run(
    words: list[str], command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    from spin_llm.paper import conduct as run

    monkeypatch.setattr(run, "experiments", two_experiments)
    more = ["-o", folder, "--capabilities", "no_such_task"]
    outcome = command("paper", "all", *words, *more)
    assert outcome.code == 2
    assert "Not run: table2. The rest is done" in outcome.err
    assert "lm-eval tasks" in outcome.err, "the plan says what its minutes leave out"
    for page in ("table2.md", "paper.md", "paper.html"):
        text = (folder / page).read_text()
        assert "Not run: " in text
        assert "no_such_task" in text.replace("\\", "")
    assert "answers that hold the phrase" in (folder / "phrases.md").read_text()

    alone = command("paper", "table2", *words, *more)
    assert alone.code == 2
    assert "no_such_task" in alone.err
    assert "Not run: table2" not in alone.err, "a single experiment raises at once"


def test_a_failure_leaves_earlier_results(tmp_path: Path):
    experiment = experiments()["sizes"]
    row = ArmRecord("origin", "base", AboutArm(0))
    write_record(tmp_path, experiment, [row], "tiny", ["model tiny"])
    write_failure(tmp_path, experiment, "The disk is full.")
    write_pages([experiment], tmp_path, "tiny")
    text = (tmp_path / "sizes.md").read_text()
    assert "Not run again: The disk is full." in text
    assert "| origin | 0 |" in text
    write_record(tmp_path, experiment, [row], "tiny", ["model tiny"])
    write_pages([experiment], tmp_path, "tiny")
    assert "Not run" not in (tmp_path / "sizes.md").read_text()


def test_the_page_holds_every_table_and_figure_and_loads_nothing(words: list[str], command: Command, folder: Path):
    wanted = ("table1", "ratio", "few-shot", "information", "phrases")
    for name in wanted:  # done by the tests before, where these ran
        assert command("paper", name, *words, "-o", folder).code == 0
    page = (folder / "paper.html").read_text()
    done = [path.stem for path in folder.glob("*.json") if "results" in json.loads(path.read_text())]
    assert set(wanted) <= set(done)
    for name in experiments():
        assert f'href="#{name}"' in page, "the contents name every experiment"
        assert f'id="{name}"' in page
    assert page.count("<svg") == len([name for name in done if (folder / f"{name}.svg").is_file()]) >= len(wanted) - 1
    assert page.count('<table class="paper">') >= len(done)
    assert not re.search(r"(src|href)=[\"'](?!#)", page), "no link leads out"
    assert "default-src 'none'" in page


def test_names_from_outside_stay_text(tmp_path: Path):
    experiment = experiments()["sizes"]
    hostile = "<script>alert(1)</script> | *x*"
    write_record(tmp_path, experiment, [ArmRecord(hostile, "base", AboutArm(0))], hostile, [hostile])
    write_pages([experiment], tmp_path, hostile)
    assert "<script>alert" not in (tmp_path / "paper.html").read_text()
    rows = [line for line in (tmp_path / "sizes.md").read_text().splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, "the bar is no column"


def test_the_plan_counts_what_is_left(words: list[str], tmp_path: Path):
    concepts = tuple((name, "starter") for name in ("fairness", "privacy"))
    settings = RunSettings(
        words[0], concepts=concepts, protect=(("general", "starter"),), questions=concepts, template="raw", examples=16
    )
    work = Work(shared_settings(settings, 8), tmp_path, limit=8)
    known = experiments(8)

    def left(*names: str) -> dict[str, float]:
        return work_left(
            [known[name] for name in names], work, 50.0, Rates(scored=4.0, token=1.0, answer=64.0, verdict=8.0)
        )

    assert left("table1")["fine-tuning"] > left("mixing")["fine-tuning"] * 0.9 > 0 == left("ratio")["fine-tuning"]
    assert left("table1", "malicious")["fine-tuning"] > left("table1")["fine-tuning"]
    assert left("table1", "table1") == left("table1"), "an arm is done once"
    assert left("modules")["scoring"] == 3 * left("phrases")["scoring"] > 0
    assert left("information")["scoring"] > left("selector")["scoring"], "what is located is scored first"
    before = left("mixing")
    for kind, arm in dict(arms_of([known["mixing"]], work)).items():
        if arm.kind == "train":
            record = {"settings": {}, "data": [], "model": {}, "result": ".", "files": [], "losses": []}
            write_json(work.folder / "trained" / kind[1] / "baseline.json", record)
    assert left("mixing") == {**before, "fine-tuning": 0}
    for _, key in dict(arms_of([known["mixing"]], work)):
        write_json(work.folder / "arms" / f"{key}.json", {})
    assert not any(left("mixing").values())
    assert "minutes" not in planned([known["mixing"]], work)[0]
    assert "minutes" in planned([known["table1"]], work)[0]


def test_an_unknown_experiment(words: list[str], command: Command, tmp_path: Path):
    outcome = command("paper", "table9", *words, "-o", tmp_path)
    assert outcome.code == 2
    assert "table1" in outcome.err


def test_printed_numbers_stand_beside_the_paper_s_models_alone():
    known = experiments()
    assert printed_rows(known["table1"], "some/folder/Qwen2-7B-Instruct")["SPIN"] == (0.7497, 0.8447)
    assert printed_rows(known["table1"], "smollm2-135m") == {}
    assert printed_rows(known["ratio"], "Qwen2-7B-Instruct") == {}
    for name in ("table1", "table2", "malicious"):
        table = printed()[known[name].printed or ""]
        arms = {arm.name for arm in known[name].arms}
        for rows in table.models.values():
            assert set(rows) <= arms, "every printed row has its arm"
