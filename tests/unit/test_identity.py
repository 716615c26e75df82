"""What a model is: every byte of its weights and every file that decides its prompts and answers, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TinyFolder
from hypothesis import given
from hypothesis import strategies as st

from spin_llm.models import Checkpoint
from spin_llm.models.disk import identity

Change = Callable[[Path], object]


def rewrite(name: str, **values: object) -> Change:
    """A change of keys of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / name
        before = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**before, **values}))

    return change


def write(name: str, text: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return change


CHANGES: dict[str, tuple[Change, str]] = {
    "a template file": (write("chat_template.jinja", "{{ messages }}"), "template"),
    "a template in the tokenizer's configuration": (
        rewrite("tokenizer_config.json", chat_template="{{ 1 }}"),
        "template",
    ),
    "a further named template": (write("additional_chat_templates/tools.jinja", "{{ 1 }}"), "template"),
    "an end token of the configuration": (rewrite("config.json", eos_token_id=[1, 7]), "generation"),
    "an end token of the generation settings": (rewrite("generation_config.json", eos_token_id=9), "generation"),
    "a penalty": (rewrite("generation_config.json", repetition_penalty=1.3), "generation"),
    "a tokenizer's option": (rewrite("tokenizer_config.json", add_bos_token=True), "tokenizer"),
    "the vocabulary": (rewrite("tokenizer.json", added_tokens=[]), "tokenizer"),
    "a sentencepiece file": (write("tokenizer.model", "pieces"), "tokenizer"),
    "the rotary base": (rewrite("config.json", rope_theta=7.0), "config"),
    "the model's own code": (write("modeling_own.py", "x = 1"), "config"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_part_is_seen_and_named(name: str, tiny_folder: TinyFolder, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_folder("llama", chat=True), tmp_path / "m"))
    before = Checkpoint(folder)
    parts, digest = vars(before.identity), before.fingerprint
    change, part = CHANGES[name]
    change(folder)
    after = Checkpoint(folder)
    assert after.identity.changed(parts) == [identity.NAMES[part]]
    assert after.fingerprint != digest


def test_what_is_only_written_otherwise_is_no_change(tiny_folder: TinyFolder, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_folder("llama", chat=True), tmp_path / "m"))
    before = Checkpoint(folder).identity
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "transformers_version": "0"}, indent=7))
    for name in ("README.md", "results.txt"):
        (folder / name).write_text("notes")
    assert Checkpoint(folder).identity == before


@given(st.data())
def test_any_flipped_byte_of_the_weights_is_seen(tiny_folder: TinyFolder, data: st.DataObject):
    """Wherever it lies: the fingerprint of 0.1.0 saw 4 KiB of each tensor."""
    checkpoint = Checkpoint(tiny_folder("llama"))
    tensor = data.draw(st.sampled_from(sorted(checkpoint.tensors.values(), key=lambda t: (str(t.file), t.start))))
    place = tensor.start + data.draw(st.integers(0, tensor.length - 1))
    before = identity.weights_sha256(checkpoint.tensors)
    copy = tensor.file.with_name("flipped")
    shutil.copyfile(tensor.file, copy)
    try:
        with copy.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0] ^ (1 << data.draw(st.integers(0, 7)))
            file.seek(place)
            file.write(bytes([byte]))
        moved = {name: type(t)(copy, t.start, t.length, t.dtype, t.shape) for name, t in checkpoint.tensors.items()}
        assert identity.weights_sha256(moved) != before
    finally:
        copy.unlink()


def test_the_hash_is_remembered_until_a_file_changes(
    tiny_folder: TinyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SPIN_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "SMALL", 0)
    folder = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "m"))
    file = folder / "model.safetensors"
    read: list[Path] = []
    real = identity.tensor_sha256
    monkeypatch.setattr(identity, "tensor_sha256", lambda tensor: read.append(tensor.file) or real(tensor))
    first = Checkpoint(folder).identity.weights
    assert read
    assert not (tmp_path / "cache").exists(), "just written: it may change again within a tick of the clock"
    monkeypatch.setattr(identity, "SETTLED", -60.0)
    assert Checkpoint(folder).identity.weights == first
    (place,) = (tmp_path / "cache" / "fingerprints").iterdir()
    read.clear()
    assert Checkpoint(folder).identity.weights == first
    assert not read
    stat = file.stat()
    tensor = next(iter(Checkpoint(folder).tensors.values()))
    with file.open("r+b") as opened:
        opened.seek(tensor.start)
        opened.write(b"\1\2\3\4")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a tool that keeps times would leave it
    second = Checkpoint(folder).identity.weights
    assert read
    assert second != first
    for damage in (b"", b"[]", b'{"files": 1, "weights": 2}', b"\xff", b"[" * 100_000):
        place.write_bytes(damage)
        assert Checkpoint(folder).identity.weights == second


def test_an_adapter_is_its_base_and_its_own_files(tiny_folder: TinyFolder, tmp_path: Path):
    base = tiny_folder("llama", chat=True)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 4}')
    shutil.copyfile(base / "model.safetensors", adapter / "adapter_model.safetensors")
    before = Checkpoint(adapter, base).identity
    assert before.template == Checkpoint(base).identity.template
    assert before.weights != Checkpoint(base).identity.weights
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    assert Checkpoint(adapter, base).identity.changed(vars(before)) == [identity.NAMES["config"]]
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    assert identity.NAMES["template"] in Checkpoint(adapter, base).identity.changed(vars(before))
    other = Checkpoint(adapter, tiny_folder("llama", chat=True, seed=1)).identity
    assert identity.NAMES["weights"] in other.changed(vars(before))
