"""Settings: what is refused with which words, and sources from the command line."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from spin_llm.cli.main import app
from spin_llm.cli.options import helps
from spin_llm.cli.terminal import slug
from spin_llm.errors import SpinError
from spin_llm.pipeline import replay_command
from spin_llm.records import settings_from_json
from spin_llm.settings import RunSettings, default_sources, flag_of, sources
from spin_llm.settings.edit import parse_ratio

WRONG: list[tuple[str, Any]] = [
    ("examples", 0),
    ("new_tokens", 0),
    ("max_length", 1),
    ("max_questions", 0),
    ("seed", -1),
    *((name, value) for name in ("ratio", "protect_ratio", "keep") for value in (0.0, 1.0, -1e-4, math.nan)),
    ("ratio", 0.02),
    ("protect_ratio", 0.02),
    ("max_perplexity_increase", -0.1),
    ("max_perplexity_increase", math.nan),
    ("scale", math.nan),
    ("scale", math.inf),
    ("responses", "both"),
    ("thinking_tokens", 0),
    ("date", "tomorrow"),
    ("template_options", (("two words", "1"),)),
    ("dtype", "float16"),
    ("target", "head"),
    ("rule", "coupling"),
    ("controls", ("nothing",)),
    ("questions", (("toxicity", "starter"),)),
    ("concepts", (("fairness", "a.csv"), ("fairness", "b.csv"))),
    ("protect", (("general", "a.csv"), ("general", "b.csv"))),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, value: Any):
    with pytest.raises(SpinError) as caught:
        RunSettings("m", **{name: value})
    assert caught.value.what.startswith(f"{flag_of(name)} ")
    assert caught.value.change
    shown = value[0] if name == "controls" else value[0][0] if isinstance(value, tuple) else value
    assert str(shown) in caught.value.what


def test_a_protected_set_cannot_bear_a_concept_s_name():
    with pytest.raises(SpinError, match="general"):
        RunSettings("m", concepts=(("general", "a.csv"),), protect=(("general", "b.csv"),))


@pytest.mark.parametrize("value", [{"ratio": 0.01}, {"ratio": 1e-7}, {"ratio": 0.2, "keep": 0.2}, {"scale": -1.0}])
def test_values_at_the_limits_are_allowed(value: dict[str, float]):
    assert RunSettings("m", **value).model == "m"


def test_every_setting_has_a_help_text_and_settings_are_frozen():
    for field in fields(RunSettings):
        if field.name != "model":
            assert helps(RunSettings)[field.name].endswith(".")
    assert RunSettings("m").examples == 128
    with pytest.raises(AttributeError):
        RunSettings("m").seed = 1  # type: ignore[misc]


def test_settings_survive_json():
    settings = RunSettings(
        "m", concepts=(("fairness", "a.csv"),), protect=(("general", "starter"),), controls=("random",), ratio=1e-4
    )
    assert settings_from_json(json.loads(json.dumps(asdict(settings)))) == settings


NAMES = ("fairness", "privacy")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {"fairness": "starter", "privacy": "starter"}),
        (["my.csv"], {"fairness": "my.csv", "privacy": "my.csv"}),
        (["privacy=my.csv"], {"fairness": "starter", "privacy": "my.csv"}),
        (["privacy=a.csv", "fairness=b.csv"], {"privacy": "a.csv", "fairness": "b.csv"}),
        (["safety=a.csv", "health=b.csv"], {"safety": "a.csv", "health": "b.csv"}),
        (["privacy=a=b.csv"], {"fairness": "starter", "privacy": "a=b.csv"}),
        (["toxicity=t.csv"], {"toxicity": "t.csv"}),
        (["fairness=a.csv", "toxicity=t.csv"], {"fairness": "a.csv", "toxicity": "t.csv"}),
        (["privacy=a.csv", "my.csv"], {"fairness": "my.csv", "privacy": "a.csv"}),
        (["my.csv", "privacy=a.csv"], {"fairness": "my.csv", "privacy": "a.csv"}),
        (["fairness-en=e.csv", "fairness2=f.csv"], {"fairness-en": "e.csv", "fairness2": "f.csv"}),
        (["truthfulness"], {"truthfulness": "starter"}),
        (["truthfulness=t.csv"], {"truthfulness": "t.csv"}),
        (["truthfulness", "helpfulness"], {"truthfulness": "starter", "helpfulness": "starter"}),
        (
            ["privacy", "truthfulness", "toxicity=t.csv"],
            {"privacy": "starter"} | {"truthfulness": "starter", "toxicity": "t.csv"},
        ),
    ],
)
def test_sources(given: list[str], expected: dict[str, str]):
    assert dict(sources("--concept", given, NAMES, "starter")) == expected


@pytest.mark.parametrize("text", ["=my.csv", "privacy=", "="])
def test_a_source_without_name_or_value(text: str):
    with pytest.raises(SpinError, match="is not NAME=SOURCE"):
        sources("--concept", [text], NAMES, "starter")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["privacy=a.csv", "privacy=b.csv"], "privacy is given twice"),
        (["toxicity=a.csv", "fairness=b.csv", "toxicity=a.csv"], "toxicity is given twice"),
        (["privacy", "privacy=a.csv"], "privacy is given twice"),
        (["privacy", "privacy"], "privacy is given twice"),
        (["a.csv", "b.csv"], "each of these sources"),
        (["../up=a.csv"], "is no name"),
        (["a/b=c.csv"], "is no name"),
    ],
)
def test_sources_that_contradict_or_name_nothing(given: list[str], words: str):
    with pytest.raises(SpinError, match=words):
        sources("--concept", given, NAMES, "starter")


@pytest.mark.parametrize("option", ["--concept", "--questions", "--protect"])
@pytest.mark.parametrize("source", ["", "=a.csv"])
@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Fairness", "fairness"),
        ("fairnes", "fairness"),
        ("fariness", "fairness"),
        ("PRIVACY", "privacy"),
        ("privacy ", "privacy"),
        ("privcy", "privacy"),
        ("truthfullness", "truthfulness"),
    ],
)
def test_a_name_that_is_nearly_known_is_suggested(option: str, source: str, typed: str, meant: str):
    with pytest.raises(SpinError, match=f"Did you mean {meant}"):
        sources(option, [f"{typed}{source}"], NAMES, "starter")


@pytest.mark.parametrize(("typed", "meant"), [("Over-refusal", "over_refusal"), ("over_refusals", "over_refusal")])
def test_axes_of_questions_are_suggested_too(typed: str, meant: str):
    with pytest.raises(SpinError, match=f"Did you mean {meant}"):
        RunSettings(**{"model": "m", "ratio": "auto", "questions": [f"{typed}=a.csv"]})
    with pytest.raises(SpinError, match="Did you mean general"):
        RunSettings(**{"model": "m", "ratio": "auto", "protect": ["General=a.csv"]})


def test_questions_on_a_concept_of_ones_own_leave_the_scored_shipped_ones():
    words = {"model": "m", "ratio": "auto", "concepts": ["fairness=a.csv", "toxicity=t.csv"]}
    asked = RunSettings(**{**words, "questions": ["toxicity=q.csv"]}).questions
    assert dict(asked) == {"fairness": "starter", "over_refusal": "starter", "toxicity": "q.csv"}
    alone = RunSettings(**{**words, "concepts": ["toxicity=t.csv"], "questions": ["toxicity=q.csv"]})
    assert (dict(alone.concepts), dict(alone.questions)) == (
        {"toxicity": "t.csv"},
        {"toxicity": "q.csv", "over_refusal": "starter"},
    )


def test_a_data_folder_changes_the_defaults(tmp_path: Path):
    assert default_sources(None)["concepts"] == "starter"
    assert default_sources(str(tmp_path)) == {
        "concepts": "beavertails",
        "protect": "alpaca-cleaned",
        "questions": "salad",
    }
    with pytest.raises(SpinError, match="is not a folder"):
        default_sources(str(tmp_path / "absent"))


def test_settings_from_options_name_every_source(tmp_path: Path):
    plain = RunSettings(**{"model": "m", "ratio": "auto"})
    assert plain.ratio is None
    assert plain.concepts == (("fairness", "starter"), ("privacy", "starter"))
    assert plain.protect == (("general", "starter"),)
    assert dict(plain.questions) == dict.fromkeys(("fairness", "privacy", "over_refusal"), "starter")
    paper = RunSettings(**{"model": "m", "ratio": "1e-4", "data_dir": str(tmp_path), "controls": ["random"]})
    assert (paper.ratio, paper.controls) == (1e-4, ("random",))
    assert dict(paper.questions) == {"fairness": "salad", "privacy": "salad", "over_refusal": "starter"}


def test_a_ratio_that_is_no_number():
    with pytest.raises(SpinError, match="'many' is not a number"):
        parse_ratio("many")


@pytest.mark.parametrize(
    ("model", "name"),
    [("owner/A b:c", "A-b-c"), ("x/tiny.gguf", "tiny"), ("smollm2-135m", "smollm2-135m"), ("/", "model")],
)
def test_slug(model: str, name: str):
    assert slug(model) == name


@pytest.mark.parametrize(
    "concepts",
    ["--concept fairness=a.csv --concept privacy=b.csv", "--concept fairness", "--concept privacy=b.csv", ""],
)
def test_the_replay_command_gives_the_same_settings(concepts: str):
    import spin_llm.pipeline

    seen = []
    words = f"run m {concepts} --protect general=c.csv --ratio 0.0005 --seed 3"
    words += " --control random --control released --trust-remote-code --max-questions 5 --target all"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spin_llm.pipeline, "run", lambda settings, *_, **__: seen.append(settings) or {})
        app([*words.split(), "--json"])
        app([*shlex.split(replay_command(seen[0]))[1:], "--json"])
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_shipped_concepts_by_name_bring_their_questions(tmp_path: Path):
    pair = {"truthfulness": "starter", "helpfulness": "starter"}
    named = RunSettings(**{"model": "m", "ratio": "auto", "concepts": list(pair)})
    assert dict(named.concepts) == pair
    assert dict(named.questions) == {**pair, "over_refusal": "starter"}
    asked = RunSettings(**{"model": "m", "ratio": "auto", "questions": ["truthfulness"]})
    assert dict(asked.questions) == {"truthfulness": "starter", "over_refusal": "starter"}
    mixed = RunSettings(
        **{"model": "m", "ratio": "1e-4", "data_dir": str(tmp_path), "concepts": ["privacy", "truthfulness"]}
    )
    assert dict(mixed.concepts) == {"privacy": "beavertails", "truthfulness": "starter"}
    assert dict(mixed.questions) == {"privacy": "salad", "truthfulness": "starter", "over_refusal": "starter"}
    own = RunSettings(**{"model": "m", "ratio": "auto", "concepts": ["toxicity=t.csv", "safety=s.csv"]})
    assert set(dict(own.questions)) == {"fairness", "privacy", "over_refusal"}


def test_what_run_json_names_gives_the_same_questions_again():
    for words in (["truthfulness"], ["truthfulness", "helpfulness"], ["fairness", "privacy"], ["privacy=p.csv"]):
        once = RunSettings(**{"model": "m", "ratio": "auto", "questions": words}).questions
        again = RunSettings(**{"model": "m", "ratio": "auto", "questions": ["=".join(pair) for pair in once]}).questions
        assert dict(again) == dict(once)


def test_protected_sets_by_name_are_added():
    settings = RunSettings(**{"model": "m", "ratio": "auto", "protect": ["general", "helpfulness"]})
    assert dict(settings.protect) == {"general": "starter", "helpfulness": "starter"}


def test_the_verbs_take_a_model_and_a_folder_as_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the command's defaults; what is wrong is a SpinError, and nothing is left behind."""
    import spin_llm
    from spin_llm.pipeline import score

    monkeypatch.chdir(tmp_path)
    verbs = (spin_llm.run, spin_llm.sweep, score)
    for call in (*verbs, lambda *words: spin_llm.evaluate_models(*words, baseline="other")):
        with pytest.raises(SpinError, match="Unknown model 'model'"):
            call("model", "folder")
    with pytest.raises(SpinError, match="Unknown model 'model'"):
        spin_llm.run(RunSettings("model"), Path("folder"))
    assert not (tmp_path / "folder").exists()
