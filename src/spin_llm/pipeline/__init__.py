"""The pipeline: a run folder made stage by stage, each stage resumable.

`inputs` is what a run reads, `folder` what it says of itself and what is looked at before any work, `resuming` what of
its folder can stay, `context` what it works with (`Run`); `score_stage`, `select_stage` (with stability) and
`evaluate_stage` are the stages, `compare_stage` is `eval`, and `run` does the whole job (`run`, `sweep`). Each imports
only from those before.
"""

from spin_llm.pipeline.compare_stage import evaluate_models
from spin_llm.pipeline.evaluate_stage import capability_results
from spin_llm.pipeline.folder import check_capabilities, check_settings, replay_command
from spin_llm.pipeline.resuming import usual_recipe
from spin_llm.pipeline.run import run, sweep
from spin_llm.pipeline.score_stage import score, score_missing
from spin_llm.pipeline.select_stage import bench_of, find_recipe, patch_of, select_from_folder, stability

__all__ = ["bench_of", "capability_results", "check_capabilities", "check_settings", "evaluate_models"]
__all__ += ["find_recipe", "patch_of", "replay_command", "run", "score", "score_missing", "select_from_folder"]
__all__ += ["stability", "sweep", "usual_recipe"]
