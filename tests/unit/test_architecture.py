"""The layout: which module may import which, what an import loads, and what the docstrings and the README say of it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "spin_llm"
GROUND = {  # ground floor: what each may import besides itself
    **{"errors": (), "progress": (), "outputs": ("errors",), "files": ("errors", "outputs")},
    **{"ownership": ("errors", "files", "outputs"), "hub_errors": ("errors", "outputs"), "settings": ("errors",)},
    **{"records": ("errors", "files", "settings"), "results": ("errors", "files", "settings")},
    "stats": ("errors", "results"),
}
EDIT = ("data", "models", "scores", "selection", "patch")  # each imports those before it on its line
ASK = ("data", "models", "generation", "judges", "evaluate")
BOTH = (*EDIT, *ASK[2:])
WINGS = {
    **{stage: EDIT[:number] for number, stage in enumerate(EDIT)},
    **{stage: ASK[:number] for number, stage in enumerate(ASK)},
    "search": BOTH,
    "report": (),  # reads results alone
    "analysis": EDIT,
    "baselines": ("data", "models"),
    "pipeline": (*BOTH, "search", "analysis", "report"),
    "paper": (*BOTH, "search", "analysis", "baselines", "report", "pipeline"),
    "cli": (*BOTH, "search", "analysis", "baselines", "report", "pipeline", "paper"),
}
ENTRY = ("__init__", "__main__")  # lazy re-exports, and `python -m spin_llm`
MODULES = sorted(PACKAGE.rglob("*.py"))


def stage_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def own_imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, stage) of every import of this package in a module, wherever in the module it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            parts = (node.module or "").split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            found = names if parts[0] == "spin_llm" else []
        elif isinstance(node, ast.Import):
            full = [alias.name.split(".") for alias in node.names]
            found = [parts[1] if len(parts) > 1 else "__init__" for parts in full if parts[0] == "spin_llm"]
        else:
            continue
        yield from ((node.lineno, name) for name in found)


def allowed_imports(stage: str) -> set[str]:
    return {stage, *(GROUND[stage] if stage in GROUND else (*GROUND, *WINGS[stage]))}


def test_every_module_has_a_room():
    assert {stage_of(path) for path in MODULES} == {*GROUND, *WINGS, *ENTRY[:1]}


def test_the_three_laws():
    """Asking knows nothing of scores and selection; the report knows results alone; what options are needs no torch
    (below: `test_importing_the_package_and_the_command_loads_nothing_heavy`)."""
    assert not {"scores", "selection", "patch"} & allowed_imports("evaluate")
    assert not set(WINGS) & (allowed_imports("report") - {"report"})
    assert not set(WINGS) & allowed_imports("settings")


def test_no_import_goes_in_a_circle():
    modules = {".".join(("spin_llm", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in MODULES}
    arrows = {name.removesuffix(".__init__"): set(whole_imports(path, modules)) for name, path in modules.items()}
    while ends := {name for name, to in arrows.items() if not to & arrows.keys()}:
        arrows = {name: to for name, to in arrows.items() if name not in ends}
    assert not arrows


def whole_imports(path: Path, modules: Iterable[str]) -> Iterator[str]:
    """The modules of this package that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spin_llm."):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else str(node.module)


@pytest.mark.parametrize(
    "path", [p for p in MODULES if stage_of(p) not in ENTRY], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_one_way(path: Path):
    stage = stage_of(path)
    wrong = [f"line {line}: {name}" for line, name in own_imports(path) if name not in allowed_imports(stage)]
    assert not wrong, f"{stage} may import {sorted(allowed_imports(stage))}"


def test_what_a_run_works_with_stays_in_the_orchestrators():
    """Stages take what they need as values; only the pipeline and the paper carry a `Run`."""
    users = {
        stage_of(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "spin_llm.pipeline.context"
    }
    assert users == {"pipeline", "paper"}


def test_the_rule_would_catch_a_wrong_import(tmp_path: Path):
    module = tmp_path / "wrong.py"
    module.write_text(
        "def f():\n from spin_llm.cli import main\n import spin_llm.report.page\n from spin_llm import pipeline\n"
    )
    assert [name for _, name in own_imports(module)] == ["cli", "report", "pipeline"]
    assert not {"cli", "report", "pipeline"} & allowed_imports("patch")
    assert {"scores", "selection"} <= allowed_imports("patch")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_says_what_goes_in_and_out(path: Path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring
    if path.name not in ("__init__.py", "__main__.py"):  # a package's front door names its rooms instead
        assert re.search(r"\bIn:\s", docstring), "no `In:`"
        assert re.search(r"\bOut:\s", docstring), "no `Out:`"


def fresh_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "120"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_importing_the_package_and_the_command_loads_nothing_heavy():
    code = "import sys, spin_llm, spin_llm.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    result = fresh_python("-c", code)
    assert result.returncode == 0, result.stderr
    heavy = {"torch", "transformers", "numpy", "scipy", "sklearn", "matplotlib", "pyarrow", "huggingface_hub", "gguf"}
    loaded = set(result.stdout.split())
    assert "spin_llm" in loaded
    assert not loaded & heavy


def test_help_needs_no_torch():
    """Every command's help in one process in which importing torch or transformers is an error."""
    code = """
import io, sys
from contextlib import redirect_stdout
sys.modules["torch"] = sys.modules["transformers"] = None
from spin_llm.cli.main import main
commands = "run sweep score select apply revert verify eval baseline stability paper report doctor judge".split()
for words in ([], *([c] for c in commands), ["judge", "fit"]):
    sys.argv = ["spin-llm", *words, "--help"]
    with redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as leaving:
            assert leaving.code == 0, (words, leaving.code)
    assert "Usage" in out.getvalue(), (words, out.getvalue())
"""
    result = fresh_python("-c", code)
    assert result.returncode == 0, result.stderr


def test_the_command_runs_as_a_module():
    result = fresh_python("-m", "spin_llm.cli", "--help")
    assert result.returncode == 0, result.stderr
    commands = "run sweep score select apply revert verify eval stability baseline report doctor judge"
    for command in commands.split():
        assert re.search(rf"^\W*{command}\b", result.stdout, re.MULTILINE), command


def test_every_public_name_exists():
    import spin_llm

    for name in spin_llm.__all__:
        assert callable(getattr(spin_llm, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = spin_llm.nothing


def test_no_module_reads_or_writes_pickles():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not {alias.name.partition(".")[0] for alias in node.names} & {"pickle", "joblib", "dill"}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert ast.unparse(node.func) not in ("torch.load", "torch.save"), f"{path}:{node.lineno}"
