"""The words that options take, each once.

In: nothing. Out: a Literal for every choice, the same words as tuples where code goes through them, and what each
`--effort` spends. Left out: which option takes which words (the groups beside this file).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Rule = Literal["coupled", "coupled-signed", "signed", "released"]
RuleOrAuto = Literal["auto", "coupled", "coupled-signed", "signed", "released"]
Selector = Literal["taylor", "wanda", "magnitude", "gradient", "sparsegpt", "random"]
Responses = Literal["aware", "unaware", "own"]
Granularity = Literal["matrix", "row", "layer", "model"]
Target = Literal["mlp", "attention", "all"]
Dtype = Literal["auto", "float32", "bfloat16"]
EffortName = Literal["quick", "standard", "thorough"]
Method = Literal["full", "lora", "dora", "reft"]
Sources = tuple[tuple[str, str], ...]  # (name, source)

CONCEPTS = ("fairness", "privacy")
SHIPPED = (*CONCEPTS, "truthfulness", "helpfulness")  # concepts with a starter set, a rubric and a closing phrase
MEASURES = ("coherence", "perplexity", "kl")  # axes that results.json has beside the judged ones
COVERED = {"beavertails": CONCEPTS, "salad": CONCEPTS, "alpaca-cleaned": ("general",)}  # roles of the paper's data
CONTROLS = ("random", "same-magnitude", "unprotected", "released")  # and NAME-alone for every concept
BY_MARGIN = ("coupled-signed", "signed")  # rules that need margins of the scores
RULES: tuple[str, ...] = get_args(Rule)
SEARCHED = "auto"  # instead of a rule: the search decides
SELECTORS: tuple[str, ...] = get_args(Selector)
STATISTICS = (*SELECTORS, "fisher", "margin")
OWN = "own"  # responses: the model's own answers
METHODS: tuple[str, ...] = get_args(Method)
STAGES = ("edit", "answers", "verdicts", "extras")  # of a run, after its scores


@dataclass(frozen=True)
class Effort:
    """What a run with the rule `auto` spends: examples of each set, held-back pairs of each kind to try recipes on,
    recipes tried, those whose answers are judged, search questions of each axis, and final questions of each axis
    (None: all that are left)."""

    examples: int
    pairs: int
    trials: int
    survivors: int
    search_questions: int
    final_questions: int | None


EFFORTS = {
    "quick": Effort(64, 16, 10, 3, 20, 60),
    "standard": Effort(128, 32, 32, 6, 80, None),
    "thorough": Effort(128, 32, 120, 12, 160, None),
}
