"""What an edit did: answers, verdicts and likelihoods of two models on the same questions, compared."""

from __future__ import annotations

from spin_llm.evaluate.answers import BASE, EDITED, Evaluation
from spin_llm.evaluate.comparison import evaluate

__all__ = ["BASE", "EDITED", "Evaluation", "evaluate"]
