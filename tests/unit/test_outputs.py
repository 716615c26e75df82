"""Outputs: complete or absent, under names of this process's own, and what a killed process left is ended well."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from spin_llm import outputs
from spin_llm.errors import SpinError
from spin_llm.outputs import check_output, clear_stale, is_temporary, making, scratch, temporary, writing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def of_a_dead_process(path: Path) -> Path:
    """A temporary name as a process that has ended gave it."""
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    mine = outputs.TEMPORARY.fullmatch(temporary(path).name)
    assert mine is not None
    return path.with_name(mine[0].replace(f"-{os.getpid()}-", f"-{ended.stdout.strip()}-"))


# Names


def test_names_are_new_each_time_hidden_and_recognised(tmp_path: Path):
    one, two = temporary(tmp_path / "a"), temporary(tmp_path / "a")
    assert one != two
    assert one.parent == tmp_path
    assert one.name.startswith(".")
    assert is_temporary(one)
    for name in ("a.part", ".spin-llm-.part", ".spin-llm-mine.part", f"{one.name}x", f"x{one.name}", "run.json"):
        assert not is_temporary(tmp_path / name)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_nothing_of_the_users_is_in_the_way_or_deleted(tmp_path: Path, kind: str):
    """Names that a user or another program may have given, beside the output."""
    for name in ("out.part", "out.tmp", ".spin-llm-notes", ".spin-llm-0.part", "out.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keep").write_text("mine")
    before = tiny.folder_bytes(tmp_path)
    if kind == "file":
        with writing(tmp_path / "out") as part:
            part.write_text("made")
        assert (tmp_path / "out").read_text() == "made"
    else:
        with making(tmp_path / "out") as part:
            (part / "made").write_text("made")
        assert tiny.folder_bytes(tmp_path / "out") == {"made": b"made"}
    after = {name: data for name, data in tiny.folder_bytes(tmp_path).items() if not name.startswith("out/")}
    after.pop("out", None)
    assert after == before


# What killed processes left


def test_unfinished_outputs_of_dead_processes_go_with_the_next_output(tmp_path: Path):
    file, folder, living = (
        of_a_dead_process(tmp_path / "a"),
        of_a_dead_process(tmp_path / "b"),
        temporary(tmp_path / "c"),
    )
    file.write_text("half")
    (folder / "sub").mkdir(parents=True)
    living.write_text("being written")
    with writing(tmp_path / "out") as part:
        part.write_text("made")
    assert names(tmp_path) == sorted([living.name, "out"])


def test_a_link_with_a_temporary_name_is_deleted_and_not_what_it_leads_to(tmp_path: Path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "keep").write_text("mine")
    of_a_dead_process(tmp_path / "a").symlink_to(tmp_path / "precious")
    clear_stale(tmp_path)
    assert tiny.folder_bytes(tmp_path) == {"precious/keep": b"mine"}


def test_a_name_of_another_machine_is_left(tmp_path: Path):
    foreign = tmp_path / outputs.TEMPORARY.sub(r".spin-llm-00000000-\2-1-0123456789abcdef.\4", temporary(tmp_path).name)
    assert is_temporary(foreign)
    foreign.write_text("half")
    assert clear_stale(tmp_path) == []
    assert names(tmp_path) == [foreign.name]


@pytest.mark.parametrize("state", ["set aside", "in place"])
def test_a_replacement_that_was_killed_is_ended_by_the_next_command(tmp_path: Path, state: str):
    """Killed after the old folder was set aside, or after the new one got its name."""
    part = of_a_dead_process(tmp_path / "out")
    aside = part.with_suffix(".old") / "out"
    aside.mkdir(parents=True)
    (aside / "which").write_text("old")
    new = part if state == "set aside" else tmp_path / "out"
    new.mkdir()
    (new / "which").write_text("new")
    told = clear_stale(tmp_path)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "which").read_text() == ("old" if state == "set aside" else "new")
    assert [f"{tmp_path / 'out'} is back" in line for line in told] == ([True] if state == "set aside" else [])


def test_an_old_folder_whose_name_was_given_again_is_kept_and_told(tmp_path: Path):
    part = of_a_dead_process(tmp_path / "out")
    aside = part.with_suffix(".old") / "out"
    for folder, which in ((part, "new"), (aside, "old"), (tmp_path / "out", "mine")):
        folder.mkdir(parents=True)
        (folder / "which").write_text(which)
    for _ in range(2):
        (told,) = clear_stale(tmp_path)
        assert str(aside) in told
        assert (aside / "which").read_text() == "old"
        assert (tmp_path / "out" / "which").read_text() == "mine"


# Failures on the way


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("there", [False, True])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path, error: BaseException, there: bool):
    output = tmp_path / "new" / "deep" / "out"
    if there:
        output.mkdir(parents=True)
        (output / "which").write_text("old")
    before = tiny.folder_bytes(tmp_path), names(tmp_path)
    with pytest.raises(type(error)), making(output) as part:  # noqa: PT012 - the failure is in the middle of it
        (part / "which").write_text("new")
        raise error
    assert (tiny.folder_bytes(tmp_path), names(tmp_path)) == before


def test_a_replacement_that_fails_at_its_last_step_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = tmp_path / "out"
    output.mkdir()
    (output / "which").write_text("old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt), making(output) as part:
        (part / "which").write_text("new")
    monkeypatch.undo()
    assert tiny.folder_bytes(tmp_path) == {"out/which": b"old"}


def test_a_scratch_folder_is_gone_afterwards(tmp_path: Path):
    with scratch(tmp_path) as part:
        assert is_temporary(part)
        (part / "a").write_text("a")
    assert names(tmp_path) == []


def test_links_are_followed_and_stay(tmp_path: Path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with writing(tmp_path / "link") as part:
        part.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_device_is_not_replaced(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpinError, match="no file to write to"), writing(tmp_path / "pipe") as part:
        part.write_text("x")
    assert names(tmp_path) == ["pipe"]


# Whether it can be made


def test_places_that_can_be_made(tmp_path: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "keep").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    before = tiny.folder_bytes(tmp_path), names(tmp_path)
    for output, place in (("new/deep", "new/deep"), ("there", "there"), ("link", "there"), ("link/new", "there/new")):
        assert check_output(tmp_path / output) == (tmp_path / place).resolve()
    assert check_output(tmp_path / "there" / "keep", file=True) == (tmp_path / "there" / "keep").resolve()
    assert check_output(tmp_path / ("n" * 255), file=True).name
    assert (tiny.folder_bytes(tmp_path), names(tmp_path)) == before


def test_places_that_cannot_be_made_are_one_message(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    wrong = ["file", "file/under", "file/under/deep", "dangling", "circle", "circle/a", "pipe", "pipe/a"]
    wrong += ["n" * 256, f"a/{'n' * 256}/b", f"{'é' * 200}", "a\0b", "/".join(["deep"] * 2000)]
    for output in [*(str(tmp_path / name) for name in wrong), *(["/proc/spin"] if Path("/proc").is_dir() else [])]:
        with pytest.raises(SpinError) as caught:
            check_output(output)
        assert "--output" in str(caught.value), output
    for output in ("file/a", "dangling", "n" * 256):
        with pytest.raises(SpinError, match=r"cannot be written|link"):
            check_output(tmp_path / output, file=True)
    with pytest.raises(SpinError, match="is a folder"):
        check_output(tmp_path, file=True)
    with pytest.raises(SpinError, match=r"too full.*bytes are needed"):
        check_output(tmp_path / "out", space=2**60)
    assert names(tmp_path) == ["circle", "dangling", "file", "pipe"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "No permission"),
        (errno.EPERM, "No permission"),
        (errno.EROFS, "read-only"),
        (errno.ENOSPC, "disk is full"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_a_place_that_the_system_refuses(number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for output in (tmp_path, tmp_path / "new"):
        with pytest.raises(SpinError, match=words):
            check_output(output)


# Kills


WRITER = """
import sys
from pathlib import Path
from spin_llm.outputs import making
for number in range(1000):
    with making(Path(sys.argv[1])) as part:
        for name in "abc":
            (part / name).write_text(str(number))
    print(number, flush=True)
"""


def test_killed_while_replacing_again_and_again(tmp_path: Path):
    """Whenever it is, the folder is the old or the new one, whole, after the next command at the latest."""
    output = tmp_path / "out"
    for kill in range(4):
        running = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(output)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(outputs.__file__).parents[1])},
        )
        assert running.stdout is not None
        for _ in range(5 + 7 * kill):
            running.stdout.readline()
        running.send_signal(signal.SIGKILL)
        running.wait()
        running.stdout.close()
        clear_stale(tmp_path)
        assert names(tmp_path) == ["out"]
        assert names(output) == ["a", "b", "c"]
        assert len({path.read_text() for path in output.iterdir()}) == 1
