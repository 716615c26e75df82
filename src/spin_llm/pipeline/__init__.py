"""The pipeline: a run folder made stage by stage, each stage resumable.

`data` is what a run reads, `loading` the model and judge that it works with, `folder` its run.json, `resuming` what of
it can stay, `checking` what is looked at before any work; `scoring`, `selecting`, `evaluating` and `resampling` are the
stages, `comparing` is `eval`, and `running` does the whole job (`run`, `sweep`). Each imports only from those before.
"""

from spin_llm.pipeline.checking import check_capabilities, check_settings
from spin_llm.pipeline.compare_stage import evaluate_models
from spin_llm.pipeline.context import encode, fitting, judge_of, load_model
from spin_llm.pipeline.evaluate_stage import capability_results, control_patches, evaluation_of, patched_view
from spin_llm.pipeline.folder import PACKAGES, replay_command, version_of
from spin_llm.pipeline.inputs import RunData, read_data, split_questions, with_rule
from spin_llm.pipeline.own_stage import with_own_answers
from spin_llm.pipeline.resuming import usual_recipe
from spin_llm.pipeline.run import run, sweep
from spin_llm.pipeline.score_stage import ALONE, score, score_file, score_missing, stored_scores
from spin_llm.pipeline.select_stage import bench_of, patch_of, search_stage, select_from_folder
from spin_llm.pipeline.stability_stage import stability
from spin_llm.records import settings_from_json

__all__ = [
    "ALONE",
    "PACKAGES",
    "RunData",
    "bench_of",
    "capability_results",
    "check_capabilities",
    "check_settings",
    "control_patches",
    "encode",
    "evaluate_models",
    "evaluation_of",
    "fitting",
    "judge_of",
    "load_model",
    "patch_of",
    "patched_view",
    "read_data",
    "replay_command",
    "run",
    "score",
    "score_file",
    "score_missing",
    "search_stage",
    "select_from_folder",
    "settings_from_json",
    "split_questions",
    "stability",
    "stored_scores",
    "sweep",
    "usual_recipe",
    "version_of",
    "with_own_answers",
    "with_rule",
]
