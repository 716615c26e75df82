"""One baseline in one resumable folder: pairs in, a fine-tuned model or adapter out.

In: `BaselineSettings` and a folder. Out: in the folder what the method saves (methods.py) and `baseline.json`: the
settings, the data with their hashes, the base model, the loss of each step, and the path to give to `spin-llm eval`.
A killed training continues with the same call and ends with the same bytes (on a CPU, in float32). Left out:
evaluation.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from spin_llm.baselines import methods
from spin_llm.baselines.loop import train
from spin_llm.baselines.mixture import Mixture, mixture_record, read_mixture
from spin_llm.data import Example, Rendering, encode_all, resolve_template
from spin_llm.data.examples import refuse_long_pairs, too_long
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
from spin_llm.settings.training import UNCOMPARED, BaselineSettings

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
        settings = with_date(settings, folder, overwrite=overwrite)
        mixture = read_mixture(settings, console, rows)
        return train_owned(settings, folder, mixture, overwrite=overwrite, console=console)


def train_owned(
    settings: BaselineSettings, folder: Path, mixture: Mixture, *, overwrite: bool, console: Console
) -> BaselineRecord:
    """`train_baseline` on these pairs, in a folder of this process alone."""
    data = mixture_record(settings, mixture)
    check_folder(settings, folder, data, overwrite=overwrite)
    if not overwrite and (folder / RECORD).is_file() and (found := read_record(folder / RECORD)).result:
        console.say(f"{folder} is complete")
        return found
    loaded = load_base(settings, console)
    trained = methods.prepare(loaded, settings)
    examples = encode_mixture(settings, loaded, [pair for pairs in mixture.values() for pair in pairs])
    record = describe(settings, loaded, data, examples)
    start(folder, record, overwrite=overwrite)
    shown = ", ".join(f"{row.examples} {row.name}" for row in data)
    console.say(f"{settings.method}: {record.trained_parameters:,} parameters on {shown} pairs")
    losses = train(loaded, examples, settings, folder / STATE, console)

    def placing(names: list[str]) -> None:
        nonlocal record  # said before they are there: a kill in between leaves none that is not known
        record = replace(record, files=names)
        write_json(folder / RECORD, asdict(record))

    try:
        result = methods.save(trained, loaded, settings, folder, placing)
        if settings.method in ("lora", "dora") and settings.merge:
            del trained, loaded
            result = merge(settings, folder, placing, console)
    except OSError as error:
        raise disk_error(error, folder) or error from None
    record = replace(record, losses=losses, result="." if result == folder else result.name)
    write_json(folder / RECORD, asdict(record))
    (folder / STATE).unlink(missing_ok=True)
    return record


def read_record(path: Path) -> BaselineRecord:
    """What a baseline.json holds."""
    return read_typed(path, BaselineRecord, change="choose another folder with --output.")


def load_base(settings: BaselineSettings, console: Console = SILENT) -> LoadedModel:
    """The model to fine-tune; float32 for full fine-tuning, whatever it computes in."""
    loaded = load(
        settings.model,
        dtype="float32" if settings.method == "full" else settings.dtype,
        trust_remote_code=settings.trust_remote_code,
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


def encode_mixture(settings: BaselineSettings, loaded: LoadedModel, pairs: Sequence[Any]) -> list[Example]:
    """The pairs as scoring and evaluation encode them."""
    length = min(settings.max_length, loaded.context)
    rendering = Rendering(settings.template, settings.template_options, date=settings.date)
    longs = too_long(loaded.tokenizer, pairs, template=rendering, room=length - 1)
    refuse_long_pairs(longs, max_length=settings.max_length, context=loaded.context)
    return encode_all(loaded.tokenizer, pairs, template=rendering, max_length=length)


def with_date(settings: BaselineSettings, folder: Path, *, overwrite: bool) -> BaselineSettings:
    """The settings with the date that the chat template prints: the one given, that of a training that goes on, or
    today."""
    if settings.date:
        return settings
    if (folder / RECORD).is_file() and not overwrite:
        before = read_typed(folder / RECORD, BaselineRecord).settings.get("date")
        return replace(settings, date=None if before is None else str(before))
    return replace(settings, date=date.today().isoformat())


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
        settings=settings.as_json(),
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
    settings: BaselineSettings, folder: Path, data: list[BaselineData], *, overwrite: bool = False
) -> None:
    """Make sure that `folder` is new, empty, or the same baseline (which is then resumed); with `overwrite`, any
    baseline."""
    if not (folder / RECORD).is_file():
        if not is_vacant(folder):
            raise SpinError(
                f"The output {folder} exists and is not a baseline.", change="choose another folder with --output."
            )
        return
    before = read_record(folder / RECORD)
    now = msgspec.json.decode(msgspec.json.encode(settings.as_json()))  # as it was written: tuples are lists
    changed = [
        f"{name}: {before.settings.get(name)!r} there, {value!r} now"
        for name, value in now.items()
        if name not in UNCOMPARED and before.settings.get(name) != value
    ]
    if before.data != data and not changed:
        changed = ["the data changed"]
    if changed and not overwrite:
        raise SpinError(
            f"{folder} holds a baseline with other settings ({'; '.join(changed[:4])}).",
            change="choose another folder with --output, or --overwrite to start that one anew.",
        )


def start(folder: Path, record: BaselineRecord, *, overwrite: bool) -> None:
    """Write baseline.json; with `overwrite` delete what an earlier training wrote. SpinError when a resumed training's
    base model is another."""
    path = folder / RECORD
    if path.is_file() and not overwrite:
        if changed := changed_model(read_record(path).model, record.model):
            raise SpinError(
                f"The model changed since the training in {folder} began: {', '.join(changed)}.",
                change="restore it, or start anew with --overwrite.",
            )
        return
    if path.is_file():
        delete_outputs(folder)
    write_json(path, asdict(record))


def changed_model(before: BaselineModel, now: BaselineModel) -> list[str]:
    """What differs between two records of a model, in words."""
    if not before.parts:
        return ["its record is of version 0.1.0"] if before.fingerprint != now.fingerprint else []
    parts = Identity(**now.parts).changed(before.parts)
    return parts or [key for key in ("template", "dtype") if getattr(before, key) != getattr(now, key)]


def delete_outputs(folder: Path) -> None:
    """Delete what a baseline wrote, and nothing else; baseline.json goes last."""
    record = read_record(folder / RECORD)
    if record.settings.get("method") in ("lora", "dora"):
        shutil.rmtree(folder / methods.ADAPTER, ignore_errors=True)
    for name in (*record.files, STATE, RECORD):
        (folder / name).unlink(missing_ok=True)
