"""Models that reason before they answer, templates with a switch, a date, options and several names: by the command."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from harness import Command, Outcome
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

pytest_plugins = ["harness"]
SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>", "<|on|>", "<|off|>", "<think>", "</think>")
ASK = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|eos|>{% endfor %}"
SWITCH = ASK + "{% if enable_thinking is defined and not enable_thinking %}<|off|>{% else %}<|on|>{% endif %}"
NO, YES = ("<|off|>", "N", "o", "<|eos|>"), ("<|on|>", "<think>", "x", "y", "</think>", "M", "a", "<|eos|>")
ENDLESS = ("<|on|>", "<think>", "x", "y", "x")
Evaluate = Callable[..., Outcome]


def scripted(folder: Path, *paths: tuple[str, ...], template: str | dict[str, str] = SWITCH) -> Path:
    """A model that writes after a token the one that follows it in a path, whatever was before."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    named = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL, strict=False))
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, **named, additional_special_tokens=list(SPECIAL[3:])
    )
    words.chat_template = template
    size = len(tokens) + 1
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for path in paths:
            for before, after in itertools.pairwise(path):
                model.lm_head.weight[tokens.index(after), tokens.index(before)] = 1.0
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def evaluate(command: Command, tmp_path: Path) -> Evaluate:
    """`spin-llm eval EDITED --baseline BASE`, a few questions on privacy; the run folder is `run`."""
    asked = tmp_path / "asked.jsonl"
    asked.write_text(
        "".join(json.dumps({"prompt": f"Where is {i}?", "response": f"There, {i}."}) + "\n" for i in range(9))
    )
    data = ["--questions", f"privacy={asked}", "--protect", f"general={asked}", "--examples", 4, "--max-questions", 3]

    def run(edited: Path, base: Path, *words: object) -> Outcome:
        where = ["-o", tmp_path / "run", "--dtype", "float32", "--new-tokens", 2]
        return command("eval", edited, "--baseline", base, *data, *where, *words)

    return run


def rows(folder: Path, name: str, model: str) -> list[dict[str, Any]]:
    made = [json.loads(line) for line in (folder / "run" / f"{name}.jsonl").read_text().splitlines()]
    return [row for row in made if row["model"] == model and row["axis"] == "privacy"]


def test_reasoning_is_off_then_on_with_a_budget_of_its_own(evaluate: Evaluate, tmp_path: Path):
    model = scripted(tmp_path / "model", NO, YES)
    for words, answer, reasoning, missing in (
        ([], "No", "", None),
        (["--thinking-tokens", 4], "Ma", "xy", None),  # and the answer has its two tokens beside
        (["--thinking-tokens", 3], "", "xy", "unclosed reasoning"),
        (["--template-option", "enable_thinking=true", "--new-tokens", 9], "Ma", "xy", None),
    ):
        outcome = evaluate(model, model, *words, "--overwrite")
        assert outcome.code == 0, outcome.err
        for row in rows(tmp_path, "generations", "edited"):
            assert (row["answer"], row["reasoning"], row["missing"]) == (answer, reasoning, missing)
        verdicts = {row["verdict"] for row in rows(tmp_path, "verdicts", "edited")}
        assert (verdicts == {None}) == (missing is not None), "the judge sees the answer, or nothing"
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert dict(settings["template_options"]) == {"enable_thinking": "true"}


def test_reasoning_without_an_end_is_no_verdict_and_said(evaluate: Evaluate, tmp_path: Path):
    base, edited = scripted(tmp_path / "base", YES), scripted(tmp_path / "edited", ENDLESS)
    outcome = evaluate(edited, base, "--thinking-tokens", 20)
    assert outcome.code == 0, outcome.err
    assert "unclosed reasoning" in outcome.out + outcome.err
    assert {row["verdict"] for row in rows(tmp_path, "verdicts", "edited")} == {None}
    assert None not in {row["verdict"] for row in rows(tmp_path, "verdicts", "base")}
    assert all(row["reasoning"].startswith("xyx") for row in rows(tmp_path, "generations", "edited"))


def test_the_date_is_that_of_the_run_s_start(evaluate: Evaluate, tmp_path: Path):
    dated = ASK + "{{ '<|on|>' if strftime_now('%Y') == '2020' else '<|off|>' }}"
    model = scripted(tmp_path / "model", NO, YES, template=dated)
    assert evaluate(model, model, "--date", "2020-02-02", "--new-tokens", 9).code == 0
    first = (tmp_path / "run" / "generations.jsonl").read_bytes()
    assert b'"Ma"' in first
    (tmp_path / "run" / "results.json").unlink()
    (tmp_path / "run" / "generations.jsonl").unlink()
    assert evaluate(model, model, "--new-tokens", 9).code == 0
    assert (tmp_path / "run" / "generations.jsonl").read_bytes() == first
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["date"] == "2020-02-02"
    other = evaluate(model, model, "--new-tokens", 9, "--date", "2021-02-02")
    assert (other.code, "2020-02-02" in other.err, "2021-02-02" in other.err) == (2, True, True), other.err


def test_other_template_options_are_another_run(evaluate: Evaluate, tmp_path: Path):
    model = scripted(tmp_path / "model", NO, YES)
    assert evaluate(model, model).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    other = evaluate(model, model, "--template-option", "enable_thinking=true")
    assert other.code == 2
    assert re.search("template.options?", other.err), other.err
    assert {path: path.read_bytes() for path in before} == before


def test_one_of_several_templates_is_chosen_by_name(evaluate: Evaluate, tmp_path: Path):
    model = scripted(tmp_path / "model", NO, YES, template={"short": ASK + "<|off|>", "long": ASK + "<|on|>"})
    asked = evaluate(model, model)
    assert (asked.code, "short" in asked.err, "long" in asked.err) == (2, True, True)
    assert "Traceback" not in asked.err
    for name, answer in (("short", "No"), ("long", "Ma")):
        assert evaluate(model, model, "--template", name, "--new-tokens", 9, "--overwrite").code == 0
        assert {row["answer"] for row in rows(tmp_path, "generations", "base")} == {answer}
    assert evaluate(model, model, "--template", "middle", "--overwrite").code == 2
