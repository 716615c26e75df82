"""What each stage is told: one frozen group of settings a stage, and `RunSettings`, which is all of them.

The text under a field is the option's help; the words that an option takes are a Literal (words.py). Standard library
only, so that `--help` is quick.
"""

from spin_llm.settings.checks import default_sources, flag_of, sources
from spin_llm.settings.data import DataSettings, MachineSettings, ModelSettings, ScoreSettings
from spin_llm.settings.edit import AnswerSettings, EditSettings, ExtraSettings, JudgeSettings, SearchSettings
from spin_llm.settings.run import GROUPS, RunSettings, scope_of
from spin_llm.settings.words import BY_MARGIN, CONCEPTS, EFFORTS, OWN, SEARCHED, SELECTORS, SHIPPED, STAGES, STATISTICS

__all__ = ["BY_MARGIN", "CONCEPTS", "EFFORTS", "GROUPS", "OWN", "SEARCHED", "SELECTORS", "SHIPPED", "STAGES"]
__all__ += ["STATISTICS", "AnswerSettings", "DataSettings", "EditSettings", "ExtraSettings", "JudgeSettings"]
__all__ += ["MachineSettings", "ModelSettings", "RunSettings", "ScoreSettings", "SearchSettings", "default_sources"]
__all__ += ["flag_of", "scope_of", "sources"]
