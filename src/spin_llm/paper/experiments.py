"""What each experiment of the paper compares: models (arms) and the axes that are read off them.

In: how small it is to be (`limit`), the model, concepts. Out: `Experiment`s by name: plain values, no work. An arm is
the base, an edit (options are those of a run) or a fine-tuned model (options are those of a baseline). Left out: making
the arms (arms.py) and the tables (tables.py).
"""

from __future__ import annotations

from typing import Unpack

from spin_llm.results.paper import Arm, ArmOptions, Experiment

PAPER_RATIO = 5e-7
PRESET = {"ratio": PAPER_RATIO, "template": "released", "examples": 128, "target": "mlp"}

METHODS = {"FFT": "full", "LoRA": "lora", "DoRA": "dora", "ReFT": "reft"}
SELECTORS = ("taylor", "wanda", "sparsegpt", "magnitude", "random")
RATIOS = (1e-7, 5e-7, 1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3)
MIXES = (1.0, 0.8, 0.5, 0.2)  # shares of privacy pairs
FEW_SHOT = (100, 250, 500, 1000)
SPIN_SHOTS = (32, 64, 128)
BASE = Arm("origin")


def spin(name: str = "SPIN", **options: Unpack[ArmOptions]) -> Arm:
    """The paper's rule at the largest ratio that the limit on perplexity allows, or at a given one."""
    return Arm(name, "edit", {"rule": "coupled", **options})


def tuned(name: str, **options: Unpack[ArmOptions]) -> Arm:
    return Arm(name, "train", {"method": METHODS[name.split(",")[0].split(" ")[0]], **options})


def experiments(limit: int | None = None, ratio: float | None = None) -> dict[str, Experiment]:
    """All experiments; `limit` makes every one small (at most so many examples and training pairs), `ratio` is SPIN's
    (None: chosen by perplexity)."""
    return {made.name: made for made in (*against_fine_tuning(limit, ratio), *of_spin(ratio))}


def against_fine_tuning(limit: int | None, ratio: float | None) -> tuple[Experiment, ...]:
    """SPIN beside models that are fine-tuned, and what each costs."""

    def few(number: int) -> int:
        return min(number, limit) if limit else number

    size = few(1000)
    shots = sorted({few(shot) for shot in FEW_SHOT})
    own = Arm("auto (ours)", "edit", {"rule": "auto"}, below=True)
    methods = tuple(tuned(name, examples=size) for name in METHODS)
    return (
        Experiment(
            "table1", "Table 1: fairness and privacy awareness by method", (BASE, *methods, spin(ratio=ratio), own),
            printed="table1", shows="SPIN raises both, fine-tuning trades one for the other",
        ),
        Experiment(
            "table2", "Table 2: general capabilities", (BASE, spin(ratio=ratio)), kind="tasks",
            printed="table2", shows="capabilities are kept",
        ),
        Experiment(
            "malicious", "Figure 5: malicious (unaware) data alone",
            (BASE, *(tuned(name, responses="unaware", examples=size) for name in METHODS),
             spin(ratio=ratio, responses="unaware")),
            printed="figure5_malicious_data_only", shows="fine-tuning collapses, SPIN does not",
        ),
        Experiment(
            "few-shot", "Few examples",
            (BASE, *(tuned(f"{name}, {shot}", examples=shot) for name in ("LoRA", "ReFT") for shot in shots),
             *(spin(f"SPIN, {shot}", examples=shot, ratio=ratio) for shot in sorted({few(n) for n in SPIN_SHOTS}))),
            shows="SPIN is stable from about 100 examples",
        ),
        Experiment(
            "mixing", "Privacy and fairness pairs mixed for LoRA",
            (BASE, *(tuned(f"LoRA, {share:.0%} privacy", mix=share, examples=size) for share in MIXES)),
            shows="the trade-off persists",
        ),
    )  # fmt: skip


def of_spin(ratio: float | None) -> tuple[Experiment, ...]:
    """SPIN's choices, one after the other, and what it does inside the model."""
    return (
        Experiment(
            "ratio", "Figure: the ratio", (BASE, *(spin(f"{r:g}", ratio=r) for r in RATIOS)),
            shows="too large a ratio breaks the model",
        ),
        Experiment(
            "modules", "Table: which matrices",
            (BASE, *(spin(target, target=target, ratio=ratio) for target in ("mlp", "attention", "all"))),
            shows="coupled weights sit in the MLP",
        ),
        Experiment(
            "selector", "Table: importance scores",
            (BASE, *(spin(selector, selector=selector, ratio=ratio) for selector in SELECTORS)),
            shows="|W * gradient| is the best score",
        ),
        Experiment(
            "information", "Figure: dependence of the representations, by layer", (BASE, spin(ratio=ratio)),
            kind="information", shows="mutual information falls",
        ),
        Experiment(
            "phrases", "Figure 7: cautionary phrases", (BASE, spin(ratio=ratio)), axes=("phrases",),
            printed="figure7_phrases", shows="more cautionary language",
        ),
        Experiment(
            "concepts", "Another pair of concepts: truthfulness and helpfulness",
            (BASE, spin(concepts=(("truthfulness", "starter"), ("helpfulness", "starter")), ratio=ratio)),
            kind="margins", shows="it generalises",
        ),
        Experiment("sizes", "Model sizes", (BASE, spin(ratio=ratio)), shows="it holds across scale"),
    )  # fmt: skip
