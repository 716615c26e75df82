"""What a run is told: the groups together, what one of them decides in another, and which stage each binds.

In: values from the command line or Python. Out: a frozen, checked `RunSettings`, which is each of its groups, and
which `run.json` records flat; a resumed run must match it from the stage on that a setting binds. Left out: where the
run is written, and how it looks on the terminal.
"""

from __future__ import annotations

from dataclasses import dataclass

from spin_llm.settings.checks import invalid, no_choice, put, questions_of, require
from spin_llm.settings.data import DataSettings, MachineSettings, ModelSettings, ScoreSettings
from spin_llm.settings.edit import AnswerSettings, EditSettings, ExtraSettings, JudgeSettings, SearchSettings
from spin_llm.settings.words import BY_MARGIN, CONTROLS, EFFORTS, MEASURES, RULES, SEARCHED, SHIPPED

THINKING_TOKENS = 1024
# the first stage of a run that depends on a group: `all` for the scores themselves, one of STAGES for what comes after
# them, `volatile` for how, not what, is computed
GROUPS = {
    **{ModelSettings: "all", DataSettings: "all", ScoreSettings: "all"},
    **{EditSettings: "edit", SearchSettings: "edit", AnswerSettings: "answers", JudgeSettings: "verdicts"},
    **{ExtraSettings: "extras", MachineSettings: "volatile"},
}


@dataclass(frozen=True)
class RunSettings(
    MachineSettings,
    ExtraSettings,
    JudgeSettings,
    AnswerSettings,
    SearchSettings,
    EditSettings,
    ScoreSettings,
    DataSettings,
    ModelSettings,
):
    """Everything that decides a run's patch and results, apart from the machine.

    Sources may be given as the command takes them (texts), as (name, source) pairs, or as a dict; None is the default
    of the command, () nothing. Raises SpinError for what is of another type, out of range, or against another setting.
    """

    examples: int = None  # type: ignore[assignment] # of the effort

    def __post_init__(self) -> None:
        if self.examples is None:
            put(self, examples=(EFFORTS[self.effort] if self.effort in (*EFFORTS,) else EFFORTS["standard"]).examples)
        DataSettings.__post_init__(self)
        put(self, questions=questions_of(self.questions, self.concepts, self.data_dir))
        for group in GROUPS:
            group.__post_init__(self)  # type: ignore[attr-defined]
        if self.thinking_tokens is not None:
            put(self, thinking=True)
        elif self.thinking:
            put(self, thinking_tokens=THINKING_TOKENS)
        self._check_across()

    def _check_across(self) -> None:
        if self.at_least is not None and self.concepts and self.at_least > len(self.concepts):
            raise invalid("at_least", self.at_least, f"at most {len(self.concepts)}, the number of concepts")
        require(self, f"at most --keep, {self.keep:g}", lambda ratio: ratio <= self.keep, "ratio", "protect_ratio")
        if "margin" in self.wanted_statistics and self.responses == "unaware":
            raise invalid("responses", "unaware", "aware: the margin compares aware with unaware responses")
        controls = tuple(dict.fromkeys((*self.all_controls, "all", *RULES)))
        if wrong := [control for control in self.controls if control not in controls]:
            raise no_choice("controls", wrong[0], controls)
        known = tuple(dict.fromkeys((*SHIPPED, *dict(self.concepts), "over_refusal")))
        fitted = self.judge.endswith(".safetensors")  # may judge concepts of the user's own, also without --concept
        for axis, _ in self.questions:
            if axis in MEASURES or not (fitted or axis in known):
                raise no_choice("questions", axis, known, "the shipped concepts, and those of --concept")

    @property
    def dividing_judge(self) -> str:
        """The name of the judge that divides own answers."""
        return self.own_judge or self.judge

    @property
    def wanted_statistics(self) -> tuple[str, ...]:
        """The selector, then what was asked for, then what the rule or a control needs."""
        rules = {self.rule, *self.controls}
        if self.responses == "unaware":
            rules -= {SEARCHED}  # there is no margin to search by: the paper's rule takes its place
        needed = ("margin",) if rules & {SEARCHED, *BY_MARGIN} else ()
        return tuple(dict.fromkeys((self.selector, *self.statistics, *needed)))

    @property
    def all_controls(self) -> tuple[str, ...]:
        """The controls that `all` stands for: every one but `coupled-signed`."""
        return (*CONTROLS[:2], *(f"{name}-alone" for name, _ in self.concepts), *CONTROLS[2:])

    @property
    def wanted_controls(self) -> tuple[str, ...]:
        """The controls asked for, each once."""
        asked = ((self.all_controls if name == "all" else (name,)) for name in self.controls)
        return tuple(dict.fromkeys(name for names in asked for name in names))

    @property
    def searches_answers(self) -> bool:
        """Whether questions are set aside to search with."""
        return self.searches and self.budget.survivors > 0 and self.budget.search_questions > 0

    @property
    def searches(self) -> bool:
        """Whether an edit is searched; without concepts (`eval`) there is none to find."""
        return self.rule == SEARCHED and bool(self.concepts)


def scope_of(name: str) -> str:
    """`all`, one of STAGES, or `volatile`: the first stage of a run that depends on a setting."""
    return next((stage for group, stage in GROUPS.items() if name in group.__annotations__), "all")
