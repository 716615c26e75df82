"""The wheel in a clean environment: finds what is used and not declared, and files that were not packed.

In: a requirement of torch, which is installed first. Out: exit code 0 when wheel and sdist are built, hold every file
of the package, every module can be imported with the wheel alone (no extras), and `spin-llm run` ends on a tiny model.
Left out: the extras, which the development environment tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORT_ALL = """
import importlib, pkgutil, spin_llm
for module in pkgutil.walk_packages(spin_llm.__path__, "spin_llm."):
    if not module.name.endswith(("__main__", "triton_kernel")):  # Triton comes with a CUDA build of torch alone
        importlib.import_module(module.name)
print("every module is imported from", *spin_llm.__path__)
"""
QUICK = "--examples 8 --max-questions 4 --new-tokens 4 --template raw --dtype float32 --rule coupled --ratio 0.01"


def do(*words: object, cwd: Path = ROOT) -> None:
    """A command outside this environment, whose variables might find the checkout; its failure ends this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    subprocess.run([str(word) for word in words], cwd=cwd, env=kept, check=True)


def unpacked(wheel: Path, sdist: Path) -> list[str]:
    """Files of the package that are missing from the wheel or from the sdist."""
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as packed, tarfile.open(sdist) as archive:
        inside = {name.partition("/src/")[2] for name in archive.getnames()}
        return sorted(files - (set(packed.namelist()) & inside))


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    with tempfile.TemporaryDirectory(prefix="wheel-") as temporary:
        work = Path(temporary)
        do(sys.executable, "-m", "build", "--outdir", work / "dist", ROOT)  # the wheel is built from the sdist
        (wheel,), (sdist,) = (list((work / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
        if missing := unpacked(wheel, sdist):
            sys.exit(f"not packed: {', '.join(missing)}")
        venv.create(work / "venv", with_pip=True)
        python, command = work / "venv" / "bin" / "python", work / "venv" / "bin" / "spin-llm"
        do(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", sys.argv[1], wheel)
        do(python, "-c", IMPORT_ALL, cwd=work)
        model = tiny.save("llama", work / "model", chat=True)
        do(command, "run", model, *QUICK.split(), "-o", work / "run", cwd=work)
        for name in ("patch.safetensors", "results.json", "report.html"):
            assert (work / "run" / name).is_file(), name


if __name__ == "__main__":
    main()
