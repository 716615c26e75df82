"""The commands that make a patch of stored scores, put it on a checkpoint, and take it off.

In: a run folder or a patch, a checkpoint. Out: a patch, or a checkpoint. Left out: any computing.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from spin_llm.cli.options import Json, Model, Overwrite, from_settings, helps, writes
from spin_llm.cli.terminal import console_of, show
from spin_llm.errors import SpinError
from spin_llm.settings import SEARCHED, EditSettings, ScoreSettings
from spin_llm.settings.edit import parse_layers

if TYPE_CHECKING:
    from spin_llm.results.edited import Recipe

NewFolder = Annotated[Path | None, writes("The folder to write; it has no default.")]
PatchFile = Annotated[Path, Parameter("PATCH", help="A patch.safetensors, or a run folder with one.")]


def recipe_of(rule: str, ratio: float, *, target: str = ScoreSettings.target, layers: str = "", **told: Any) -> Recipe:
    """A recipe, as far as the command tells it."""
    from spin_llm.results.edited import Recipe

    chosen = parse_layers(layers) if layers else None
    return Recipe("coupled" if rule == SEARCHED else rule, ratio, target=target, layers=chosen, **told)


@from_settings("protect_ratio", "target", "layers", "at_least", "scale", make=partial(partial, recipe_of))
def select(
    folder: Annotated[Path, Parameter("RUN", help="A run folder with scores/.")],
    /,
    given: partial[Any],
    *,
    ratio: Annotated[float, Parameter(help="Fraction of each matrix in a top set.")],
    rule: Annotated[str, Parameter(help=helps(EditSettings)["rule"])] = "coupled",
    granularity: Annotated[
        str | None, Parameter(help=f"{helps(ScoreSettings)['granularity']} (default: the scores')")
    ] = None,
    model: Annotated[
        str | None, Parameter("--for", help="Make the patch for this model, fine-tuned from the scored one.")
    ] = None,
    output: Annotated[Path | None, writes("The patch file (default: RUN/patch.safetensors).")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Choose weights from stored scores: scores/ to patch.safetensors, without running the model."""
    from spin_llm.pipeline import select_from_folder

    path, recipe = output or folder / "patch.safetensors", given(rule, ratio, granularity=granularity or "")
    with console_of(as_json) as console:
        patch = select_from_folder(folder, path, recipe, model=model, overwrite=overwrite, console=console)
    summary = {"patch": str(path), "weights": patch.weights, "matrices": len(patch.edits)}
    show(summary, [f"{patch.weights:,} weights in {len(patch.edits)} matrices", path], as_json=as_json)


def apply(
    model: Model, patch: PatchFile, /, *, output: NewFolder = None, overwrite: Overwrite = False, as_json: Json = False
) -> None:
    """Write an edited copy of a checkpoint; only the touched bytes differ."""
    _rewrite("apply", model, patch, output, overwrite, as_json)


def revert(
    model: Model, patch: PatchFile, /, *, output: NewFolder = None, overwrite: Overwrite = False, as_json: Json = False
) -> None:
    """Write the base back from an edited checkpoint, byte for byte."""
    _rewrite("revert", model, patch, output, overwrite, as_json)


def _rewrite(verb: str, model: str, patch_file: Path, output: Path | None, overwrite: bool, as_json: bool) -> None:
    from spin_llm.models import Checkpoint, resolve
    from spin_llm.models.disk.copying import model_files
    from spin_llm.patch import file as patches

    if output is None:
        raise SpinError(f"{verb} needs an output folder.", change="give -o FOLDER.")
    patch = patches.load_patch(patch_file)
    values = {"apply": "new", "revert": "old"}[verb]
    with console_of(quiet=False) as console:
        checkpoint = Checkpoint(resolve(model, trust_remote_code=True, say=console.say))
        path = patches.apply_checkpoint(checkpoint, patch, output, values=values, overwrite=overwrite, say=console.say)
    left_out = model_files(checkpoint.folder).left_out
    lines = [f"{patch.weights:,} weights in {len(patch.edits)} tensors, read back as transformers loads them"]
    if left_out:
        lines += [f"left out, as no part of the model that is loaded: {', '.join(left_out)}"]
    about = {"model": str(path), "weights": patch.weights, **({"left_out": list(left_out)} if left_out else {})}
    show(about, [*lines, path], as_json=as_json)


def verify(model: Model, patch: PatchFile, /, *, as_json: Json = False) -> None:
    """Say whether a checkpoint is the patch's base, or the edited model; exit code 2 when it is another model."""
    from spin_llm.models import Checkpoint, resolve
    from spin_llm.patch.file import load_patch, patch_state

    state = patch_state(Checkpoint(resolve(model)), load_patch(patch))
    show({"state": state}, [state], as_json=as_json)
