"""Scores: how much each weight matters for a concept, in one pass over its examples, kept as the top of each matrix."""

from spin_llm.scores.distributed import Ranks, ranks
from spin_llm.scores.engine import importance, make_batches
from spin_llm.scores.losses import mean_loss, response_logits, response_losses
from spin_llm.scores.plan import Plan, make_plan, parse_bytes
from spin_llm.scores.resampling import (
    PerExample,
    gather,
    gathered_bytes,
    load_per_example,
    reweighted,
    save_per_example,
)
from spin_llm.scores.scoring import score_concept, statistics_of
from spin_llm.scores.statistics import SELECTORS, STATISTICS, accumulators
from spin_llm.scores.storage import CANDIDATES, KEEP, MatrixScores, Scores, count, load_scores, save_scores, top_entries

__all__ = [
    "CANDIDATES",
    "KEEP",
    "SELECTORS",
    "STATISTICS",
    "MatrixScores",
    "PerExample",
    "Plan",
    "Ranks",
    "Scores",
    "accumulators",
    "count",
    "gather",
    "gathered_bytes",
    "importance",
    "load_per_example",
    "load_scores",
    "make_batches",
    "make_plan",
    "mean_loss",
    "parse_bytes",
    "ranks",
    "response_logits",
    "response_losses",
    "reweighted",
    "save_per_example",
    "save_scores",
    "score_concept",
    "statistics_of",
    "top_entries",
]
