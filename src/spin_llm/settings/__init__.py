"""What each stage is told: one frozen group of settings a stage, and `RunSettings`, which is all of them.

The text under a field is the option's help; the words that an option takes are a Literal (words.py). Standard library
only, so that `--help` is quick.
"""

from spin_llm.settings.checks import flag_of
from spin_llm.settings.data import DataSettings, MachineSettings, ModelSettings, ScoreSettings
from spin_llm.settings.edit import AnswerSettings, EditSettings, ExtraSettings, JudgeSettings, SearchSettings
from spin_llm.settings.run import GROUPS, RunSettings, scope_of
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
    STAGES,
    STATISTICS,
    Effort,
    Sources,
)

__all__ = ["BY_MARGIN", "CONCEPTS", "EFFORTS", "GROUPS", "OWN", "RULES", "SEARCHED", "SELECTORS", "SHIPPED"]
__all__ += ["STAGES", "STATISTICS", "AnswerSettings", "DataSettings", "EditSettings", "Effort"]
__all__ += ["ExtraSettings", "JudgeSettings", "MachineSettings", "ModelSettings", "RunSettings", "ScoreSettings"]
__all__ += ["SearchSettings", "Sources", "default_axes", "default_sources", "flag_of", "parse_options", "scope_of"]
__all__ += ["sources"]
