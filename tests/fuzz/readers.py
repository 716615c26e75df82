"""The readers that are fuzzed: for each a valid file, how it is damaged, and what a user does with it.

In: a folder to work in. Out: `Reader`s. A use either succeeds or raises SpinError; anything else is a fault. Uses are
the package's own functions behind the commands, in this process: `select` for scores and run.json, `report` without its
pictures (which every 100th mutant that is accepted gets, too), the loaders of data, patches and judges.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec
import mutants
import tiny
from full_run import make_full_run
from tiny import score_concept

from spin_llm import files
from spin_llm.baselines import train as baseline
from spin_llm.data import load_pairs, load_questions
from spin_llm.judges.human import read_sheet, write_sheet
from spin_llm.judges.local import SHIPPED, load_local
from spin_llm.judges.named import read_quality
from spin_llm.judges.quality.labelled import read_labelled
from spin_llm.models import Checkpoint, editable_matrices
from spin_llm.models.adapters import adapter_base
from spin_llm.models.loading import load
from spin_llm.patch.file import load_patch, make_patch, save_patch
from spin_llm.pipeline.context import Run
from spin_llm.pipeline.folder import model_record
from spin_llm.pipeline.select_stage import search_stage, select_from_folder
from spin_llm.report import page
from spin_llm.report.render import render_markdown, render_page
from spin_llm.results.edited import Recipe
from spin_llm.results.rows import Answer, OwnAnswer, VerdictRow, hashes_of, read_for_sheet, read_rows
from spin_llm.scores import load_scores, save_scores
from spin_llm.settings import RunSettings
from spin_llm.settings import training as baseline_settings

RATIO = 0.05


@dataclass(frozen=True)
class Reader:
    """`file` is damaged by `mutate`, and `use` reads it."""

    name: str
    file: Path
    mutate: mutants.Mutator
    use: Callable[[], object]


def readers(folder: Path) -> dict[str, Reader]:
    """All readers by name; valid files for them are made below `folder`."""
    model = tiny.save("llama", folder / "model", chat=True)
    scored = scored_run(folder / "scored", model)
    made = [
        *patch_readers(folder, model),
        *run_readers(folder, scored),
        *report_readers(folder),
        *data_readers(folder),
        *checkpoint_readers(folder, model),
        *other_readers(folder, model),
    ]
    return {reader.name: reader for reader in made}


def scored_run(folder: Path, model: Path) -> Path:
    """A run folder with scores of two concepts and of a protected set."""
    loaded = load(str(model), dtype="float32")
    settings = RunSettings(
        str(model),
        **{"concepts": (("fairness", "a.csv"), ("privacy", "b.csv")), "protect": (("general", "c.csv"),)},
        **{"questions": (("privacy", "d.csv"),), "rule": "coupled", "ratio": RATIO, "keep": 0.2},
    )
    for name in ("fairness", "privacy", "general"):
        scores = score_concept(loaded, tiny.examples(name == "general")[:4], keep=0.2)
        save_scores(folder / "scores" / f"{name}.safetensors", scores)
    record = {
        **{"command": f"spin-llm score {model}", "settings": asdict(settings), "versions": {"python": "3.11.7"}},
        **{
            "machine": {},
            "model": msgspec.to_builtins(model_record(settings, loaded)),
            "started": "2025-11-02T10:00:00Z",
        },
        "data": [{"role": "concept", "name": "fairness", "source": "a.csv", "sha256": "ab" * 32, "examples": 4}],
    }
    files.write_json(folder / "run.json", record)
    return folder


def patch_readers(folder: Path, model: Path) -> list[Reader]:
    checkpoint, path = Checkpoint(model), folder / "patch.safetensors"
    loaded = load(str(model), dtype="float32")
    chosen = tiny.selection(editable_matrices(loaded.model, "mlp"))
    save_patch(path, make_patch(checkpoint, chosen))

    def use() -> None:
        patch = load_patch(path)
        assert patch.weights == sum(edit.indices.numel() for edit in patch.edits.values())
        with patch.applied(loaded.model):
            pass

    return [Reader("patch", path, mutants.of_safetensors, use)]


def run_readers(folder: Path, scored: Path) -> list[Reader]:
    """Of a scored run: `select` reads scores and run.json, `sweep` what a search left."""
    scores = scored / "scores" / "privacy.safetensors"
    searched = folder / "searched" / "search.json"
    record = json.loads((make_full_run(folder / "full") / "results.json").read_text())["search"]
    files.write_json(searched, record)
    journal = folder / "searched" / "journal.jsonl"
    files.write_jsonl(journal, [{**trial, "parameters": {"rule": "signed"}} for trial in record["trials"]])

    def select() -> None:
        select_from_folder(
            scored, folder / "selected.safetensors", Recipe("coupled", RATIO, protect_ratio=0.01), overwrite=True
        )

    def search() -> None:
        search_stage(Run(RunSettings("m"), searched.parent), {}, searched.parent)

    def trials() -> None:
        from spin_llm.results.searched import JournalRow

        for row in files.read_progress(journal, JournalRow):
            assert msgspec.convert(row, JournalRow).trial.number >= 0

    return [
        Reader("scores", scores, mutants.of_safetensors, select),
        Reader("scores, alone", scores, mutants.of_safetensors, lambda: load_scores(scores)),
        Reader("run.json", scored / "run.json", mutants.of_json, select),
        Reader("search.json", searched, mutants.of_json, search),
        Reader("journal", journal, mutants.of_rows, trials),
    ]


def report_readers(folder: Path) -> list[Reader]:
    """Of a finished run: `report`; half of the time its hashes are those of the damaged rows."""
    sizes = dict.fromkeys(("fairness", "privacy", "over_refusal"), 3)
    run = make_full_run(folder / "report", sizes=sizes, controls=("random",))
    hashed = make_full_run(folder / "hashed", sizes=sizes, controls=())
    known = files.read_json(hashed / "results.json")
    files.write_json(hashed / "results.json", {**known, "files": hashes_of(hashed, *page.INPUTS[2:])})
    seen = [0]

    def report() -> None:
        read = page.read_run(run)
        context = {**page.sections(read, page.read_pairs(run, read.results)), "drawn": []}
        render_markdown("run.md.j2", context).encode()
        render_page("run.html.j2", context, script="script.js", svg={}).encode()
        seen[0] += 1
        if seen[0] % 100 == 0:
            page.write_report(run)

    def judged_again() -> None:
        rows = read_rows(hashed / "generations.jsonl", Answer)
        write_sheet(folder / "sheet-again.csv", rows)

    return [
        Reader("results.json", run / "results.json", mutants.of_json, report),
        Reader("run.json, report", run / "run.json", mutants.of_json, report),
        Reader("generations", run / "generations.jsonl", mutants.of_rows, report),
        Reader("generations, hashed", hashed / "generations.jsonl", mutants.of_rows, judged_again),
        Reader("verdicts", run / "verdicts.jsonl", mutants.of_rows, report),
        Reader(
            "verdicts, alone",
            run / "verdicts.jsonl",
            mutants.of_rows,
            lambda: read_rows(run / "verdicts.jsonl", VerdictRow),
        ),
    ]


def data_readers(folder: Path) -> list[Reader]:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": f"Where is {i}?", "response": f"I, too, would rather not say {i}."} for i in range(6)]
    chats = [
        {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": f"{i}"}]}
        for i in range(4)
    ]
    data = folder / "data"
    data.mkdir()
    for suffix, mark in (("csv", ","), ("tsv", "\t")):
        lines = ["prompt" + mark + "response", *(f'"{row["prompt"]}"{mark}"{row["response"]}"' for row in rows)]
        (data / f"pairs.{suffix}").write_text("\n".join(lines) + "\n")
    files.write_jsonl(data / "pairs.jsonl", rows)
    files.write_jsonl(data / "chats.jsonl", chats)
    files.write_json(data / "pairs.json", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data / "pairs.parquet")
    kinds = {"csv": mutants.of_text, "tsv": mutants.of_text, "jsonl": mutants.of_rows, "json": mutants.of_json}

    def use(path: Path) -> Callable[[], None]:
        def read() -> None:
            load_pairs(str(path), concept="privacy")
            load_questions(str(path), concept="privacy")

        return read

    paths = [data / f"pairs.{suffix}" for suffix in (*kinds, "parquet")]
    made = [Reader(path.suffix[1:], path, kinds.get(path.suffix[1:], mutants.of_bytes), use(path)) for path in paths]
    return [*made, Reader("conversations", data / "chats.jsonl", mutants.of_rows, use(data / "chats.jsonl"))]


def checkpoint_readers(folder: Path, model: Path) -> list[Reader]:
    """A checkpoint's header, its index, its configuration; an adapter's configuration; a GGUF's header."""
    sharded = tiny.save("llama", folder / "sharded", max_shard_size="20KB")
    adapter = folder / "adapter"
    files.write_json(adapter / "adapter_config.json", {"base_model_name_or_path": str(model), "peft_type": "LORA"})
    loose = folder / "loose"
    loose.mkdir()
    for file in model.iterdir():
        (loose / file.name).write_bytes(file.read_bytes())

    def opened(path: Path) -> Callable[[], object]:
        return lambda: Checkpoint(path).fingerprint

    made = [
        Reader("checkpoint", loose / "model.safetensors", mutants.of_safetensors, opened(loose)),
        Reader("index", sharded / "model.safetensors.index.json", mutants.of_json, opened(sharded)),
        Reader("adapter_config", adapter / "adapter_config.json", mutants.of_json, lambda: adapter_base(adapter)),
    ]
    try:
        from spin_llm.models.disk.gguf import read_gguf_header, refuse_other_kinds
    except ImportError:
        return made
    path = folder / "tiny.gguf"
    write_gguf(path)
    return [*made, Reader("gguf", path, mutants.of_bytes, lambda: refuse_other_kinds(read_gguf_header(path), path))]


def write_gguf(path: Path) -> None:
    import gguf
    import numpy

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_token_list([f"t{i}" for i in range(20)])
    writer.add_token_types([1] * 20)
    writer.add_chat_template("{{ messages }}")
    for name, shape in (("token_embd.weight", (20, 8)), ("blk.0.ffn_up.weight", (16, 8)), ("output_norm.weight", (8,))):
        writer.add_tensor(name, numpy.ones(shape, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def other_readers(folder: Path, model: Path) -> list[Reader]:
    """Judges, what was measured of them, sheets, labelled answers, a baseline's record."""
    judge, quality, own = folder / "judge.safetensors", folder / "quality.json", folder / "own" / "answers.jsonl"
    judge.write_bytes(SHIPPED.read_bytes())
    full = files.read_json(folder / "full" / "results.json")
    files.write_json(quality, {"judges": {"local": full["judge"]["quality"]}, "agreement": {}})
    answers = [{"concept": "privacy", "prompt": f"Where is {i}?", "answer": "No.", "aware": True} for i in range(5)]
    files.write_jsonl(own, answers)
    sheet = folder / "sheet.csv"
    write_sheet(sheet, [OwnAnswer(**row) for row in answers])
    labelled = folder / "labelled.jsonl"
    files.write_jsonl(labelled, [{**row, "labels": {"one": {"aware": 1, "safe": 0}}} for row in answers])
    pairs = folder / "data" / "pairs.csv"
    chosen = replace(baseline_settings.make("lora", str(model), data=(("privacy", str(pairs)),)), examples=4)
    trained = folder / "trained" / baseline.RECORD
    record = {"settings": asdict(chosen), "data": [], "model": {"name": str(model)}, "versions": {}, "losses": [1.5]}
    files.write_json(trained, {**record, "result": ".", "files": ["adapter.json"], "trained_parameters": 10})

    def judges() -> None:
        found = load_local(str(judge))
        for axis in found.axes:
            found.head(axis)
        assert found.quality

    def goes_on() -> None:
        before = files.read_typed(trained, baseline.BaselineRecord, change="choose another folder.")
        baseline.check_folder(chosen, trained.parent, [], before, vacant=True)

    return [
        Reader("judge", judge, mutants.of_safetensors, judges),
        Reader("judge quality", quality, mutants.of_json, lambda: read_quality(quality, "local")),
        Reader("own answers", own, mutants.of_rows, lambda: write_sheet(folder / "o.csv", read_for_sheet(own))),
        Reader("sheet", sheet, mutants.of_text, lambda: read_sheet(sheet)),
        Reader("labelled answers", labelled, mutants.of_rows, lambda: read_labelled(labelled)),
        Reader("baseline.json", trained, mutants.of_json, goes_on),
    ]


def draw_for(name: str, number: int) -> random.Random:
    """What decides mutant `number` of a reader."""
    return random.Random(f"{name} {number} {os.environ.get('FUZZ_SEED', 0)}")
