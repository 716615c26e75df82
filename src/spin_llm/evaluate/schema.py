"""What results.json may look like, as a JSON Schema (2020-12) that is shipped with the package.

In: the content of a results.json. Out: nothing, or SpinError with the first thing that is wrong, and where. The schema
is `results.schema.json` beside the package's modules; parts that a run may lack are not required, and fields that it
does not name are refused in axes, style and phrases. Left out: whether the numbers agree with one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spin_llm.errors import SpinError
from spin_llm.files import read_json

SCHEMA = Path(__file__).parents[1] / "results.schema.json"


def results_schema() -> dict[str, Any]:
    return dict(read_json(SCHEMA))


def check_results(results: Mapping[str, Any]) -> None:
    """Raise SpinError where `results` departs from the schema; needs the package jsonschema."""
    try:
        import jsonschema
    except ImportError:
        raise SpinError(
            "Checking results needs the package jsonschema.", change="install it: pip install jsonschema."
        ) from None
    checker = jsonschema.Draft202012Validator(results_schema())
    wrong = jsonschema.exceptions.best_match(checker.iter_errors(results))
    if wrong is not None:
        raise SpinError(
            f"results.json is not as its schema says at {wrong.json_path}: {wrong.message}",
            cause="it was written by another version of spin-llm, or changed by hand.",
        )
