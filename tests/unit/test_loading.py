"""What is loaded is what was meant: adapters that fit, weights that are numbers, models that answer; and what is told
of the rest, by its cause."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny
import torch
from conftest import TinyFolder, TinyModel
from safetensors.torch import load_file, save_file

from spin_llm.baselines.train import train_baseline
from spin_llm.errors import SpinError
from spin_llm.hub_errors import hub_error
from spin_llm.models import editable_matrices, load, pick_dtype, resolve, unknown_modules
from spin_llm.models.disk.resolve import is_repository
from spin_llm.models.loading import native_bfloat16
from spin_llm.pipeline.context import Run
from spin_llm.settings import RunSettings
from spin_llm.settings.training import make

peft = pytest.importorskip("peft")
Tensors = dict[str, torch.Tensor]


def edit_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edit_tensors(path: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def copy(tiny_folder: TinyFolder, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may damage."""
    return Path(shutil.copytree(tiny_folder("llama", chat=True), tmp_path / "model"))


# Adapters


@pytest.fixture(scope="module")
def trained(tiny_folder: TinyFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of the tiny Llama by kind, each with random numbers in all of its tensors."""
    base = tiny_folder("llama", chat=True)
    options = {
        "lora": {"target_modules": "all-linear"},
        "dora": {"target_modules": ["up_proj"], "use_dora": True},
        "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        "untrained": {"target_modules": ["up_proj"], "init_lora_weights": True},
    }
    made = {}
    for name, values in options.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", **{"init_lora_weights": False, **values})
            model = peft.get_peft_model(tiny.build("llama"), config)
            made[name] = tmp_path_factory.mktemp(name) / "adapter"
            model.save_pretrained(made[name])
            edit_json(made[name] / "adapter_config.json", base_model_name_or_path=str(base))
    return made


@pytest.mark.parametrize("kind", ["lora", "dora", "saved"])
def test_an_adapter_that_fits_changes_the_model(kind: str, trained: dict[str, Path], tiny_model: TinyModel):
    """The merged weight is that of PEFT's own loading."""
    loaded = load(str(trained[kind]), dtype="float32")
    wanted = peft.PeftModel.from_pretrained(tiny.build("llama"), str(trained[kind])).merge_and_unload().state_dict()
    plain = tiny_model("llama", chat=True).model.state_dict()
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in wanted.items())
    for name, tensor in loaded.model.state_dict().items():
        assert torch.allclose(tensor, wanted[name], atol=1e-6), name


def rename(old: str, new: str) -> Callable[[Tensors], Any]:
    return lambda tensors: [tensors.update({k.replace(old, new): tensors.pop(k)}) for k in list(tensors) if old in k]


def drop(part: str) -> Callable[[Tensors], Any]:
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if part in name]


def each(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Any]:
    return lambda tensors: [tensors.update({name: change(tensor)}) for name, tensor in list(tensors.items())]


NOT_FITTING: dict[str, tuple[Callable[[Tensors], Any], dict[str, Any], str]] = {
    "another prefix": (rename("base_model.model.model.", "base_model.model."), {}, "0 of its 42 tensors have a place"),
    "no prefix": (rename("base_model.model.", ""), {}, "0 of its 42 tensors have a place"),
    "layers of a larger model": (
        rename("layers.2.", "layers.9."),
        {},
        r"28 of its 42(.|\n)*layers\.9\..* has no place",
    ),
    "missing layers": (drop("layers.1."), {}, r"14 that it should have are missing"),
    "missing factors": (drop("lora_B"), {}, r"21 that it should have are missing"),
    "nothing": (lambda tensors: tensors.clear(), {}, r"holds 0 tensors"),
    "another width": (each(lambda t: torch.cat([t, t], -1)), {}, "size mismatch"),
    "another rank": (lambda tensors: None, {"r": 2}, "size mismatch"),
    "a rank beyond all": (lambda tensors: None, {"r": 10**12}, r"announces rank 1000000000000"),
    "no rank": (lambda tensors: None, {"r": 0}, r"announces rank 0"),
    "whole numbers": (each(lambda t: t.to(torch.int8)), {}, r"is stored as int8"),
    "NaN": (lambda tensors: next(iter(tensors.values())).fill_(float("nan")), {}, r"holds NaN or infinite"),
    "unknown modules": (lambda tensors: None, {"target_modules": ["nothing_like_it"]}, r"does not fit its base model"),
    "another kind": (lambda tensors: None, {"peft_type": "IA3"}, r"not a LoRA or DoRA adapter"),
    "a rank in words": (lambda tensors: None, {"r": "four"}, r"adapter_config\.json cannot be read"),
    "no base": (lambda tensors: None, {"base_model_name_or_path": ""}, r"names no base model"),
}


@pytest.mark.parametrize("name", NOT_FITTING)
def test_an_adapter_that_does_not_fit(name: str, trained: dict[str, Path], tmp_path: Path):
    change, config, message = NOT_FITTING[name]
    folder = Path(shutil.copytree(trained["lora"], tmp_path / "adapter"))
    edit_tensors(folder / "adapter_model.safetensors", change)
    edit_json(folder / "adapter_config.json", **config)
    with pytest.raises(SpinError, match=message):
        load(str(folder), dtype="float32")


@pytest.mark.parametrize("text", ["[]", "{", "null", '{"peft_type": ["LORA"]}', "\xff"])
def test_a_damaged_configuration_of_an_adapter(text: str, trained: dict[str, Path], tmp_path: Path):
    folder = Path(shutil.copytree(trained["lora"], tmp_path / "adapter"))
    (folder / "adapter_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(SpinError, match=r"adapter_config\.json cannot be read"):
        load(str(folder))


def test_an_adapter_that_changes_nothing_is_told(trained: dict[str, Path]):
    said: list[str] = []
    loaded = load(str(trained["untrained"]), dtype="float32", say=said.append)
    assert any("changes nothing" in note for note in loaded.notes)
    assert any("changes nothing" in line for line in said)


def test_the_base_of_an_adapter_may_lie_beside_it(trained: dict[str, Path], tiny_folder: TinyFolder, tmp_path: Path):
    shutil.copytree(tiny_folder("llama", chat=True), tmp_path / "base")
    folder = Path(shutil.copytree(trained["lora"], tmp_path / "adapter"))
    edit_json(folder / "adapter_config.json", base_model_name_or_path="../base")
    shutil.copy(tmp_path / "base" / "config.json", folder)  # as some trainers leave it
    assert load(str(folder), dtype="float32").checkpoint.folder == folder
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(trained["dora"]))
    with pytest.raises(SpinError, match="is an adapter itself"):
        load(str(folder))
    edit_json(folder / "adapter_config.json", base_model_name_or_path="./gone")
    with pytest.raises(SpinError, match="There is no folder gone"):
        load(str(folder))


def test_a_model_with_an_adapter_beside_it_is_refused(trained: dict[str, Path], copy: Path):
    """transformers would put the adapter on, and what is edited is not what is loaded."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(trained["lora"] / name, copy)
    with pytest.raises(SpinError, match=r"adapter_config\.json lies beside the model"):
        load(str(copy))


def test_an_adapter_has_its_own_tokenizer_and_template(trained: dict[str, Path], tmp_path: Path):
    folder = Path(shutil.copytree(trained["lora"], tmp_path / "adapter"))
    (folder / "chat_template.jinja").write_text("OWN {{ messages[0].content }}")
    assert load(str(folder), dtype="float32").tokenizer.chat_template.startswith("OWN")
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text('{"chat_template": "BESIDE"}')
    assert load(str(folder), dtype="float32").tokenizer.chat_template == "BESIDE"
    own = tiny.tokenizer()
    own.chat_template = "THEIRS"
    own.save_pretrained(folder)
    assert load(str(folder), dtype="float32").tokenizer.chat_template == "THEIRS"


def test_an_adapter_may_bring_a_larger_vocabulary(tiny_folder: TinyFolder, tmp_path: Path):
    base = tiny_folder("llama", chat=True)
    model = tiny.build("llama")
    model.resize_token_embeddings(tiny.VOCABULARY + 2, mean_resizing=False)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    edit_json(tmp_path / "adapter_config.json", base_model_name_or_path=str(base))
    loaded = load(str(tmp_path), dtype="float32")
    assert loaded.model.get_input_embeddings().weight.shape[0] == tiny.VOCABULARY + 2
    assert torch.equal(loaded.model.lm_head.weight, model.lm_head.weight)


# Weights


def test_tensors_without_a_place(copy: Path):
    """Of the layers: another model would be measured. Of anything else: told."""
    odd = {"vision_tower.proj.weight": torch.ones(2, 2)}
    edit_tensors(copy / "model.safetensors", lambda tensors: tensors.update(odd))
    loaded = load(str(copy), dtype="float32")
    assert any("vision_tower.proj.weight" in note for note in loaded.notes)
    name = "model.layers.1.self_attn.q_proj.bias"
    edit_tensors(copy / "model.safetensors", lambda tensors: tensors.update({name: torch.ones(32)}))
    with pytest.raises(SpinError, match=rf"has no place, such as {name}"):
        load(str(copy))


def test_notes_of_a_load_are_in_the_doctor_s_report_and_in_the_record(copy: Path):
    from spin_llm.pipeline.doctor import examine, lines
    from spin_llm.pipeline.folder import model_record
    from spin_llm.settings import RunSettings

    edit_tensors(copy / "model.safetensors", lambda tensors: tensors.update({"audio.proj": torch.ones(2)}))
    settings = RunSettings(str(copy), dtype="float32", concepts=(("fairness", "starter"), ("privacy", "starter")))
    assert any(line.startswith("! load") and "audio.proj" in line for line in lines(examine(settings)))
    assert "audio.proj" in str(model_record(settings, load(str(copy), dtype="float32")).notes)


def test_layers_that_the_configuration_leaves_out(copy: Path):
    edit_json(copy / "config.json", num_hidden_layers=2)
    with pytest.raises(SpinError, match=r"no place, such as model\.layers\.2\."):
        load(str(copy))


@pytest.mark.parametrize("values", [{"num_hidden_layers": 10**9}, {"hidden_size": 2**20, "intermediate_size": 2**22}])
def test_a_configuration_of_a_much_larger_model(values: dict[str, int], copy: Path):
    edit_json(copy / "config.json", **values)
    with pytest.raises(SpinError, match=r"lacks most of the model's tensors"):
        load(str(copy))


def test_buffers_of_older_versions_pass(copy: Path):
    """Rotary frequencies were stored once for each layer."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(copy / "model.safetensors", lambda tensors: tensors.update({name: torch.ones(4)}))
    assert load(str(copy), dtype="float32").notes == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float, copy: Path):
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(copy / "model.safetensors", lambda tensors: tensors[name][3].fill_(value))
    with pytest.raises(SpinError, match=rf"{name} holds NaN or infinite"):
        load(str(copy))


def test_warnings_of_a_load_are_kept(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of the logger and of the warnings module, once each; what is for programmers is not."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    genuine = AutoTokenizer.from_pretrained

    def warn(*args: Any, **options: Any) -> Any:
        for _ in range(2):
            logging.get_logger("transformers.anything").warning("the rope of\n this model is odd")
        warnings.warn("an odd dtype", stacklevel=1)
        warnings.warn("call another name", DeprecationWarning, stacklevel=1)
        return genuine(*args, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", warn)
    assert load(str(copy), dtype="float32").notes == ("the rope of this model is odd", "an odd dtype")


# Tokenizers


def test_a_folder_without_tokenizer(copy: Path):
    for file in [*copy.glob("tokenizer*"), *copy.glob("special*")]:
        file.unlink()
    with pytest.raises(SpinError, match=r"has no tokenizer(.|\n)*copy the tokenizer's files"):
        load(str(copy))


def test_a_tokenizer_of_a_larger_vocabulary(copy: Path):
    words = tiny.tokenizer(chat=True)
    words.add_tokens([f"<|new-{number}|>" for number in range(tiny.VOCABULARY)])
    words.save_pretrained(copy)
    rows = tiny.VOCABULARY
    assert load(str(copy), dtype="float32").tokenizer.convert_tokens_to_ids(f"<|new-{rows - 1}|>") >= rows
    words.chat_template = f"<|new-{rows - 1}|>{{{{ messages[0].content }}}}"
    words.save_pretrained(copy)
    with pytest.raises(SpinError, match=rf"embedding has {rows} rows: \d+ tokens, such as '<\|new-{rows - 1}\|>'"):
        load(str(copy))


# Kinds of models


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, r"classifies texts.*writes no answers"),
        ({"architectures": ["LlamaForTokenClassification"]}, r"labels tokens"),
        ({"model_type": "t5", "is_encoder_decoder": True}, r"encoder-decoder model \(t5\)"),
        ({"model_type": "vit"}, r"could not be loaded as a causal language model(.|\n)*give a chat model"),
        ({"model_type": None}, r"names no model_type"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}, r"code of its own(.|\n)*--trust-remote-code"),
    ],
)
def test_models_that_write_no_answers(values: dict[str, Any], message: str, copy: Path):
    edit_json(copy / "config.json", **values)
    with pytest.raises(SpinError, match=message):
        load(str(copy))


def test_code_that_is_trusted_and_missing(copy: Path):
    edit_json(copy / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"})
    with pytest.raises(SpinError, match=r"lacks own\.py"):
        load(str(copy), trust_remote_code=True)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["modules.json", "config.json"], "sentence-transformers model"),
        (["model_index.json"], "diffusers pipeline"),
        (["run.json"], "run folder of spin-llm"),
        (["params.json", "consolidated.safetensors"], "its authors' own code"),
        (["checkpoint-5/config.json"], r"give .*checkpoint-5"),
    ],
)
def test_folders_of_other_things(files: list[str], message: str, tmp_path: Path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(SpinError, match=message):
        resolve(str(tmp_path))


def test_names_that_are_no_repositories(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """Told without asking the hub."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: pytest.fail("asked the hub"))
    monkeypatch.chdir(copy.parent)
    for name in ("./no-such-folder", "../no/such", "/no/such", "a/b/c", "no/such/", "~/no-such-folder"):
        with pytest.raises(SpinError, match="There is no folder"):
            resolve(name)
    with pytest.raises(SpinError, match="misspelling of 'model'"):
        resolve("modle")
    with pytest.raises(SpinError, match=r"a file of a model(.|\n)*give its folder"):
        resolve(str(copy / "model.safetensors"))
    for name in ("", " ", "a\0b", "x" * 5000, "https://huggingface.co/owner/name"):
        with pytest.raises(SpinError):
            resolve(name)
    assert is_repository("owner/name-1.5_B")


# The hub


class Answer:
    def __init__(self, status: int) -> None:
        self.status_code, self.headers, self.request = status, {}, None


def http(kind: str, status: int) -> Exception:
    made = getattr(huggingface_hub.errors, kind).__new__(getattr(huggingface_hub.errors, kind))
    Exception.__init__(made, f"{status} for url")
    made.response = Answer(status)
    return made


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


CAUSES: dict[str, tuple[Exception, str]] = {
    "gated": (http("GatedRepoError", 403), r"it is gated(.|\n)*huggingface\.co/owner/name(.|\n)*hf auth login"),
    "missing": (http("RepositoryNotFoundError", 404), r"the hub has no such model(.|\n)*misspelt"),
    "revision": (http("RevisionNotFoundError", 404), r"the hub has no such model"),
    "rate": (http("HfHubHTTPError", 429), r"too many requests(.|\n)*later"),
    "token": (http("HfHubHTTPError", 401), r"refused the token"),
    "server": (http("HfHubHTTPError", 503), r"HTTP 503"),
    "disk": (OSError(28, "No space left on device"), r"The disk is full(.|\n)*HF_HOME"),
    "cut": (OSError("Consistency check failed: file should be of size 9 but has size 3"), r"interrupted in the middle"),
    "network": (caused(OSError("no snapshot"), OSError("Connection refused")), r"Connection refused(.|\n)*no network"),
    "name": (huggingface_hub.errors.HFValidationError("bad"), r"no name of a repository"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_failed_download_tells_its_cause(name: str, monkeypatch: pytest.MonkeyPatch):
    error, message = CAUSES[name]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SpinError, match=message):
        resolve("owner/name")


def test_the_proxy_and_the_offline_mode_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert "through the proxy of HTTPS_PROXY" in str(
        hub_error("model", "owner/name", OSError("refused"), "give a folder.")
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in str(hub_error("model", "owner/name", OSError("refused"), "give a folder."))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model.Q4.gguf", "README.md"], r"GGUF files \(model\.Q4\.gguf\)(.|\n)*download one of them"),
        (["config.json", "pytorch_model.bin"], r"pickled weights \(pytorch_model\.bin\), which are never read"),
    ],
)
def test_repositories_of_other_formats(
    files: list[str], message: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "snapshot").mkdir()
    if "config.json" in files:
        shutil.copy(copy / "config.json", tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(tmp_path / "snapshot"))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repository: files)
    with pytest.raises(SpinError, match=message):
        resolve("owner/name")


@pytest.mark.parametrize("trusted", [False, True])
def test_what_is_fetched(trusted: bool, tiny_folder: TinyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Configuration, vocabulary, templates, the files of the index, code where it is trusted and needed; no second
    copies."""
    from huggingface_hub.utils import filter_repo_objects

    source = Path(shutil.copytree(tiny_folder("llama", chat=True, max_shard_size="20KB"), tmp_path / "source"))
    shards = sorted(file.name for file in source.glob("*.safetensors"))
    needed = [
        *shards,
        "words.tiktoken",
        "additional_chat_templates/tool.jinja",
        *(["modeling_own.py"] if trusted else []),
    ]
    useless = [
        "consolidated.safetensors",
        "original/model.safetensors",
        "pytorch_model.bin",
        "m.gguf",
        "onnx/config.json",
    ]
    useless += [
        "checkpoint-5/model.safetensors",
        "checkpoint-5/trainer_state.json",
        *([] if trusted else ["modeling_own.py"]),
    ]
    edit_json(source / "config.json", auto_map={"AutoConfig": "modeling_own.Own"})
    for name in {*needed, *useless} - set(shards):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    names = [str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()]
    snapshot = tmp_path / ("a" * 40)

    def fetch(repository: str, **options: Any) -> str:
        options.pop("revision", None)
        for name in filter_repo_objects(names, **options):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    resolve("owner/name", trust_remote_code=trusted)
    fetched = {str(file.relative_to(snapshot)) for file in snapshot.rglob("*") if file.is_file()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", *needed} <= fetched
    assert not fetched & set(useless)


# Dtypes


@pytest.mark.parametrize(
    ("capability", "emulating", "native"),
    [((7, 5), True, False), ((6, 1), True, False), ((8, 0), True, True), ((9, 0), True, True), ((8, 0), False, False)],
)
def test_bfloat16_that_a_card_emulates_is_not_native(
    capability: tuple[int, int], emulating: bool, native: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *card: capability)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or (emulating and native)
    )
    monkeypatch.setattr(torch.version, "hip", None)
    card = torch.device("cuda", 0)
    assert native_bfloat16(card) == native
    assert pick_dtype("auto", card) == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)])
def test_bfloat16_of_processors(flags: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: flags[0])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: flags[1])
    assert native_bfloat16(torch.device("cpu")) == any(flags)


# Layouts


def test_unknown_modules_beside_an_mlp_are_left_alone():
    """One convolution layer and one of attention, as LFM2 has them."""
    import transformers

    config = transformers.Lfm2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    unknown = unknown_modules(model)
    assert unknown
    assert all(name.startswith("model.layers.0.conv.") for name in unknown)
    found = {matrix.name.removesuffix(".weight") for matrix in editable_matrices(model, "all")}
    assert not found & set(unknown)
    assert {matrix.layer for matrix in editable_matrices(model, "mlp")} == {0, 1}


@pytest.mark.parametrize(("template", "why"), [("chat", "reads no option thinking"), ("raw", "is for chat templates")])
def test_a_wrong_template_option_is_told_before_the_weights_are_read(
    tiny_folder: TinyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, why: str
):
    def read(*_: object, **__: object) -> None:
        raise AssertionError("the weights are read")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", read)
    model, options = str(tiny_folder("llama", chat=True)), {"thinking": "1"}
    with pytest.raises(SpinError, match=why):
        _ = Run(RunSettings(model, template=template, template_options=options), tmp_path).model
    baseline = make("lora", model, template=template, template_options=(("thinking", "1"),))
    with pytest.raises(SpinError, match=why):
        train_baseline(baseline, tmp_path / "baseline")
