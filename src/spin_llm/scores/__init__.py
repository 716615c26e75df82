"""Scores: how much each weight matters for a concept, in one pass over its examples, kept as the top of each matrix."""

from spin_llm.scores.engine import importance, mean_loss, response_logits, response_losses
from spin_llm.scores.scoring import score_concept
from spin_llm.scores.storage import KEEP, MatrixScores, Scores, count, load_scores, save_scores, top_entries

__all__ = [
    "KEEP",
    "MatrixScores",
    "Scores",
    "count",
    "importance",
    "load_scores",
    "mean_loss",
    "response_logits",
    "response_losses",
    "save_scores",
    "score_concept",
    "top_entries",
]
