"""Scores: how much each weight matters for a concept, in one pass over its examples, kept as the top of each matrix."""

from __future__ import annotations

from spin_llm.scores.concept import Passes, Scoring, score_concept
from spin_llm.scores.distributed import Ranks, ranks
from spin_llm.scores.importance import SELECTORS, STATISTICS, accumulators
from spin_llm.scores.margins import candidate_entries
from spin_llm.scores.passes import importance, make_batches
from spin_llm.scores.per_example import (
    PerExample,
    gather,
    gathered_bytes,
    load_per_example,
    reweighted,
    save_per_example,
)
from spin_llm.scores.plan import Plan, make_plan, parse_bytes
from spin_llm.scores.sets import score
from spin_llm.scores.storage import (
    CANDIDATES,
    KEEP,
    HeldBack,
    MatrixScores,
    Scores,
    ScoreSet,
    ScoresInfo,
    Sides,
    count,
    load_scores,
    save_scores,
    top_entries,
)

__all__ = [
    "CANDIDATES",
    "KEEP",
    "SELECTORS",
    "STATISTICS",
    "HeldBack",
    "MatrixScores",
    "Passes",
    "PerExample",
    "Plan",
    "Ranks",
    "ScoreSet",
    "Scores",
    "ScoresInfo",
    "Scoring",
    "Sides",
    "accumulators",
    "candidate_entries",
    "count",
    "gather",
    "gathered_bytes",
    "importance",
    "load_per_example",
    "load_scores",
    "make_batches",
    "make_plan",
    "parse_bytes",
    "ranks",
    "reweighted",
    "save_per_example",
    "save_scores",
    "score",
    "score_concept",
    "top_entries",
]
