"""What an edit costs on benchmark tasks: lm-eval on the base and on the edited model, in memory, document by document.

In: views of the two models and names of lm-eval tasks. Out: the `capabilities` part of results.json, one entry a task,
paired by document (McNemar on metrics in 0/1, Wilcoxon and BCa on others, as in stats/paired.py), and
capabilities.jsonl, one row {"task", "document", "model", "metric", "value"} each. A task that is done is not run again
after a kill. The metric is the first of METRICS that the task has, from the first of its filters. Few-shot examples and
their order are lm-eval's defaults, equal for both models; no chat template is applied. Left out: controls, and
lm-eval's own averages over groups: a group is the mean over all its documents.

PAPER is the paper's Table 2 under lm-eval's names (0.4.13); its GPQA scores are multiples of 1/448, the size of the
main set. lm-eval's AG News needs another package, and it has no IMDB, so both are written here (tasks/). The paper does
not say its prompts and few-shot numbers.
"""

from __future__ import annotations

import copy
import difflib
import importlib.util
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from spin_llm.errors import SpinError
from spin_llm.evaluate.axes import compared
from spin_llm.evaluate.likelihood import View
from spin_llm.files import read_typed_lines, write_jsonl
from spin_llm.models import LoadedModel
from spin_llm.progress import SILENT, Console
from spin_llm.results.measured import BASE, EDITED, AxisResult
from spin_llm.results.rows import DocumentRow
from spin_llm.stats.paired import paired_means, paired_perplexity, paired_rates

PAPER = (
    *("hellaswag", "race", "mmlu", "gpqa_main_zeroshot", "openbookqa", "boolq"),
    *("spin_ag_news", "spin_imdb", "wikitext"),
)
METRICS = ("acc_norm", "acc", "exact_match", "em", "f1", "word_perplexity")
OWN_TASKS = Path(__file__).with_name("tasks")
BATCH = 8


def named_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """Each name once, in order; `paper` stands for PAPER, and a text may hold several names with commas between.

    >>> named_tasks(["boolq,race", "boolq"])
    ('boolq', 'race')
    """
    parts = [part.strip() for name in names for part in name.split(",") if part.strip()]
    return tuple(dict.fromkeys(task for part in parts for task in (PAPER if part == "paper" else (part,))))


def check_tasks(tasks: Sequence[str], folder: str | None = None) -> None:
    """Make sure that lm-eval is there, knows the tasks, and can read their data; SpinError otherwise.

    `folder` has more tasks, as YAML files. Data sets that are not in the cache are fetched.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise SpinError(
            "Capability tasks need the package lm-eval, which is not installed.",
            change="pip install 'spin-llm[capabilities]', or leave out --capabilities.",
        )
    if folder is not None and not Path(folder).is_dir():
        raise SpinError(f"--capability-tasks {folder} is not a folder.")
    with quietly():
        manager = task_manager(folder)
        known = set(manager.all_tasks)
        for task in tasks:
            if task not in known:
                near = difflib.get_close_matches(task, known, 3)
                raise SpinError(
                    f"lm-eval has no task {task!r}.",
                    change=(f"near: {', '.join(near)}; or " if near else "") + "give its YAML with --capability-tasks.",
                )
            try:
                manager.load([task])
            except (OSError, ValueError, ImportError) as error:
                raise SpinError(
                    f"The capability task {task} cannot be loaded: {error}",
                    cause="its data set is neither in the cache nor to be had, or it needs another package.",
                    change="fetch the data set while online, or leave out the task.",
                ) from error


@lru_cache(maxsize=1)
def task_manager(folder: str | None) -> Any:
    """lm-eval's index of its 14,000 tasks, ours and those of `folder`; making it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=[str(path) for path in (OWN_TASKS, folder) if path is not None])


def measure_capabilities(
    base: View,
    edited: View,
    tasks: Sequence[str],
    folder: Path,
    *,
    task_folder: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    console: Console = SILENT,
) -> dict[str, AxisResult]:
    """{task: result} of the edited model against the base; writes `folder`/capabilities.jsonl.

    `limit`: only the first so many documents of each task (of each part of a group).
    """
    rows: list[DocumentRow] = []
    for model, view in ((BASE, base), (EDITED, edited)):
        for task in tasks:
            done = folder / "progress" / f"capabilities-{model}-{task.replace('/', '-')}.jsonl"
            if not done.is_file():
                with view() as loaded:
                    write_jsonl(done, map(vars, run_task(loaded, task, model, task_folder, limit, console)))
            rows += read_typed_lines(done, DocumentRow, change="delete that file: what it holds is made again.")
    write_jsonl(folder / "capabilities.jsonl", map(vars, rows))
    return {task: compare(task, rows, seed=seed) for task in tasks}


def run_task(
    loaded: LoadedModel, task: str, model: str, folder: str | None, limit: int | None, console: Console
) -> list[DocumentRow]:
    """One row per document of one lm-eval task or group."""
    import lm_eval

    harnessed = harness_model(loaded, f"{task}, {model}", console)
    with quietly():
        judged = lm_eval.simple_evaluate(
            harnessed, tasks=[task], task_manager=task_manager(folder), limit=limit, bootstrap_iters=0
        )
    return [
        DocumentRow(
            task=task,
            document=f"{part}-{sample['doc_id']}",
            model=model,
            metric=metric,
            # a number, or for perplexities [log-likelihood in nats, words]
            value=list(map(float, value)) if isinstance(value, list | tuple) else float(value),
            better="lower" if judged["higher_is_better"][part].get(metric) is False else "higher",
        )
        for part, samples in judged["samples"].items()
        for metric in [chosen_metric(task, samples[0]["metrics"])]
        for sample in samples
        for value in [sample[metric]]
        if sample["filter"] == samples[0]["filter"]
    ]


def chosen_metric(task: str, known: Sequence[str]) -> str:
    if found := [metric for metric in METRICS if metric in known]:
        return found[0]
    raise SpinError(
        f"The capability task {task} has none of the metrics {', '.join(METRICS)}.",
        cause=f"it has {', '.join(known)}.",
        change="leave it out.",
    )


def compare(task: str, rows: Sequence[DocumentRow], *, seed: int) -> AxisResult:
    """The result of one task, paired by document."""
    mine = [row for row in rows if row.task == task]
    base, edited = ({row.document: row.value for row in mine if row.model == model} for model in (BASE, EDITED))
    columns = [np.array([values[document] for document in base]) for values in (base, edited)]
    if columns[0].ndim == 2:  # summed log-likelihoods, words
        paired = paired_perplexity(-columns[0][:, 0], -columns[1][:, 0], columns[0][:, 1], seed=seed)
    elif set(np.unique(columns)) <= {0.0, 1.0}:
        paired = paired_rates(*columns)
    else:
        paired = paired_means(*columns, seed=seed)
    return compared(mine[0].metric, paired, mine[0].better)


def harness_model(loaded: LoadedModel, title: str, console: Console) -> Any:
    """The loaded model as lm-eval wants it, reporting its requests to `console`; its weights are not copied."""
    from lm_eval.models.huggingface import HFLM

    terminal = sys.stderr

    def shown(name: str) -> Any:
        """The method of that name with its requests on a bar."""

        def method(self: Any, requests: Any, disable_tqdm: bool = False) -> Any:
            with redirect_stderr(terminal), console.bar(title, len(requests)) as advance:
                self.set_cache_hook(SimpleNamespace(add_partial=lambda *answered: advance(1)))
                return getattr(HFLM, name)(self, requests, disable_tqdm=True)

        return method

    class Shown(HFLM):
        loglikelihood = shown("loglikelihood")
        loglikelihood_rolling = shown("loglikelihood_rolling")
        generate_until = shown("generate_until")

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **options: Any) -> Any:
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, **options)

    with quietly():
        # of the tokenizer a copy: lm-eval gives it a padding token where it has none
        tokenizer = copy.deepcopy(loaded.tokenizer)
        return Shown(pretrained=loaded.model, tokenizer=tokenizer, backend="causal", batch_size=BATCH)


@contextmanager
def quietly() -> Iterator[None]:
    """Without lm-eval's prints, bars and warnings; its errors are exceptions."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
