"""The artefacts of a run folder, checked by type when they are read back: their types, and their readers."""

from spin_llm.stored.paper import ArmRecord, ExperimentRecord
from spin_llm.stored.reading import (
    GENERATIONS,
    VERDICTS,
    AnswerDone,
    BaselineRecord,
    DocumentRow,
    JudgeAbout,
    JudgeFile,
    OwnAnswer,
    VerdictDone,
    hashes_of,
    read_answers,
    read_for_sheet,
    read_results,
    read_to_judge,
    read_verdicts,
)
from spin_llm.stored.results import JournalRow, SearchRecord, StabilityRecord

__all__ = [
    "GENERATIONS",
    "VERDICTS",
    "AnswerDone",
    "ArmRecord",
    "BaselineRecord",
    "DocumentRow",
    "ExperimentRecord",
    "JournalRow",
    "JudgeAbout",
    "JudgeFile",
    "OwnAnswer",
    "SearchRecord",
    "StabilityRecord",
    "VerdictDone",
    "hashes_of",
    "read_answers",
    "read_for_sheet",
    "read_results",
    "read_to_judge",
    "read_verdicts",
]
