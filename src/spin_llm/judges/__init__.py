"""Who decides: judges of answers, what they say, and which one a text names."""

from __future__ import annotations

from spin_llm.judges.named import load_judge
from spin_llm.judges.verdict import Judge, Verdict

__all__ = ["Judge", "Verdict", "load_judge"]
