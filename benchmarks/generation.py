"""How many tokens a second answers are made at, beside a plain use of transformers, and what bounds it.

    python benchmarks/generation.py [--only speed,parts,sizes] [--rounds 3] [--prompts 96] [--model smollm2-135m]
    python benchmarks/generation.py --only parts --parts "the whole,packed weights" --model my.gguf --threads 1
    python benchmarks/generation.py --only server --model my.gguf --server NAME@http://localhost:8000/v1

In: a model, questions of the starter set, evenly drawn. Out: tables, and results/generation.json, section by section.
`speed`: `generate` of `spin_llm.generation.batches` against `model.generate` one prompt at a time, and in batches of
eight in the order of the questions; `parts`: what each saving is worth, by leaving it out, and what was tried beside
them; `sizes`: a step of decoding by rows of the batch, beside the bounds of bytes and of matrix products; `server`: the
same questions to a server. What is compared runs in interleaved rounds of one process, in the same dtype, greedily,
with the same new tokens; a rate is answer tokens by wall-clock seconds, and by processor seconds, which a busy machine
stretches less (of this process: of a server only the first counts). Left out: GPUs (gpu.py).
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import RESULTS, machine, recorded, span, store, timing

from spin_llm.data import load_questions, render_prompt
from spin_llm.generation import batches as generation
from spin_llm.generation import decoding
from spin_llm.generation.batches import Answer, end_tokens, generate
from spin_llm.generation.server import served, server_answers, server_completer
from spin_llm.models import LoadedModel, load
from spin_llm.models.structure import decoder_layers
from spin_llm.settings.checks import default_axes


@dataclass(frozen=True)
class Settings:
    """What is measured, and how much of it."""

    model: str = "smollm2-135m"
    dtype: str = "bfloat16"
    template: str = "chat"
    prompts: int = 96
    new_tokens: int = 64
    rounds: int = 3
    threads: int = os.cpu_count() or 1
    parts: str = ""
    server: str = ""
    output: str = str(RESULTS / "generation.json")


def drawn_prompts(count: int) -> list[str]:
    """`count` questions, evenly spread over the starter set's, in its order."""
    everything = [
        question.prompt for axis in default_axes(()) for question in load_questions("starter", concept=axis).questions
    ]
    return [everything[place * len(everything) // count] for place in range(min(count, len(everything)))]


def naive(loaded: LoadedModel, prompts: Sequence[list[int]], new_tokens: int, size: int) -> int:
    """`model.generate` in batches of `size` in the order given, padded at the left; how many tokens the answers
    have."""
    ends = end_tokens(loaded)
    tokens = 0
    for start in range(0, len(prompts), size):
        ids, mask = decoding.padded(prompts[start : start + size], loaded.device)
        with torch.inference_mode():
            output = loaded.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=ends[0]
            )
        for row in output[:, ids.shape[1] :].tolist():
            tokens += next((place for place, token in enumerate(row) if token in ends), len(row))
    return tokens


def ours(loaded: LoadedModel, prompts: Sequence[str], settings: Settings) -> list[Answer]:
    batches = generate(loaded, prompts, template=settings.template, new_tokens=settings.new_tokens)
    return sorted((answer for batch in batches for answer in batch), key=lambda answer: answer.index)


def tokens_of(answers: Sequence[Answer]) -> int:
    return sum(answer.tokens or 0 for answer in answers)


def rates(
    runs: dict[str, Callable[[], int]],
    rounds: int,
    within: dict[str, Callable[[], AbstractContextManager[Any]]] | None = None,
) -> dict[str, Any]:
    """Tokens a second of each run, one round after the other, by the wall clock and by the processor's time; what a
    run is `within` is set up outside the time."""
    made: dict[str, list[tuple[int, float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            with (within or {}).get(name, nullcontext)():
                wall, processor = time.perf_counter(), time.process_time()
                tokens = run()
                made[name].append((tokens, time.perf_counter() - wall, time.process_time() - processor))
            tokens, wall, processor = made[name][-1]
            print(f"  {name}: {tokens} tokens in {wall:.1f} s, {processor:.1f} s of processor time", flush=True)
    return {
        name: {
            "tokens": rows[0][0],
            "tokens_a_second": timing([tokens / wall for tokens, wall, _ in rows]),
            "tokens_a_processor_second": timing([tokens / processor for tokens, _, processor in rows]),
        }
        for name, rows in made.items()
    }


def speed(settings: Settings) -> dict[str, Any]:
    """Tokens a second, ours against both plain ways, and the ratios."""
    loaded = load(settings.model, dtype=settings.dtype)
    prompts = drawn_prompts(settings.prompts)
    encoded = [render_prompt(loaded.tokenizer, prompt, settings.template) for prompt in prompts]
    naive(loaded, encoded[:1], 2, 1)
    found = rates(
        {
            "one at a time": lambda: naive(loaded, encoded, settings.new_tokens, 1),
            "batches of 8": lambda: naive(loaded, encoded, settings.new_tokens, 8),
            "ours": lambda: tokens_of(ours(loaded, prompts, settings)),
        },
        settings.rounds,
    )
    return {"questions": len(prompts), "rates": found, "ours_times": against(found, "ours")}


def in_order(lengths: Sequence[int], new_tokens: int) -> list[list[int]]:
    """Batches of the usual size, of prompts as they come."""
    del new_tokens
    size = generation.BATCH_PROMPTS
    return [list(range(start, min(start + size, len(lengths)))) for start in range(0, len(lengths), size)]


@contextmanager
def packed(model: torch.nn.Module) -> Iterator[None]:
    """Linear layers multiply by copies of their weights in the order that oneDNN reads: twice the memory."""
    linear = [module for module in model.modules() if type(module) is torch.nn.Linear]
    for module in linear:
        weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), 64)
        module.forward = partial(_packed_product, weight=weight, bias=module.bias)
    try:
        yield
    finally:
        for module in linear:
            del module.forward


def _packed_product(states: torch.Tensor, *, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


@contextmanager
def compiled(model: Any) -> Iterator[None]:
    """Every decoder layer by inductor, of changing shapes; the first run of it compiles."""
    layers = decoder_layers(model)[1]
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


@contextmanager
def static_cache(model: Any) -> Iterator[None]:
    """Room for all keys and values from the start, in one call of `generate`."""
    import transformers

    static = partial(transformers.GenerationConfig, cache_implementation="static", disable_compile=True)
    with mock.patch.object(transformers, "GenerationConfig", static), nothing_kept():
        yield


def nothing_kept() -> AbstractContextManager[Any]:
    return mock.patch.object(decoding, "keeps_states", return_value=False)


PARTS: dict[str, Callable[[Any], AbstractContextManager[Any]]] = {
    "the whole": lambda model: nullcontext(),
    "one call of `generate`": lambda model: nothing_kept(),
    "no shared beginning": lambda model: mock.patch.object(decoding, "alike", return_value=0),
    "prompts of a batch at once": lambda model: mock.patch.object(decoding, "PREFILL", 10**6),
    "no early leaving": lambda model: mock.patch.object(decoding, "STRIDE", 10**6),
    "keys for every head": lambda model: mock.patch.object(decoding, "grouped_heads", nullcontext),
    "prompts in the order given": lambda model: mock.patch.object(generation, "plan_batches", in_order),
    "batches of 32": lambda model: mock.patch.object(generation, "BATCH_PROMPTS", 32),
    "packed weights": packed,
    "eager attention": eager_attention,
    "static cache, one call": static_cache,
    "compiled layers": compiled,
}
USUAL = tuple(PARTS)[:-1]  # compiling takes minutes


def parts(settings: Settings) -> dict[str, Any]:
    """Tokens a second with one saving left out, or one thing more, at a time; the ratios of the whole to each, and how
    many answers differ from the whole's."""
    loaded = load(settings.model, dtype=settings.dtype)
    prompts = drawn_prompts(settings.prompts)
    ours(loaded, prompts[:2], settings)
    texts: dict[str, list[str]] = {}

    def run(name: str) -> int:
        answers = ours(loaded, prompts, settings)
        texts[name] = [answer.answer for answer in answers]
        return tokens_of(answers)

    names = settings.parts.split(",") if settings.parts else list(USUAL)
    within = {name: partial(PARTS[name], loaded.model) for name in names}
    found = rates({name: partial(run, name) for name in names}, settings.rounds, within)
    whole = names[0]
    differ = {name: sum(a != b for a, b in zip(texts[whole], texts[name], strict=True)) for name in names}
    print(f"answers that differ from those of {whole}: {differ}")
    return {
        "questions": len(prompts),
        "rates": found,
        "ours_times": against(found, whole),
        "answers_that_differ": differ,
    }


SIZES = (16, 32, 64, 96, 128)


def sizes(settings: Settings) -> dict[str, Any]:
    """Seconds of a step of decoding by rows of the batch; beside them those of its matrix products alone (measured, and
    by the rate of large products), and of reading the weights once."""
    loaded, linear = load(settings.model, dtype=settings.dtype), torch.nn.functional.linear
    model, steps = loaded.model, 4
    weights = [m.weight for m in model.modules() if type(m) is torch.nn.Linear]
    shapes, by_shape = Counter(w.shape for w in weights), {w.shape: w for w in weights}
    parameters = sum(w.numel() for w in weights)
    block = torch.zeros(2**26, dtype=torch.int64)  # 512 MiB
    reading = min(_seconds(block.sum) for _ in range(5)) / block.nbytes * parameters * weights[0].element_size()
    largest = max((w for w in weights if len(w) < 50_000), key=torch.Tensor.numel)  # not the head
    large = torch.randn(1024, largest.shape[1]).to(largest.dtype)
    rate = 2 * 1024 * largest.numel() / min(_seconds(lambda: linear(large, largest)) for _ in range(5))
    prompt = render_prompt(loaded.tokenizer, drawn_prompts(1)[0], settings.template)
    rows = []
    print(f"{parameters / 1e6:.0f}M weights, read in {reading * 1e3:.0f} ms; products at {rate / 1e9:.0f} GFLOP/s")
    for size in SIZES:
        step, alone = [], []
        for _ in range(settings.rounds):
            short, long = (
                _seconds(partial(decoding.decode, loaded, [prompt] * size, tokens, ())) for tokens in (1, 1 + steps)
            )
            step.append((long - short) / steps)
            inputs = {shape: torch.randn(size, shape[1]).to(largest.dtype) for shape in shapes}
            alone.append(sum(n * _seconds(partial(linear, inputs[s], by_shape[s]), 2) for s, n in shapes.items()))
        rows.append(
            {"rows": size, "step": timing(step), "products": timing(alone), "bound": 2 * size * parameters / rate}
        )
        times = f"{span(timing(step, 1e-3), 0)} ms a step, products alone {span(timing(alone, 1e-3), 0)} ms"
        print(f"{size:4} rows: {times}, bound {rows[-1]['bound'] * 1e3:.0f} ms", flush=True)
    return {"weights": parameters, "reading_seconds": reading, "flops": rate, "sizes": rows}


def _seconds(run: Callable[[], object], times: int = 1) -> float:
    """Processor seconds of one run, by its threads: a busy machine stretches them less than the clock's."""
    start = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - start) / times / torch.get_num_threads()


def server(settings: Settings) -> dict[str, Any]:
    """The same questions in this process and to a server: tokens a second, and the ratio."""
    name = served(settings.server)
    if name is None:
        raise SystemExit("--server NAME@http://host:port/v1 says which server to ask.")
    loaded, completer = load(settings.model, dtype=settings.dtype), server_completer(name[1], name[0])
    prompts, asked = drawn_prompts(settings.prompts), {"template": settings.template, "new_tokens": settings.new_tokens}

    def from_server() -> int:
        return tokens_of([answer for one in server_answers(completer, prompts, **asked) for answer in one])

    ours(loaded, prompts[:2], settings)
    found = rates({"ours": lambda: tokens_of(ours(loaded, prompts, settings)), "server": from_server}, settings.rounds)
    return {"questions": len(prompts), "rates": found, "ours_times": against(found, "ours")}


def against(found: dict[str, Any], name: str) -> dict[str, dict[str, float]]:
    """How many times the tokens a second of each other run `name` makes: the median and range over rounds."""
    ratios = {}
    for other in found:
        if other != name:
            ratios[other] = {
                kind: timing(
                    [a / b for a, b in zip(found[name][kind]["rounds"], found[other][kind]["rounds"], strict=True)]
                )
                for kind in ("tokens_a_second", "tokens_a_processor_second")
            }
            wall, processor = (span(ratio, 2) for ratio in ratios[other].values())
            print(f"{name} / {other}: {wall} times the tokens a second; by processor time {processor}")
    for run, row in found.items():
        print(f"{run:40} {span(row['tokens_a_second'], 1):>28} tokens/s")
    return ratios


SECTIONS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "speed": speed,
    "parts": parts,
    "sizes": sizes,
    "server": server,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="speed,parts,sizes", help=f"sections, of {','.join(SECTIONS)}")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args(arguments))
    only = given.pop("only").split(",")
    if unknown := set(only) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    settings = Settings(**given)
    torch.set_num_threads(settings.threads)
    for name in only:
        print(f"\n== {name}", flush=True)
        made = machine(settings.threads)
        store(Path(settings.output), name, {"made": made, "settings": recorded(settings), **SECTIONS[name](settings)})
    print(f"\n{settings.output}")


if __name__ == "__main__":
    main()
