"""One baseline in one resumable folder: pairs in, a fine-tuned model or adapter out.

In: `BaselineSettings` and a folder. Out: in the folder what the method saves (methods.py) and `baseline.json`: the
settings, the data (samples of one or more data sets in given proportions) with their hashes, the base model, the loss
of each step, and the path to give to `spin-llm eval`. A killed training continues with the same call and ends with the
same bytes (on a CPU, in float32). Left out: evaluation.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path

import msgspec

from spin_llm.baselines import methods
from spin_llm.data import Example, Pair, Rendering, encode_all, load_pairs, resolve_template, rows_sha256, sample
from spin_llm.data.examples import check_options, refuse_long_pairs, too_long
from spin_llm.data.rows import read_rows
from spin_llm.data.sources import ReadRows
from spin_llm.errors import SpinError
from spin_llm.files import read_typed, write_json
from spin_llm.models import Checkpoint, LoadedModel, load, resolve
from spin_llm.models.adapters import adapter_base
from spin_llm.models.disk.identity import Identity
from spin_llm.outputs import disk_error
from spin_llm.ownership import is_vacant, owned
from spin_llm.progress import SILENT, Console
from spin_llm.records import versions
from spin_llm.results.rows import BaselineData, BaselineModel, BaselineRecord
from spin_llm.settings.training import MOST_EXAMPLES, UNCOMPARED, BaselineSettings

RECORD = "baseline.json"
STATE = "state.safetensors"
PACKAGES = ("spin-llm", "torch", "transformers", "peft", "safetensors")


def train_baseline(
    settings: BaselineSettings,
    folder: str | Path,
    *,
    overwrite: bool = False,
    console: Console = SILENT,
    rows: ReadRows = read_rows,
) -> BaselineRecord:
    """Train and save; what baseline.json holds, whose `result` is the folder to evaluate. `rows` reads a data file.

    Raises SpinError on bad input, before anything of the user's is touched.
    """
    with owned(folder) as folder:
        record_file = folder / RECORD
        another = "choose another folder with --output."
        there = read_typed(record_file, BaselineRecord, change=another) if record_file.is_file() else None
        before = None if overwrite else there
        settings = with_date(settings, before)
        mixture = read_mixture(settings, console, rows)
        data = [
            BaselineData(name, source, settings.shares[name], len(mixture[name]), rows_sha256(mixture[name]))
            for name, source in settings.data
        ]
        check_folder(settings, folder, data, before, vacant=bool(there) or is_vacant(folder))
        if before and before.result:
            console.say(f"{folder} is complete")
            return before
        loaded = load_base(settings, console)
        trained = methods.prepare(loaded, settings)
        examples = encode_mixture(settings, loaded, [pair for pairs in mixture.values() for pair in pairs])
        record = describe(settings, loaded, data, examples)
        if before:
            refuse_changed(before.model, record.model, folder)
        else:
            delete_outputs(folder, there)
            write_json(record_file, asdict(record))
        shown = ", ".join(f"{row.examples} {row.name}" for row in data)
        console.say(f"{settings.method}: {record.trained_parameters:,} parameters on {shown} pairs")
        losses = methods.train(loaded, examples, settings, folder / STATE, console)

        def placing(names: list[str]) -> None:
            nonlocal record  # said before they are there: a kill in between leaves none that is not known
            record = replace(record, files=names)
            write_json(record_file, asdict(record))

        try:
            result = methods.save(trained, loaded, settings, folder, placing)
            if settings.method in ("lora", "dora") and settings.merge:
                del trained, loaded
                result = merge(settings, folder, placing, console)
        except OSError as error:
            raise disk_error(error, folder) or error from None
        record = replace(record, losses=losses, result="." if result == folder else result.name)
        write_json(record_file, asdict(record))
        (folder / STATE).unlink(missing_ok=True)
        return record


def load_base(settings: BaselineSettings, console: Console = SILENT) -> LoadedModel:
    """The model to fine-tune; float32 for full fine-tuning, whatever it computes in."""
    loaded = load(
        settings.model,
        dtype="float32" if settings.method == "full" else settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        check=partial(check_options, template=rendering(settings)),
        say=console.say,
    )
    if adapter_base(loaded.checkpoint.folder):
        raise SpinError(f"{settings.model} is an adapter.", change="give its base model, or a merged checkpoint.")
    return loaded


def merge(settings: BaselineSettings, folder: Path, placing: methods.Placing, console: Console = SILENT) -> Path:
    """Write the checkpoint that is the base with the saved adapter in it, computed in float32."""
    adapter = str(folder / methods.ADAPTER)
    adapted = load(adapter, dtype="float32", trust_remote_code=settings.trust_remote_code, say=console.say)
    methods.save_checkpoint(adapted.model, Checkpoint(resolve(settings.model)), folder, placing)
    return folder


def encode_mixture(settings: BaselineSettings, loaded: LoadedModel, pairs: Sequence[Pair]) -> list[Example]:
    """The pairs as scoring and evaluation encode them."""
    length = min(settings.max_length, loaded.context)
    longs = too_long(loaded.tokenizer, pairs, template=rendering(settings), room=length - 1)
    refuse_long_pairs(longs, max_length=settings.max_length, context=loaded.context)
    return encode_all(loaded.tokenizer, pairs, template=rendering(settings), max_length=length)


def read_mixture(
    settings: BaselineSettings, console: Console = SILENT, rows: ReadRows = read_rows
) -> dict[str, tuple[Pair, ...]]:
    """Sample every data set; `rows` reads a file.

    Raises SpinError: a source that cannot be read, fewer rows than asked for, or a share that is not one pair.
    """
    read = {
        name: load_pairs(
            source,
            concept=name,
            responses=settings.responses,
            data_dir=settings.data_dir,
            prompt_column=settings.prompt_column,
            response_column=settings.response_column,
            rows=rows,
        )
        for name, source in settings.data
    }
    for name, found in read.items():
        if found.left_out:
            console.say(f"left out of the pairs of {name}: {'; '.join(found.left_out)}")
    sizes = {name: len(found.pairs) for name, found in read.items()}
    counts = pair_counts(settings.examples or most_pairs(settings.shares, sizes), settings.shares)
    if empty := [name for name, count in counts.items() if not count]:
        raise SpinError(
            f"The share of {', '.join(empty)} is less than one training pair.",
            cause="a small --examples, or little data beside a small share.",
            change="give more --examples, another --mix, or more data.",
        )
    return {name: sample(found.pairs, counts[name], settings.seed, f"{name} data") for name, found in read.items()}


def pair_counts(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """`total` pairs divided by `shares` (which sum to 1), rounded by largest remainders, so that the counts sum up."""
    exact = {name: round(total * share, 9) for name, share in shares.items()}  # 0.29 * 100 is 28.999999999999996
    counts = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def most_pairs(shares: Mapping[str, float], sizes: Mapping[str, int]) -> int:
    """The largest total, at most MOST_EXAMPLES, that the data sets can give in these shares."""
    total = MOST_EXAMPLES
    while any(count > sizes[name] for name, count in pair_counts(total, shares).items()):
        total -= 1
    return total


def rendering(settings: BaselineSettings) -> Rendering:
    return Rendering(settings.template, settings.template_options, date=settings.date)


def with_date(settings: BaselineSettings, before: BaselineRecord | None) -> BaselineSettings:
    """The settings with the date that the chat template prints: as given, that of a training that goes on, or today."""
    if settings.date:
        return settings
    day = before.settings.get("date") if before else date.today().isoformat()
    return replace(settings, date=None if day is None else str(day))


def describe(
    settings: BaselineSettings, loaded: LoadedModel, data: list[BaselineData], examples: Sequence[Example]
) -> BaselineRecord:
    """baseline.json as it is when training begins."""
    model = BaselineModel(
        settings.model,
        loaded.checkpoint.fingerprint,
        asdict(loaded.checkpoint.identity),
        resolve_template(loaded.tokenizer, settings.template),
        str(loaded.dtype).removeprefix("torch."),
    )
    return BaselineRecord(
        settings=asdict(settings),
        data=data,
        model=model,
        versions=versions(PACKAGES),
        response_tokens=sum(example.response_tokens for example in examples),
        truncated_prompts=sum(example.truncated > 0 for example in examples),
        trained_parameters=sum(p.numel() for p in loaded.model.parameters() if p.requires_grad),
        losses=[],
        result=None,
        files=[],
    )


def check_folder(
    settings: BaselineSettings, folder: Path, data: list[BaselineData], before: BaselineRecord | None, *, vacant: bool
) -> None:
    """Make sure that `folder` is `vacant`, or that a training that goes on there is the same."""
    other = "choose another folder with --output"
    if not vacant:
        raise SpinError(f"The output {folder} exists and is not a baseline.", change=f"{other}.")
    if before is None:
        return
    now = msgspec.json.decode(msgspec.json.encode(asdict(settings)))  # as it was written: tuples are lists
    changed = [
        f"{name}: {before.settings.get(name)!r} there, {value!r} now"
        for name, value in now.items()
        if name not in UNCOMPARED and before.settings.get(name) != value
    ]
    if changed or before.data != data:
        raise SpinError(
            f"{folder} holds a baseline with other settings ({'; '.join(changed[:4]) or 'the data changed'}).",
            change=f"{other}, or --overwrite to start that one anew.",
        )


def refuse_changed(before: BaselineModel, now: BaselineModel, folder: Path) -> None:
    """SpinError when the base model of a training that goes on is another."""
    if before.parts:
        parts = Identity(**now.parts).changed(before.parts)
        changed = parts or [key for key in ("template", "dtype") if getattr(before, key) != getattr(now, key)]
    else:
        changed = ["its record is of version 0.1.0"] if before.fingerprint != now.fingerprint else []
    if changed:
        raise SpinError(
            f"The model changed since the training in {folder} began: {', '.join(changed)}.",
            change="restore it, or start anew with --overwrite.",
        )


def delete_outputs(folder: Path, record: BaselineRecord | None) -> None:
    """Delete what an earlier baseline wrote, and nothing else; baseline.json goes last."""
    if record and record.settings.get("method") in ("lora", "dora"):
        shutil.rmtree(folder / methods.ADAPTER, ignore_errors=True)
    for name in (*record.files, STATE, RECORD) if record else ():
        (folder / name).unlink(missing_ok=True)
