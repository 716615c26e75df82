"""Options from settings: their flags, types and help.

In: groups of settings. Out: the text under each field. Left out: what is done with them (the commands).
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path


@cache
def helps(group: type) -> dict[str, str]:
    """The text under each field of a group, and of those that it is made of."""
    tree = ast.parse(Path(str(sys.modules[group.__module__].__file__)).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == group.__name__)
    found = {name: text for base in group.__mro__[1:-1] for name, text in helps(base).items()}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return found
