"""How well is coherence measured? The judge's `coherent` heads beside simple heuristics, on labelled answers.

    python benchmarks/coherence.py [--shared DATA]

TEST: the `test` part of the shipped labelled answers (starter questions, never fitted on); with --shared also SALAD:
the development labels. Each score is oriented so that more should mean more coherent; an AUC below 0.5 means that it
does not. `all heuristics` is a logistic regression of them, fitted on the `fit` part. Writes benchmarks/coherence.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from spin_llm.data import Pair, encode_all
from spin_llm.evaluate.wording import repetition, words
from spin_llm.files import write_json
from spin_llm.judges.local import SHIPPED, load_coherence_judge
from spin_llm.judges.quality.fit import labels_and_prompts
from spin_llm.judges.quality.labelled import Labelled, read_labelled
from spin_llm.models import load
from spin_llm.models.losses import length_sorted_batches, response_losses
from spin_llm.settings import CONCEPTS
from spin_llm.stats.classification import auc_interval

HERE = Path(__file__).parent
SHARED = HERE.resolve().parents[1] / "shared" / "data"
STARTER = SHIPPED.parents[2] / "data" / "starter"
Score = Callable[[list[Labelled]], np.ndarray]


def starter_words() -> set[str]:
    """Every word of the starter set's prompts and written answers: 'dictionary-like' without a dictionary."""
    found: set[str] = set()
    for path in STARTER.glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            for value in json.loads(line).values():
                found.update(words(value) if isinstance(value, str) else ())
    return found


def known_share(rows: list[Labelled]) -> np.ndarray:
    known = starter_words()
    return np.array([np.mean([word in known for word in words(row.answer)] or [0]) for row in rows])


def on_topic(rows: list[Labelled]) -> np.ndarray:
    """Share of the prompt's words of five letters or more that the answer takes up."""
    shares = []
    for row in rows:
        asked = {word for word in words(row.prompt) if len(word) >= 5}
        shares.append(len(asked & set(words(row.answer))) / max(len(asked), 1))
    return np.array(shares)


def likelihood(rows: list[Labelled]) -> np.ndarray:
    """Mean log-likelihood of an answer's tokens under the unedited embedded model, given its prompt."""
    loaded = load("smollm2-135m")
    pairs = [Pair(row.prompt, row.answer.strip()) for row in rows]
    examples = encode_all(loaded.tokenizer, pairs, template="chat", max_length=512)
    place = {id(example): number for number, example in enumerate(examples)}
    found = np.zeros(len(rows))
    for batch in length_sorted_batches(examples, 2048):
        losses = response_losses(loaded, batch).tolist()
        for example, loss in zip(batch, losses, strict=True):
            found[place[id(example)]] = -loss
    return found


def judged(rows: list[Labelled]) -> np.ndarray:
    judge = load_coherence_judge()
    found = np.zeros(len(rows))
    for concept in CONCEPTS:
        places = [place for place, row in enumerate(rows) if row.concept == concept]
        if places:
            verdicts = judge(concept, [rows[p].prompt for p in places], [rows[p].answer for p in places])
            found[places] = [verdict.probability for verdict in verdicts]
    return found


SIMPLE: dict[str, Score] = {
    "length in words": lambda rows: np.array([float(len(words(row.answer))) for row in rows]),
    "no repeated 4-grams": lambda rows: np.array([-repetition(row.answer) for row in rows]),
    "distinct words / words": lambda rows: np.array(
        [len(set(words(row.answer))) / max(len(words(row.answer)), 1) for row in rows]
    ),
    "known words": known_share,
    "takes up the prompt's words": on_topic,
    "likelihood under the unedited model": likelihood,
}


def together(fit: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    scale = StandardScaler().fit(fit)
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(scale.transform(fit), y)
    return np.asarray(model.decision_function(scale.transform(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=SHARED if SHARED.is_dir() else None)
    options = parser.parse_args()

    shipped = read_labelled(SHIPPED.with_name("labelled_answers.jsonl"))
    shipped = [r for r in shipped if "coherent" in r.labels and r.concept in CONCEPTS and r.answer.strip()]
    sets = {split: [row for row in shipped if row.split == split] for split in ("fit", "test")}
    if options.shared:
        dev = read_labelled(options.shared / "labelled_answers_dev.jsonl")
        sets["SALAD"] = [row for row in dev if "coherent" in row.labels and row.answer.strip()]
    columns = {part: {name: score(rows) for name, score in SIMPLE.items()} for part, rows in sets.items()}
    table: dict[str, Any] = {}
    for part in (name for name in sets if name != "fit"):
        scores = {"the judge's coherent heads": judged(sets[part]), **columns[part]}
        for concept in CONCEPTS:
            here, there = (np.array([row.concept == concept for row in sets[p]]) for p in (part, "fit"))
            y, groups = (column[here] for column in labels_and_prompts(sets[part], "coherent"))
            fit_y = labels_and_prompts(sets["fit"], "coherent")[0][there]
            blocks = [np.column_stack(list(columns[p].values()))[w] for p, w in (("fit", there), (part, here))]
            by_name = {name: score[here] for name, score in scores.items()}
            by_name["all heuristics, fitted"] = together(blocks[0], fit_y, blocks[1])
            for name, score in by_name.items():
                auc, interval = auc_interval(score, y, groups)
                found = {"auc": auc, "ci95": interval, "n": len(y), "coherent": int(y.sum())}
                table.setdefault(name, {})[f"{part}, {concept}"] = found
    for name, results in table.items():
        cells = [f"{v['auc']:.2f} [{v['ci95'][0]:.2f}, {v['ci95'][1]:.2f}]" for v in results.values()]
        print("| " + " | ".join([name, *cells]) + " |")
    print({key: (v["n"], v["coherent"]) for key, v in next(iter(table.values())).items()})
    write_json(HERE / "coherence.json", table)


if __name__ == "__main__":
    main()
