"""Evaluation: answers, a judge, perplexity and divergence, paired statistics, and the choice of the ratio."""

from spin_llm.evaluate.evaluation import BASE, EDITED, Evaluation, evaluate
from spin_llm.evaluate.judge import Judge, Verdict
from spin_llm.evaluate.judging import load_judge
from spin_llm.evaluate.ratio import MAX_PERPLEXITY_INCREASE, choose_ratio

__all__ = [
    "BASE",
    "EDITED",
    "MAX_PERPLEXITY_INCREASE",
    "Evaluation",
    "Judge",
    "Verdict",
    "choose_ratio",
    "evaluate",
    "load_judge",
]
