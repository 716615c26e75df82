"""Options from settings: what the command line, the environment and a file give, who wins, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from spin_llm.cli import main as cli
from spin_llm.cli.options import options_of
from spin_llm.settings import GROUPS, RunSettings
from spin_llm.settings.training import BaselineSettings

Parsed = Callable[..., RunSettings]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Parsed:
    """The settings that `spin-llm run` hands to the pipeline."""
    import spin_llm.pipeline

    seen: list[RunSettings] = []
    monkeypatch.setattr(spin_llm.pipeline, "run", lambda settings, *_, **__: seen.append(settings) or {})

    def settings_of(*words: object) -> RunSettings:
        cli.app(["run", *map(str, words), "--json"])
        return seen[-1]

    return settings_of


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The message of a command that ends with exit code 2."""
    monkeypatch.setattr("sys.argv", ["spin-llm", *map(str, words)])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    shown = capsys.readouterr()
    assert (leaving.value.code, shown.out) == (2, "")
    assert shown.err.startswith("spin-llm: ")
    assert shown.err.count("spin-llm: ") == 1
    return shown.err


TOML = """
examples = 8
concept = ["fairness=a.csv", "privacy=b.csv"]
max-questions = 5
new_tokens = 7
ratio = 1e-4
layers = "4-20"
trust-remote-code = true
control = "random"
[template-option]
enable_thinking = false
"""


def test_a_file_gives_values_by_the_options_names(run: Parsed, tmp_path: Path):
    file = tmp_path / "spin.toml"
    file.write_text(TOML)
    assert run("m", "--config", file) == RunSettings(
        "m",
        examples=8,
        concepts={"fairness": "a.csv", "privacy": "b.csv"},
        max_questions=5,
        new_tokens=7,
        ratio=1e-4,
        layers=(4, 20),
        trust_remote_code=True,
        controls=("random",),
        template_options={"enable_thinking": False},
    )
    file.write_text('model = "m"\n')
    assert run("--config", file) == RunSettings("m")


def test_the_command_line_wins_then_the_environment_then_the_file(
    run: Parsed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    file = tmp_path / "spin.toml"
    file.write_text('examples = 8\nseed = 1\nnew-tokens = 9\ncontrol = ["released"]\n')
    monkeypatch.setenv("SPIN_LLM_SEED", "2")
    monkeypatch.setenv("SPIN_LLM_EXAMPLES", "16")
    monkeypatch.setenv("SPIN_LLM_CONTROL", "random 'same-magnitude'")
    monkeypatch.setenv("SPIN_LLM_SKIP_LONG", "true")
    settings = run("m", "--config", file, "--seed", "3")
    assert (settings.seed, settings.examples, settings.new_tokens) == (3, 16, 9)
    assert (settings.controls, settings.skip_long) == (("random", "same-magnitude"), True)


def test_no_option_is_named_as_the_cache_folder():
    for group in (*GROUPS, BaselineSettings):
        assert "cache" not in {field.name for field in fields(group)}


def test_a_run_is_replayed_from_its_record(run: Parsed, tmp_path: Path):
    told: dict[str, Any] = {"concepts": {"fairness": "a=b.csv"}, "layers": (0, 3), "template_options": {"a": "1"}}
    settings = RunSettings("m", **told, ratio=1e-3, keep=0.1, skip_long=True, capabilities=("boolq", "race"), seed=4)
    (tmp_path / "run.json").write_text(json.dumps({"settings": asdict(settings), "command": "spin-llm run m"}))
    assert run("--config", tmp_path / "run.json") == settings
    assert run("--config", tmp_path / "run.json", "--seed", "5").seed == 5
    nothing = RunSettings("m", protect=(), questions=())
    (tmp_path / "run.json").write_text(json.dumps({"settings": asdict(nothing)}))
    assert run("--config", tmp_path / "run.json") == nothing


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exampels = 3", ["exampels is not an option of `spin-llm run`", "Did you mean examples?"]),
        ("[examples]\nmany = 3", ["examples from {file}", "many=3"]),
        ("examples = 'many'", ["many", "examples from {file}"]),
        ("examples = 0", ["--examples 0 is out of range", "examples in {file}"]),
        ("rule = 'odd'", ["--rule odd is not a choice", "rule in {file}"]),
        ("judge = ['a', 'b']", ["{file}: judge takes one value"]),
        ("examples = ", ["{file} is not TOML"]),
        ("config = 'other.toml'", ["config is not an option"]),
    ],
)
def test_a_mistake_in_a_file_names_file_and_key(
    text: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    file = tmp_path / "spin.toml"
    file.write_text(text)
    message = refused(monkeypatch, capsys, "run", "m", "--config", file)
    for word in words:
        assert word.format(file=file) in message


def test_a_file_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert "absent.toml cannot be read" in refused(
        monkeypatch, capsys, "run", "m", "--config", tmp_path / "absent.toml"
    )


@pytest.mark.parametrize("value", ["0", "some"])
def test_a_mistake_in_the_environment_names_the_variable(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SPIN_LLM_EXAMPLES", value)
    message = refused(monkeypatch, capsys, "run", "m")
    assert "SPIN_LLM_EXAMPLES" in message
    assert value in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "m", "--rato", "1"), "Unknown option: --rato. Did you mean --ratio?"),
        (("run",), "MODEL"),
        (("rum", "m"), "rum"),
        (("run", "m", "--examples", "many"), "many"),
        (("run", "m", "--examples"), "--examples"),
        (("run", "m", "extra"), "extra"),
        (("select", "folder"), "--ratio"),
        (("eval", "m", "--concept", "fairness"), "--concept"),
        (("stability", "folder", "--resamples", "1"), "--resamples"),
        (("paper", "table1", "m", "--limit", "3"), "--limit"),
    ],
)
def test_a_wrong_command_line_is_one_message(
    words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert message in refused(monkeypatch, capsys, *words)


def test_the_last_of_an_option_wins_and_lists_grow(run: Parsed):
    settings = run("m", "--seed", "1", "--seed", "2", "--control", "random", "--control", "released", "--scale", "-1")
    assert (settings.seed, settings.controls, settings.scale) == (2, ("random", "released"), -1.0)
    assert run("m", "--protect", "general=[1,2].csv").protect == (("general", "[1,2].csv"),)


@pytest.mark.parametrize(("verb", "groups"), [("run", tuple(GROUPS)), ("baseline", (BaselineSettings,))])
def test_the_help_has_every_option_with_its_text(
    verb: str, groups: tuple[type, ...], capsys: pytest.CaptureFixture[str]
):
    cli.app([verb, "--help"], console=Console(width=400))
    shown = capsys.readouterr().out
    for name, option in options_of(*groups).items():
        about = option.annotation.__metadata__[0]
        flag = about.name[0] if about.name else name.upper()
        assert re.search(rf"{flag}\b.*{re.escape(about.help)}", shown), name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: Any):
    script = cli.app.generate_completion(shell=shell)
    for word in ("sweep", "max-perplexity-increase", "coupled-signed"):
        assert word in script
