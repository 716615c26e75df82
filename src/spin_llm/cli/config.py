"""Values for options that the command line does not give: from the environment, then from the file of --config.

In: `SPIN_LLM_*` (an option's name in capitals; several values as words of a shell), a TOML file whose keys are the
options' names, or a run's run.json. Out: tokens, as if they had been typed, and which of them came from where. Left
out: what the values mean (settings/).
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_origin

from cyclopts import App, Token
from cyclopts.argument import Argument, ArgumentCollection

from spin_llm.errors import SpinError
from spin_llm.settings import flag_of


class Sources:
    """Fills options, and remembers which were not typed: `origins`, by flag."""

    def __init__(self) -> None:
        self.origins: dict[str, str] = {}

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        self.origins = {}
        options = {name: argument for argument in arguments for name in argument.names if argument.parse}
        file = options.pop("--config", None)
        for name, argument in options.items():
            key = f"SPIN_LLM_{name.lstrip('-').replace('-', '_').upper()}"
            if name.startswith("--") and key in os.environ:
                text = os.environ[key]
                self.fill(argument, shlex.split(text) if is_list(argument) else [text], "the environment", key)
        if file and file.tokens:
            self.read(Path(file.tokens[-1].value), f"spin-llm {' '.join(commands)}", options)

    def fill(self, argument: Argument, texts: Iterable[str | Token], where: str, key: str) -> None:
        """Give an option values, unless an earlier source has."""
        if not argument.tokens:
            for index, text in enumerate(texts):
                token = text if isinstance(text, Token) else Token(value=text)
                argument.append(token.evolve(keyword=key, source=where, index=index))
            self.origins |= dict.fromkeys(argument.names, f"{key} in {where}")

    def read(self, path: Path, command: str, options: dict[str, Argument]) -> None:
        """Fill from a file; SpinError for what cannot be read, and for a key that is no option of the command."""
        table, of_a_run = read_table(path)
        names = {name.lstrip("-").lower(): argument for name, argument in options.items()}
        for key, value in table.items():
            argument = names.get(flag_of(key).removeprefix("--"))
            if argument:
                self.fill(argument, texts_of(key, value, is_list(argument), path), str(path), key)
            elif not of_a_run:  # whose other stages have settings too
                import difflib

                near = difflib.get_close_matches(key.replace("_", "-"), names, n=1)
                raise SpinError(
                    f"{path}: {key} is not an option of `{command}`." + (f" Did you mean {near[0]}?" if near else ""),
                    change=f"`{command} --help` lists the options.",
                )

    def origin(self, message: str) -> str:
        """Where the value came from that a message begins with, as words in its end; "" for one that was typed."""
        origin = self.origins.get(message.split(maxsplit=1)[0]) if message.startswith("-") else None
        return f"\nIt is set by {origin}." if origin else ""


def is_list(argument: Argument) -> bool:
    return get_origin(argument.hint) is list


def read_table(path: Path) -> tuple[dict[str, Any], bool]:
    """(keys and values, whether the file is a run's run.json)."""
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise SpinError(f"--config {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise SpinError(f"--config {path} is not {kind}: {error}.") from None
    if isinstance(table, dict) and isinstance(table.get("settings"), dict):
        compared = table.get("compared", {})
        return {**table["settings"], **{name: compared.get(name) for name in ("baseline", "patch")}}, True
    if not isinstance(table, dict):
        raise SpinError(f"--config {path} holds no keys.", change="give a TOML file, or a run's run.json.")
    return table, False


def texts_of(key: str, value: Any, several: bool, path: Path) -> list[str | Token]:
    """A value as it would be typed; pairs, as run.json has them, as they are: nothing is to be added to them."""
    if value is None:
        return []
    if key == "layers" and isinstance(value, list):
        return ["-".join(map(str, value))] if value else []
    if isinstance(value, list) and not several:
        raise SpinError(f"{path}: {key} takes one value.", change="give it without [ ].")
    if isinstance(value, list) and all(isinstance(one, list) for one in value):
        return [Token(implicit_value=[tuple(one) for one in value])]
    if isinstance(value, dict):
        return [f"{name}={plain(one)}" for name, one in value.items()]
    return [plain(one) for one in (value if isinstance(value, list) else [value])]


def plain(value: Any) -> str:
    """One value as a text; other than texts as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
