"""The report stage: a run folder's results as one page that can be read, checked and cited.

In: a run folder with `run.json`, `results.json`, `generations.jsonl`, `verdicts.jsonl`.
Out: `report.html` (self-contained), `report.md`, `figures/*.png` and `*.svg` beside them, and the table and
sentences that the terminal prints too; of several runs, one page that compares them. Every sentence follows a rule and
is never stronger than the interval.
Left out: measuring anything; this stage only words and draws what the evaluate stage wrote.
"""

from __future__ import annotations

from spin_llm.report.compare import compare_runs
from spin_llm.report.page import write_report

__all__ = ["compare_runs", "write_report"]
