"""Which judge `--judge` names, and whom it may not judge.

In: a text such as `local`, `mine.safetensors`, `wildguard`, `md-judge-v0.1:FOLDER`, `Qwen/Qwen3Guard-Gen-0.6B`,
`llama-guard-3:MODEL@http://localhost:8000/v1`, `rubric:MODEL`, `human:sheet.csv`. Out: a judge. Left out: the judges
themselves (local.py, guards.py, rubric.py, human.py); API keys, which come from the environment alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from spin_llm.errors import SpinError
from spin_llm.files import read_typed
from spin_llm.generation.completion import Completer, LocalCompleter, local_completer
from spin_llm.generation.server import served, server_completer
from spin_llm.judges.guards import GUARDS, Guard, GuardJudge, recognise
from spin_llm.judges.human import read_sheet
from spin_llm.judges.local import load_local
from spin_llm.judges.rubric import RubricJudge
from spin_llm.judges.verdict import Judge, Qualities
from spin_llm.models import Checkpoint
from spin_llm.results.rows import JudgeFile

WAYS = (
    f"local, FILE.safetensors, a guard ({', '.join(GUARDS)}), GUARD:MODEL, GUARD:MODEL@URL, the hub id of a guard, "
    "rubric:MODEL, rubric:MODEL@URL or human:FILE.csv"
)


@dataclass(frozen=True)
class JudgeName:
    """What a `--judge` text says: `kind` local (a file too), guard, rubric or human; `model` a path or hub id."""

    kind: str
    model: str
    url: str | None = None
    guard: Guard | None = None


def parse_judge(text: str) -> JudgeName:
    """Read a `--judge` text.

    Raises SpinError when it names no judge, and for a URL with a user, a password or a query in it.

    >>> parse_judge("rubric:smollm2-135m@http://localhost:8000/v1").url
    'http://localhost:8000/v1'
    """
    if text == "local" or text.endswith(".safetensors"):
        return JudgeName("local", text)
    before, url = served(text) or (text, None)
    kind, colon, model = before.partition(":")
    if colon and kind == "human" and model and not url:
        return JudgeName("human", model)
    if colon and kind == "rubric" and model:
        return JudgeName("rubric", model, url)
    if kind in GUARDS and (model or not colon):
        return JudgeName("guard", model or GUARDS[kind].card, url, GUARDS[kind])
    if not colon and (guard := recognise(before)):
        return JudgeName("guard", before, url, guard)
    raise SpinError(f"There is no judge {text!r}.", change=f"give {WAYS}.")


def load_judge(
    text: str = "local",
    *,
    label: str | None = None,
    quality: str | None = None,
    trust_remote_code: bool = False,
    date: str | None = None,
) -> Judge:
    """The judge that a `--judge` text names; a model of its own is loaded now, a server is asked for its models.

    `label` (aware, safe, coherent) is for judges that have several: local ones and rubrics. `quality`: a file that
    `judge check -o` wrote for this text on answers like those to be judged. `date`: what a chat template prints.
    """
    named = parse_judge(text)
    measured = read_quality(Path(quality), text) if quality else {}
    if named.kind == "local":
        return replace(load_local(named.model, label=label), given=measured)
    if named.kind == "human":
        return replace(read_sheet(Path(named.model)), quality=measured)
    completer: Completer
    if named.url is None:
        completer = local_completer(named.model, trust_remote_code=trust_remote_code, date=date)
    else:
        completer = server_completer(named.url, named.model)
    if named.kind == "rubric":
        return RubricJudge(completer, label or "aware", measured)
    assert named.guard is not None
    return GuardJudge(named.guard, completer, measured)


def read_quality(path: Path, text: str) -> Qualities:
    """{axis: measurements} of the judge `text` from a file of `judge check -o`, one a family and question source.

    Raises SpinError when the file is not one, or measures other judges.
    """
    judges = read_typed(path, JudgeFile).judges
    if not judges.get(text):
        raise SpinError(
            f"{path} holds no quality of the judge {text}.",
            cause=f"it was measured for {', '.join(judges) or 'no judge'}.",
            change=f"run `spin-llm judge check DATA --judge {text} -o FILE.json`.",
        )
    return {
        axis: [replace(one, source=one.source or path.name, given=True) for one in measured.groups or [measured]]
        for axis, measured in judges[text].items()
    }


def refuse_model_under_edit(judge: str, models: Iterable[str]) -> None:
    """Raise SpinError when a `--judge` text names one of the models under evaluation, as far as names tell."""
    named = parse_judge(judge)
    if named.kind in ("guard", "rubric") and any(same_name(named.model, model) for model in models):
        raise own_judge(named.model)


def refuse_fingerprint(judge: Judge, models: Iterable[Checkpoint]) -> None:
    """SpinError when a judge's model, in this process, has the weights of an evaluated model or a light edit of it."""
    completer = getattr(judge, "completer", None)
    if isinstance(completer, LocalCompleter) and any(
        completer.loaded.checkpoint.sampled_fingerprint == model.sampled_fingerprint for model in models
    ):
        raise own_judge(completer.name)


def own_judge(model: str) -> SpinError:
    return SpinError(
        f"{model} is under evaluation and cannot be its own judge.",
        cause="an edit would change the judge together with what is judged.",
        change="give another --judge.",
    )


def same_name(one: str, other: str) -> bool:
    """Whether two names mean one model: one path, or one name after the last slash, in any letter case."""
    last = [name.rstrip("/").rpartition("/")[2].casefold() for name in (one, other)]
    return last[0] == last[1] or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())
