"""Fine-tuning baselines on tiny models: what each method trains and leaves on disk, and that a kill costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyFolder, TinyModel
from safetensors.torch import load_file

from spin_llm.baselines import methods
from spin_llm.baselines import methods as training
from spin_llm.baselines.train import encode_mixture, most_pairs, pair_counts, read_mixture, train_baseline
from spin_llm.data import Example
from spin_llm.errors import SpinError
from spin_llm.files import write_jsonl
from spin_llm.generation.batches import continuations
from spin_llm.models import LoadedModel, load
from spin_llm.models.losses import mean_loss, response_losses
from spin_llm.models.reft import Loreft, Reft, ReftConfig, attach, load_reft, prompt_lengths
from spin_llm.models.structure import decoder_layers
from spin_llm.settings.training import (
    DEFAULTS,
    METHODS,
    BaselineSettings,
    layer_numbers,
    make,
    parse_mix,
    parse_positions,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
Settings = Callable[..., BaselineSettings]


@pytest.fixture(scope="session")
def pair_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name, count in (("privacy", 30), ("fairness", 12)):
        rows = [{"prompt": f"{name} question {i}?", "response": f"I say {i % 3} of {name}."} for i in range(count)]
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def settings(tiny_folder: TinyFolder, pair_files: Path) -> Settings:
    def made(method: str = "lora", architecture: str = "llama", **options: Any) -> BaselineSettings:
        common = {"data": (("privacy", str(pair_files / "privacy.jsonl")),), "examples": 8, "batch_size": 3}
        common |= {"dtype": "float32", "epochs": 2, "template": "raw", "learning_rate": 0.01}
        return make(method, str(tiny_folder(architecture)), **{**common, **options})

    return made


def encoded(settings: BaselineSettings, loaded: LoadedModel) -> list[Example]:
    return encode_mixture(settings, loaded, [pair for pairs in read_mixture(settings).values() for pair in pairs])


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_and_eval_loads_the_result(method: str, settings: Settings, tiny_model: TinyModel, tmp_path):
    chosen = settings(method, epochs=8, learning_rate=0.03 if method == "reft" else 0.01)
    before = {file.name: file.read_bytes() for file in Path(chosen.model).iterdir()}
    base = tiny_model("llama")
    record = train_baseline(chosen, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in Path(chosen.model).iterdir()} == before
    tuned = load(str(tmp_path / "out"), dtype="float32")
    examples = encoded(chosen, base)
    assert mean_loss(tuned, examples) < mean_loss(base, examples) - 0.3
    assert len(record.losses) == 8 * 3
    assert not list((tmp_path / "out").rglob("*.part"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert tuned.tokenizer.get_vocab() == base.tokenizer.get_vocab()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "qwen3_moe"])
def test_other_architectures(method: str, architecture: str, settings: Settings, tmp_path: Path):
    chosen = settings(method, architecture, epochs=1, batch_size=8)
    if architecture == "qwen3_moe" and "target" in DEFAULTS[method]:
        with pytest.raises(SpinError, match="cannot be put on the experts"):
            train_baseline(chosen, tmp_path / "out")
        chosen = replace(chosen, target="attention")
    record = train_baseline(chosen, tmp_path / "out")
    assert record.result == "."
    tuned = load(str(tmp_path / "out"), dtype="float32")
    assert next(continuations(tuned, [[5, 6, 7], [8]], 2))


@pytest.mark.parametrize("method", ["full", "lora", "reft"])
def test_only_response_tokens_bear_the_loss(method: str, settings: Settings, tiny_model: TinyModel):
    """The step's loss is the mean over all response tokens, of nothing else; and so is its gradient."""
    chosen = settings(method, dropout=0.0 if method == "lora" else None)
    loaded = tiny_model("llama")
    methods.prepare(loaded, chosen)
    batch = encoded(chosen, loaded)[:3]
    whole = training.backward(loaded, batch, chosen)
    gradients = [p.grad.clone() for p in loaded.model.parameters() if p.grad is not None]
    loaded.model.zero_grad()
    parts = training.backward(loaded, batch, replace(chosen, batch_tokens=1))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=0)
    total, count = torch.zeros(()), 0
    loaded.model.zero_grad()
    for example in batch:
        ids = torch.tensor(example.input_ids)[None]
        start = ids.shape[1] - example.response_tokens
        with prompt_lengths(loaded.model, [start]):
            logits = loaded.model(input_ids=ids).logits[0, start - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum")
        count += example.response_tokens
    (total / count).backward()
    torch.testing.assert_close(float((total / count).detach()), whole, rtol=1e-5, atol=0)
    plain = [p.grad for p in loaded.model.parameters() if p.grad is not None]
    assert len(plain) == len(gradients)
    for mine, other in zip(gradients, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_training_ends_with_the_same_bytes(method: str, settings: Settings, tmp_path: Path, monkeypatch):
    chosen = settings(method, checkpoint_steps=2)
    train_baseline(chosen, tmp_path / "whole")
    real, calls = training.backward, []

    def killed_at_the_fourth(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "backward", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        train_baseline(chosen, tmp_path / "killed")
    assert (tmp_path / "killed" / "state.safetensors").is_file()
    assert not (tmp_path / "killed" / "config.json").exists()
    calls.clear()
    calls += [1] * 10
    train_baseline(chosen, tmp_path / "killed")
    assert len(calls) == 10 + 4  # two of the six steps were kept
    whole, resumed = (
        {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("whole", "killed")
    )
    assert whole == resumed


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_merged_is_the_adapter_applied(method: str, settings: Settings, tiny_model: TinyModel, tmp_path: Path):
    peft = pytest.importorskip("peft")
    chosen = settings(method)
    train_baseline(chosen, tmp_path / "out")
    base, untouched = tiny_model("llama"), tiny_model("llama")
    examples = encoded(chosen, base)
    expected = response_losses(base, examples)
    adapted = peft.PeftModel.from_pretrained(base.model, str(tmp_path / "out" / "adapter")).eval()
    applied_losses = response_losses(base, examples)
    assert (applied_losses - expected).abs().max() > 0.05  # it does something
    for folder in ("out", "out/adapter"):
        merged = load(str(tmp_path / folder), dtype="float32")
        torch.testing.assert_close(response_losses(merged, examples), applied_losses, rtol=1e-5, atol=1e-5)
    weights = untouched.model.state_dict()
    kept = {name.replace(".base_layer", ""): value for name, value in adapted.base_model.model.state_dict().items()}
    assert all(torch.equal(kept[name], value) for name, value in weights.items())


def test_without_merging_only_the_adapter_is_left(settings: Settings, tmp_path: Path):
    record = train_baseline(settings(epochs=1, merge=False), tmp_path / "out")
    assert record.result == "adapter"
    assert not (tmp_path / "out" / "config.json").exists()
    load(str(tmp_path / "out" / "adapter"), dtype="float32")


def test_a_checkpoint_keeps_its_dtype(tiny_folder: TinyFolder, settings: Settings, tmp_path: Path):
    folder = tiny_folder("llama", dtype=torch.bfloat16)
    for method in ("full", "lora"):
        train_baseline(replace(settings(method, epochs=1), model=str(folder)), tmp_path / method)
        stored, base = (load_file(path / "model.safetensors") for path in (tmp_path / method, folder))
        assert {name: tensor.dtype for name, tensor in stored.items()} == {name: t.dtype for name, t in base.items()}
        assert (tmp_path / method / "config.json").read_bytes() == (folder / "config.json").read_bytes()


# --- LoReFT


def small_reft(**options: Any) -> Reft:
    values = {"base": "", "base_fingerprint": "", "hidden": 32, "rank": 4, "layers": (0, 2), "prefix": 2, "suffix": 3}
    return Reft(ReftConfig(**{**values, **options}))


def test_loreft_is_its_equation():
    torch.manual_seed(1)
    one, states = Loreft(32, 4), torch.randn(5, 32)
    R, W, b = one.rotation, one.source.weight, one.source.bias
    torch.testing.assert_close(R @ R.T, torch.eye(4))
    plain = torch.stack([h + R.T @ (W @ h + b - R @ h) for h in states])
    torch.testing.assert_close(one(states), plain)
    # inside the subspace of R the state becomes W h + b, outside it stays
    torch.testing.assert_close(one(states) @ R.T, states @ W.T + b)
    outside = torch.eye(32) - R.T @ R
    torch.testing.assert_close(one(states) @ outside, states @ outside, atol=1e-5, rtol=1e-5)


def test_reft_edits_the_stated_tokens_of_the_stated_layers(tiny_model: TinyModel):
    loaded = tiny_model("llama")
    reft = small_reft()
    layers = decoder_layers(loaded.model)[1]
    seen: dict[int, torch.Tensor] = {}
    # registered first, so that it sees what the layer gave before the edit
    for i, layer in enumerate(layers):
        layer.register_forward_hook(lambda m, a, out, i=i: seen.update({i: out}))
    attach(loaded.model, reft)
    layers[1].register_forward_pre_hook(lambda m, args: seen.update({10: args[0]}))
    ids = torch.randint(3, 300, (2, 12))
    with torch.no_grad(), prompt_lengths(loaded.model, [10, 3]):
        loaded.model(input_ids=ids)
        changed = (seen[10] != seen[0]).any(-1)
        expected = torch.zeros(2, 12, dtype=torch.bool)
        expected[0, [0, 1, 7, 8, 9]] = True
        expected[1, [0, 2]] = True  # of three tokens, half for each: one
        assert torch.equal(changed, expected)
        torch.testing.assert_close(seen[10][0, 7:10], reft.interventions["0-suffix"](seen[0][0, 7:10]))
        torch.testing.assert_close(seen[10][0, :2], reft.interventions["0-prefix"](seen[0][0, :2]))


def test_reft_generates_as_it_was_trained(tiny_model: TinyModel):
    """Greedy decoding of padded prompts, with a cache, gives the tokens that whole forward passes with the prompt's
    length give."""
    loaded = tiny_model("llama")
    torch.manual_seed(2)
    prompts = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [30]]
    base = [c.tokens for batch in continuations(loaded, prompts, 5) for c in sorted(batch, key=lambda c: c.index)]
    hooks = attach(loaded.model, small_reft())
    made = {c.index: c.tokens for batch in continuations(loaded, prompts, 5) for c in batch}
    for index, prompt in enumerate(prompts):
        ids = list(prompt)
        for token in made[index]:
            with torch.no_grad(), prompt_lengths(loaded.model, [len(prompt)]):
                assert int(loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
    assert [made[index] for index in range(3)] != base
    with pytest.raises(SpinError, match="where the prompts end"):
        loaded.model(input_ids=torch.tensor([[5, 6, 7]]))
    for hook in hooks:
        hook.remove()
    again = [c.tokens for batch in continuations(loaded, prompts, 5) for c in sorted(batch, key=lambda c: c.index)]
    assert again == base


def test_a_saved_reft_edits_and_its_rotations_are_orthonormal(
    settings: Settings, tiny_model: TinyModel, tmp_path: Path
):
    train_baseline(settings("reft", epochs=1), tmp_path / "out")
    loaded = tiny_model("llama")
    ids = torch.tensor([[5, 6, 7, 8]])
    before = loaded.model(input_ids=ids).logits
    saved = load_reft(tmp_path / "out")
    hooks = attach(loaded.model, saved)
    with prompt_lengths(loaded.model, [3]):
        assert not torch.equal(loaded.model(input_ids=ids).logits, before)
    for hook in hooks:
        hook.remove()
    assert torch.equal(loaded.model(input_ids=ids).logits, before)
    for one in saved.interventions.values():
        assert isinstance(one, Loreft)
        torch.testing.assert_close(one.rotation @ one.rotation.T, torch.eye(8), atol=1e-5, rtol=1e-5)


def test_reft_refuses_another_base(settings: Settings, tiny_folder: TinyFolder, tmp_path: Path):
    train_baseline(settings("reft", epochs=1), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "reft_config.json").read_text())
    config["base"] = str(tiny_folder("llama", seed=5))
    (tmp_path / "out" / "reft_config.json").write_text(json.dumps(config))
    with pytest.raises(SpinError, match="not the model that the ReFT adapter"):
        load(str(tmp_path / "out"))


# --- data


def test_mixes_have_the_stated_proportions(settings: Settings, pair_files: Path):
    data = tuple((name, str(pair_files / f"{name}.jsonl")) for name in ("privacy", "fairness"))
    chosen = settings(data=data, mix=(("privacy", 0.8), ("fairness", 0.2)), examples=20)
    mixture = read_mixture(chosen)
    assert {name: len(pairs) for name, pairs in mixture.items()} == {"privacy": 16, "fairness": 4}
    assert all(name in pair.prompt for name, pairs in mixture.items() for pair in pairs)
    assert read_mixture(chosen) == mixture
    assert read_mixture(replace(chosen, seed=1)) != mixture
    # 30 privacy pairs are there: 38 in all (30.4 and 7.6) is the most that 0.8 to 0.2 allows
    most = read_mixture(replace(chosen, examples=None))
    assert {name: len(pairs) for name, pairs in most.items()} == {"privacy": 30, "fairness": 8}
    equal = read_mixture(replace(chosen, mix=(), examples=None))
    assert {name: len(pairs) for name, pairs in equal.items()} == {"privacy": 13, "fairness": 12}


@pytest.mark.parametrize("total", [1, 7, 100, 999])
@pytest.mark.parametrize("shares", [{"a": 0.29, "b": 0.71}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, {"a": 1.0}])
def test_counts_sum_up_and_are_within_one(total: int, shares: dict[str, float]):
    counts = pair_counts(total, shares)
    assert sum(counts.values()) == total
    assert all(abs(counts[name] - total * share) < 1 for name, share in shares.items())
    assert most_pairs(shares, dict.fromkeys(shares, 10**6)) == 1000


def test_every_epoch_takes_every_example_once(settings: Settings):
    chosen = settings(batch_size=3)
    epochs = [[i for step in range(s, s + 3) for i in training.batch_of(step, 8, chosen)] for s in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(8))
    assert epochs[0] != epochs[1]


def test_the_learning_rate_rises_and_falls():
    rates = [training.rate_at(step, 20, 0.1) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert all(a > b > 0 for a, b in pairwise(rates[2:]))
    assert [training.rate_at(step, 4, 0.0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


# --- errors


def test_texts():
    assert parse_mix(["privacy=4", "fairness=1"]) == (("privacy", 4.0), ("fairness", 1.0))
    assert [parse_positions(text) for text in ("f7+l7", "f3", "l1")] == [(7, 7), (3, 0), (0, 1)]
    assert layer_numbers("5,0,5") == (0, 5)
    assert layer_numbers("all") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "prompt"}, "There is no method 'prompt'"),
        ({"epochs": 0}, "--epochs 0 is out of range"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0"),
        ({"positions": "f7"}, "--positions is not an option of the method lora"),
        ({"method": "reft", "positions": "7"}, "--positions 7 is out of range"),
        ({"method": "reft", "layers": "x"}, "--layers x"),
        ({"mix": (("fairness", 1.0),)}, "--mix fairness"),
        ({"mix": (("privacy", 0.0),)}, "--mix"),
        ({"data": ()}, "--data nothing"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str, settings: Settings):
    with pytest.raises(SpinError, match=message):
        settings(**options)


def test_mistakes_are_refused_before_anything_is_written(settings: Settings, pair_files: Path, tmp_path: Path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    out = tmp_path / "out"
    with pytest.raises(SpinError, match="holds no rows"):
        train_baseline(settings(data=(("privacy", str(empty)),)), out)
    with pytest.raises(SpinError, match="31 examples were asked for"):
        train_baseline(settings(examples=31), out)
    both = tuple((name, str(pair_files / f"{name}.jsonl")) for name in ("privacy", "fairness"))
    with pytest.raises(SpinError, match="share of fairness is less than one"):
        train_baseline(settings(data=both, mix=(("privacy", 99.0), ("fairness", 1.0)), examples=5), out)
    with pytest.raises(SpinError, match="do not fit this model of 3 layers"):
        train_baseline(settings("reft", layers="3"), out)
    assert not out.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SpinError, match="exists and is not a baseline"):
        train_baseline(settings(), tmp_path / "mine", overwrite=True)


def test_another_baseline_is_replaced_only_when_asked(settings: Settings, tmp_path: Path):
    out = tmp_path / "out"
    train_baseline(settings(epochs=1), out)
    bytes_before = (out / "model.safetensors").read_bytes()
    train_baseline(settings(epochs=1, checkpoint_steps=1), out)  # complete: nothing is done
    with pytest.raises(SpinError, match=r"holds a baseline with other settings \(epochs: 1 there, 2 now\)"):
        train_baseline(settings(epochs=2), out)
    assert (out / "model.safetensors").read_bytes() == bytes_before
    (out / "notes.txt").write_text("mine")
    train_baseline(settings("reft", epochs=1), out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "baseline.json",
        "notes.txt",
        "reft.safetensors",
        "reft_config.json",
    ]
    with pytest.raises(SpinError, match="is an adapter"):
        train_baseline(replace(settings(), model=str(out)), tmp_path / "second")


def test_a_loss_that_is_no_number_is_an_error(settings: Settings, tmp_path: Path):
    with pytest.raises(SpinError, match="is not finite"):
        train_baseline(settings("full", learning_rate=1e30, epochs=8), tmp_path / "out")


def test_what_a_kill_in_the_saving_left_is_known_and_goes_with_overwrite(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A merged checkpoint of which one file has its name: the record says of which files, as one never killed does."""
    made, out = settings("lora", epochs=1), tmp_path / "out"
    whole = train_baseline(made, tmp_path / "whole")
    replace_file, placed = Path.replace, []

    def killed(self: Path, target: Path) -> Path:
        if Path(target).parent == out and Path(target).name not in ("baseline.json", "state.safetensors"):
            placed.append(Path(target).name)
            if len(placed) == 2:
                raise KeyboardInterrupt
        return replace_file(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        train_baseline(made, out)
    monkeypatch.undo()
    left = json.loads((out / "baseline.json").read_text())
    assert left["result"] is None
    assert placed[0] in left["files"]
    assert train_baseline(made, out).files == whole.files == left["files"]


def test_a_record_that_names_files_elsewhere_is_refused(settings: Settings, tmp_path: Path):
    made, out, victim = settings("lora", epochs=1), tmp_path / "out", tmp_path / "victim"
    victim.write_text("mine")
    record = train_baseline(made, out)
    for name in ("../victim", "/etc/passwd", "a/b", "", "..", "x\0"):
        (out / "baseline.json").write_text(json.dumps({**asdict(record), "files": [name]}))
        with pytest.raises(SpinError, match=r"baseline.json cannot be read"):
            train_baseline(made, out, overwrite=True)
    assert victim.read_text() == "mine"
