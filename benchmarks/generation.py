"""How many tokens a second answers are made at, beside what a plain user of transformers would write.

    python benchmarks/generation.py [--only speed,parts] [--rounds 3] [--prompts 96] [--model smollm2-135m]

In: a model, questions of the starter set, evenly drawn. Out: tables, and results/generation.json, section by section.
`speed`: `evaluate.generation.generate` against `model.generate` one prompt at a time, and in batches of eight in the
order of the questions; `parts`: what each saving is worth, by leaving it out. What is compared runs in interleaved
rounds of one process, in the same dtype, greedily, with the same new tokens; a rate is answer tokens by wall-clock
seconds, and by processor seconds, which a busy machine stretches less. Left out: GPUs, servers.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import RESULTS, machine, recorded, span, store, timing

from spin_llm.data import load_questions, render_prompt
from spin_llm.generation import batches as generation
from spin_llm.generation import decoding
from spin_llm.generation.batches import end_tokens, generate
from spin_llm.models import LoadedModel, load
from spin_llm.settings.sources import default_axes


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


def ours(loaded: LoadedModel, prompts: Sequence[str], settings: Settings) -> int:
    batches = generate(loaded, prompts, template=settings.template, new_tokens=settings.new_tokens)
    return sum(answer.tokens for batch in batches for answer in batch)


def rates(runs: dict[str, Callable[[], int]], rounds: int) -> dict[str, Any]:
    """Tokens a second of each run, one round after the other, by the wall clock and by the processor's time."""
    made: dict[str, list[tuple[int, float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
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
            "ours": lambda: ours(loaded, prompts, settings),
        },
        settings.rounds,
    )
    return {"questions": len(prompts), "rates": found, "ours_times": against(found, "ours")}


def in_order(lengths: Sequence[int], new_tokens: int) -> list[list[int]]:
    """Batches of the usual size, of prompts as they come."""
    del new_tokens
    size = generation.BATCH_PROMPTS
    return [list(range(start, min(start + size, len(lengths)))) for start in range(0, len(lengths), size)]


def parts(settings: Settings) -> dict[str, Any]:
    """Tokens a second with one saving left out at a time, and the ratios of the whole to each."""
    loaded = load(settings.model, dtype=settings.dtype)
    prompts = drawn_prompts(settings.prompts)
    ours(loaded, prompts[:2], settings)

    def without(change: AbstractContextManager[Any]) -> Callable[[], int]:
        def run() -> int:
            with change:
                return ours(loaded, prompts, settings)

        return run

    patched = mock.patch.object
    found = rates(
        {
            "ours": without(nullcontext()),
            "the head's input as transformers gives it": without(
                patched(decoding, "contiguous_head", lambda model: nullcontext())
            ),
            "prompts in the order given": without(patched(generation, "plan_batches", in_order)),
        },
        settings.rounds,
    )
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


SECTIONS: dict[str, Callable[[Settings], dict[str, Any]]] = {"speed": speed, "parts": parts}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"sections, of {','.join(SECTIONS)}")
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
