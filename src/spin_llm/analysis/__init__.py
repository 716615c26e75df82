"""Analyses beside the evaluation: how far two concepts' representations depend on each other (`dependence`,
`information`, `representations`, `layers`), and where coupled weights live (`location`)."""

from __future__ import annotations

from spin_llm.analysis.layers import information_report
from spin_llm.analysis.location import by_statistic, location_report, selection_grid
from spin_llm.results.paper import Measures

__all__ = ["Measures", "by_statistic", "information_report", "location_report", "selection_grid"]
