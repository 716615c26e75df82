"""Scores: how much each weight matters for a concept, in one pass over its examples, kept as the top of each matrix."""

from __future__ import annotations

from spin_llm.scores.concept import Passes, Scoring, score_concept
from spin_llm.scores.distributed import Ranks, ranks
from spin_llm.scores.importance import SELECTORS, STATISTICS, accumulators
from spin_llm.scores.passes import importance, make_batches
from spin_llm.scores.per_example import PerExample, gather, reweighted
from spin_llm.scores.plan import Plan, make_plan, parse_bytes
from spin_llm.scores.sets import score
from spin_llm.scores.storage import (
    CANDIDATES,
    MatrixScores,
    Scores,
    ScoreSet,
    ScoresInfo,
    Sides,
    candidate_entries,
    count,
    load_scores,
    save_scores,
    top_entries,
)

__all__ = ["SELECTORS", "STATISTICS", "Passes", "Ranks", "Scoring", "accumulators", "ranks", "score_concept"]
__all__ += ["PerExample", "Plan", "gather", "importance", "make_batches", "make_plan", "parse_bytes", "reweighted"]
__all__ += ["CANDIDATES", "MatrixScores", "ScoreSet", "Scores", "ScoresInfo", "Sides", "score"]
__all__ += ["candidate_entries", "count", "load_scores", "save_scores", "top_entries"]
