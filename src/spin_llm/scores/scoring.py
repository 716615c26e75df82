"""One concept, scored: from encoded examples to the kept scores.

In: a loaded model, examples, a target. Out: `Scores`. Left out: reading data (data/) and choosing weights
(selection.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spin_llm.data import Example
from spin_llm.models import LoadedModel, editable_matrices
from spin_llm.scores.engine import Progress, importance
from spin_llm.scores.storage import KEEP, MatrixScores, Scores, count, top_entries


def score_concept(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    target: str = "mlp",
    keep: float = KEEP,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda examples_done: None,
) -> Scores:
    """Score every targeted matrix and keep the top `keep` (a fraction) of each; `about` is added to the metadata."""
    matrices = editable_matrices(loaded.model, target)
    dense = importance(loaded, examples, matrices, progress=progress)
    kept = {}
    for matrix in matrices:
        scores = dense.pop(matrix.name)
        indices, values = top_entries(scores, max(1, count(keep, scores.numel())))
        rows, columns = scores.shape
        kept[matrix.name] = MatrixScores(indices, values, (rows, columns), matrix.layer, matrix.kind)
    metadata = {
        "selector": "taylor: mean over examples of |W * dL/dW|",
        "loss": "mean negative log-likelihood, nats per response token",
        "reduction": "mean over examples of the per-example absolute value, float32",
        "examples": len(examples),
        "tokens": sum(len(example.input_ids) for example in examples),
        "response_tokens": sum(example.response_tokens for example in examples),
        "truncated_tokens": sum(example.truncated for example in examples),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "model": loaded.checkpoint.fingerprint,
        "target": target,
        "keep": keep,
        **(about or {}),
    }
    return Scores(kept, metadata)
