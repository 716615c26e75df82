"""The pipeline: a run folder made stage by stage, each stage resumable.

`inputs` is what a run reads, `context` what it works with (`Run`), `folder` its run.json, `resuming` what of it can
stay, `checking` what is looked at before any work; `score_stage`, `select_stage`, `evaluate_stage` and
`stability_stage` are the stages, `compare_stage` is `eval`, and `run` does the whole job (`run`, `sweep`). Each imports
only from those before.
"""

from spin_llm.pipeline.compare_stage import evaluate_models
from spin_llm.pipeline.evaluate_stage import capability_results, control_patches, patched_view
from spin_llm.pipeline.folder import check_capabilities, check_settings, replay_command
from spin_llm.pipeline.inputs import RunData, read_data
from spin_llm.pipeline.resuming import usual_recipe
from spin_llm.pipeline.run import run, sweep
from spin_llm.pipeline.score_stage import score, score_missing
from spin_llm.pipeline.select_stage import bench_of, find_recipe, patch_of, search_stage, select_from_folder
from spin_llm.pipeline.stability_stage import stability
from spin_llm.records import settings_from_json

__all__ = [
    "RunData",
    "bench_of",
    "capability_results",
    "check_capabilities",
    "check_settings",
    "control_patches",
    "evaluate_models",
    "find_recipe",
    "patch_of",
    "patched_view",
    "read_data",
    "replay_command",
    "run",
    "score",
    "score_missing",
    "search_stage",
    "select_from_folder",
    "settings_from_json",
    "stability",
    "sweep",
    "usual_recipe",
]
