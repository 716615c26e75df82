"""The local judge: (axis, prompt, answer) -> a verdict with a probability, offline, with its own measured quality.

In: prompts and answers. Out: verdicts. The frozen, unedited feature model (the embedded SmolLM2) reads the prompt, the
first 64 tokens of the answer and a short closing phrase once (reader.py); of what it reads, x,

    probability = sigmoid(w . x + b),    verdict = [probability >= threshold]

with one (w, b, threshold) per head, a head being an axis and a label. Left out: fitting heads (quality/fit.py).
Measured quality and limits: docs/judge.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from spin_llm.errors import SpinError
from spin_llm.files import check_seal, decoded
from spin_llm.judges.reader import FeatureReader, feature_reader
from spin_llm.judges.verdict import Qualities, Texts, Verdict, has_content, head_label, unseen
from spin_llm.progress import Advance
from spin_llm.results.judged import JudgeQuality
from spin_llm.results.rows import JudgeAbout

Floats = NDArray[np.float32]

FORMAT = "spin-llm judge 2"
FORMATS = (FORMAT, "spin-llm judge 1")  # the first one says of its quality neither family nor questions
SHIPPED = Path(__file__).with_name("shipped") / "local.safetensors"


@dataclass(frozen=True)
class Head:
    """One linear head over the features: probability = sigmoid(weight . x + bias)."""

    weight: Floats
    bias: float
    threshold: float
    measured: Sequence[JudgeQuality] = ()

    def logits(self, features: Floats) -> NDArray[np.float64]:
        """(n, d) features -> (n,) log-odds, summed in float64."""
        return features.astype(np.float64) @ self.weight.astype(np.float64) + self.bias

    def probabilities(self, features: Floats) -> NDArray[np.float64]:
        return np.asarray(1 / (1 + np.exp(-np.clip(self.logits(features), -60, 60))))


@dataclass
class LocalJudge:
    """The judge of a judge file. The feature model is loaded when the first answer is judged; it is fast, and shares
    its reading of a text with the judge of coherence, so that no verdict need be kept (`fingerprint`)."""

    name: str
    label: str
    heads: Mapping[tuple[str, str], Head]
    about: JudgeAbout
    given: Qualities = field(default_factory=dict)
    fingerprint: str = ""

    def __call__(self, axis: str, prompts: Texts, answers: Texts, progress: Advance = unseen) -> list[Verdict]:
        head = self.head(axis)
        spoken = [index for index, answer in enumerate(answers) if has_content(answer)]
        progress(len(answers) - len(spoken))
        verdicts = [Verdict(None, None)] * len(answers)
        if spoken:
            features = self.reader(axis, [prompts[i] for i in spoken], [answers[i] for i in spoken], progress)
            for index, probability in zip(spoken, head.probabilities(features).tolist(), strict=True):
                verdicts[index] = Verdict(probability, int(probability >= head.threshold))
        return verdicts

    def head(self, axis: str) -> Head:
        label = head_label(axis, self.label)
        if (axis, label) not in self.heads:
            known = ", ".join(f"{label} on {axis}" for axis, label in sorted(self.heads))
            raise SpinError(f"The judge {self.name} cannot judge {label} on {axis}.", change=f"it judges {known}.")
        return self.heads[axis, label]

    @property
    def axes(self) -> list[str]:
        return [axis for axis, label in self.heads if label == head_label(axis, self.label)]

    @property
    def quality(self) -> Qualities:
        """{axis: measurements} of the heads in use (docs/judge.md), on answers that they were not fitted on, and those
        that were `given`."""
        return {
            axis: [*self.given.get(axis, ()), *head.measured]
            for (axis, label), head in self.heads.items()
            if label == head_label(axis, self.label)
        }

    @cached_property
    def reader(self) -> FeatureReader:
        about = self.about
        reader = feature_reader(about.feature_model, tuple(about.layers))
        if (reader.fingerprint, reader.weights) != (about.fingerprint, about.weights or reader.weights):
            raise SpinError(
                f"The judge {self.name} was fitted on the states of another model than {about.feature_model!r}"
                f" is here (fingerprint {about.fingerprint[:12]}..., found {reader.fingerprint[:12]}...).",
                cause="another version of that model, or a damaged cache.",
                change="empty the cache folder of spin-llm, or fit the judge again with `spin-llm judge fit`.",
            )
        if any(head.weight.size != reader.width for head in self.heads.values()):
            raise SpinError(f"The heads of the judge {self.name} are not {reader.width} numbers long.")
        return reader


def load_coherence_judge() -> LocalJudge:
    """The shipped judge for its label `coherent`; it shares its feature model with the judge of the others."""
    return load_local(label="coherent")


def load_local(name: str = "local", *, label: str | None = None) -> LocalJudge:
    """`local` is the shipped judge; anything else the path of a file made by `fit_judge`. `label` None: its default."""
    path = SHIPPED if name == "local" else Path(name)
    if not path.is_file():
        raise SpinError(f"There is no judge {name!r}.", change="give local, or a file made by `spin-llm judge fit`.")
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            if header.get("format") not in FORMATS:
                raise SpinError(f"{path} is not a judge file of this version (format {header.get('format')!r}).")
            check_seal(path, header, ("format", "judge"))
            about = decoded(header.get("judge", ""), JudgeAbout, f"The metadata of {path}")
            heads = {
                (head.axis, head.label): Head(
                    file.get_tensor(f"{head.axis}.{head.label}"), head.bias, head.threshold, head.known
                )
                for head in about.heads
            }
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a dtype that numpy has not
        raise SpinError(f"{path} is not a readable judge file: {error}", cause="it is truncated.") from None
    weights = [head.weight for head in heads.values()]
    if not all(one.dtype == np.float32 and one.ndim == 1 and np.isfinite(one).all() for one in weights):
        raise SpinError(f"{path} is damaged: the weights of a head are no finite float32 numbers.")
    label = label or about.default_label
    if label not in {known for _, known in heads}:
        raise SpinError(
            f"The judge {name!r} has no label {label!r}; it has {', '.join(sorted({known for _, known in heads}))}."
        )
    return LocalJudge("local" if name == "local" else path.stem, label, heads, about)
