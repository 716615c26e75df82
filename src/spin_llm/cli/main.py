"""The command `spin-llm`: its subcommands, signals, exit codes.

In: the command line. Out: progress on stderr, the result on stdout (`--json`: as JSON), exit code 0 when what was asked
was done, 2 with one message on bad input, 130 on Ctrl+C. A subcommand's module is imported when it is asked for, and
heavy modules inside it, so that `--help` is immediate. Left out: what the subcommands do (beside this file).
"""

from __future__ import annotations

import codecs
import gc
import io
import os
import signal
import sys
import threading
from typing import Any, Literal

from cyclopts import App, CycloptsError, Parameter

from spin_llm.cli.options import Sources
from spin_llm.errors import SpinError, visible

COMMANDS = {  # in the order of the help, and the module beside this file that has each
    **dict.fromkeys(("run", "sweep", "score"), "run"),
    **dict.fromkeys(("select", "apply", "revert", "verify"), "patch"),
    **{"eval": "run", "baseline": "paper", "stability": "run", "paper": "paper"},
    **{"report": "run", "doctor": "run", "judge": "judge"},
}


given = Sources()
app = App(
    "spin-llm",
    help="Find the weights that couple a model's fairness and privacy awareness, suppress them, prove what changed.",
    help_format="plaintext",
    config=given,
    default_parameter=Parameter(negative=(), allow_repeating=True, json_list=False, json_dict=False),
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
for place, (name, module) in enumerate(COMMANDS.items()):
    function = {"judge": "app", "eval": "eval_"}.get(name, name)
    app.command(f"spin_llm.cli.{module}:{function}", name=name, sort_key=place)


@app.command(name="--install-completion")
def install_completion(*, shell: Literal["bash", "zsh", "fish"] | None = None) -> None:
    """Write the file by which a shell completes commands and options; it says where."""
    print(app.install_completion(shell=shell, add_to_startup=False))


BROKEN_PIPE = 141  # as a shell names the end by that signal


class Interrupted(BaseException):
    """Ctrl+C, or a polite request to end (the signal TERM), with its number."""


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted(number)


def _not_lost(lost: sys.UnraisableHookArgs) -> None:
    """For exceptions that Python cannot raise where they occur, in a `__del__` or a callback: a signal comes again."""
    if isinstance(lost.exc_value, Interrupted):
        threading.Timer(0.01, signal.raise_signal, lost.exc_value.args).start()
    else:
        sys.__unraisablehook__(lost)


PLAIN = {"\u2013": "-", "\u2014": "-", "\u2212": "-", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2026": "..."}


def spelt(error: UnicodeError) -> tuple[str | bytes, int]:
    """For a console that cannot print a character: a plain one like it, or its number as Python writes it. Bytes of a
    path that are no text in this locale go out as they came in."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in found):
        return bytes(ord(character) - 0xDC00 for character in found), error.end
    escaped = (PLAIN.get(character, character.encode("ascii", "backslashreplace").decode()) for character in found)
    return "".join(escaped), error.end


def main() -> None:
    """Entry point: users' mistakes become one message and exit code 2; a reader that left (`| head`) is no mistake."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    codecs.register_error("spelt", spelt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelt")
    try:
        sys.unraisablehook = _not_lost
        _on_signals(_interrupt)
        code = _exit_code()
        _on_signals(signal.SIG_IGN)  # all is done and said
    except Interrupted as signalled:
        _on_signals(signal.SIG_IGN)
        from spin_llm.outputs import end_all

        end_all()
        print("spin-llm: interrupted; the same command continues where it stopped.", file=sys.stderr)
        code = 128 + int(signalled.args[0])
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:  # else Python would say so on leaving, with another exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or (BROKEN_PIPE if isinstance(error, BrokenPipeError) else 2)
    sys.exit(code)


def _exit_code() -> int | str | None:
    """Run the command; what it ends with."""
    try:
        words = sys.argv[1:]
        if not COMMANDS.keys() & {*words[:1]}:
            for name in COMMANDS:  # whose help the command's own help tells
                app[name]
        if words[1:] == ["--help"] and words[0] in COMMANDS:
            gc.disable()  # nothing is to be parsed, and nothing lives on
            app.help_print(words[:1])
        else:
            app(words)
    except SystemExit as leaving:  # rich ends with 1 when the reader of its output left, and never otherwise
        return BROKEN_PIPE if leaving.code == 1 else leaving.code
    except SpinError as error:
        return refused(str(error))
    except CycloptsError as error:
        error.verbose = False
        verb = " ".join(("spin-llm", *(error.command_chain or ())))
        return refused(f"{error}\nTo change it: `{verb} --help` lists the options.")
    except BrokenPipeError:
        return BROKEN_PIPE
    return 0


def refused(message: str) -> int:
    """Say what the user can mend, and where a value came from that was not typed."""
    print(f"spin-llm: {visible(message + given.origin(message))}", file=sys.stderr)
    return 2


def _on_signals(action: Any) -> None:
    """What Ctrl+C and TERM do from now on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, action)
