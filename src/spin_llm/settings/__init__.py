"""What each stage is told: one frozen group of settings a stage, and `RunSettings`, which is all of them.

The text under a field is the option's help; the words that an option takes are a Literal (words.py). Standard library
only, so that `--help` is quick.
"""

from spin_llm.settings.checks import flag_of
from spin_llm.settings.data import DataSettings, ModelSettings
from spin_llm.settings.edit import EditSettings, SearchSettings
from spin_llm.settings.evaluation import AnswerSettings, ExtraSettings, JudgeSettings
from spin_llm.settings.run import GROUPS, RunSettings, scope_of
from spin_llm.settings.scores import MachineSettings, ScoreSettings
from spin_llm.settings.sources import default_axes, default_sources, parse_options, sources
from spin_llm.settings.words import (
    BY_MARGIN,
    CONCEPTS,
    EFFORTS,
    OWN,
    RULES,
    SEARCHED,
    SELECTORS,
    SHIPPED,
    SIGNED,
    STAGES,
    STATISTICS,
    Effort,
    Sources,
)

__all__ = [
    "BY_MARGIN",
    "CONCEPTS",
    "EFFORTS",
    "GROUPS",
    "OWN",
    "RULES",
    "SEARCHED",
    "SELECTORS",
    "SHIPPED",
    "SIGNED",
    "STAGES",
    "STATISTICS",
    "AnswerSettings",
    "DataSettings",
    "EditSettings",
    "Effort",
    "ExtraSettings",
    "JudgeSettings",
    "MachineSettings",
    "ModelSettings",
    "RunSettings",
    "ScoreSettings",
    "SearchSettings",
    "Sources",
    "default_axes",
    "default_sources",
    "flag_of",
    "parse_options",
    "scope_of",
    "sources",
]
