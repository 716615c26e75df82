"""The sums over the examples of a batch, of what each one's gradient at a matrix is: the inner loop of all scoring.

In: both factors of the gradients of one matrix, left (examples, tokens, rows) and right (examples, tokens, columns),
and how many tokens each example has. Out: added to float32 accumulators (rows, columns), with g_s = left_s^T right_s,

    absolute += sum_s |g_s|        squared += sum_s g_s^2        signed += share * sum_s g_s

The same sums in three homes. `by_operators`: torch's, on any device, the reference: each g_s is written to memory in
the compute dtype and read again, which takes longer than the product where matrices are large. `Compiled`: one C
function (accumulate.c), built when it is first needed by the machine's own compiler, around the product of small blocks
that torch itself uses: g_s is a block at a time, in float32, and stays in the cache. `by_triton`: the same on CUDA
(triton_kernel.py); nobody's default before it was measured there. Left out: what is summed for which statistic
(importance.py).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from spin_llm.models.loading import native_bfloat16

Totals = dict[str, torch.Tensor]
SOURCE = Path(__file__).with_name("accumulate.c")
FLAGS = ("-O3", "-march=native", "-fPIC")
KINDS = ("absolute", "squared", "signed")
RELEASE = "_ZN2at6native7cpublas14brgemm_releaseEb"
BLOCK_PRODUCTS = {
    torch.float32: "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb",
    torch.bfloat16: "_ZN2at6native7cpublas6brgemmEllllllbPKN3c108BFloat16ES5_Pfb",
}


# (totals, left, right, tokens, share): adds one batch to those accumulators of a matrix that are in `totals`; of the
# rows of example s the first tokens[s] are real
Accumulate = Callable[[Totals, torch.Tensor, torch.Tensor, Sequence[int], float], None]


def accumulation(device: torch.device, dtype: torch.dtype) -> Accumulate:
    """The fastest of the homes that there is for these factors."""
    library = compiled(compiler()) if device.type == "cpu" else None
    return library if library is not None and dtype in library.products else by_operators


def slow_sums(device: torch.device, dtype: torch.dtype) -> str:
    """Why scoring on a CPU goes without the compiled sums, in half a sentence; nothing where it does not."""
    if device.type != "cpu" or accumulation(device, dtype) is not by_operators:
        return ""
    if (found := compiler()) is None:
        return "there is no C compiler"
    if compiled(found) is None:
        return f"{found} could not build them"
    return f"there are none for {str(dtype).removeprefix('torch.')} on this processor"


def by_operators(totals: Totals, left: torch.Tensor, right: torch.Tensor, tokens: Sequence[int], share: float) -> None:
    """Torch's operators, an example at a time, in one buffer of the compute dtype."""
    gradient = torch.empty(left.shape[-1], right.shape[-1], dtype=left.dtype, device=left.device)
    for example, length in enumerate(tokens):
        torch.mm(left[example, :length].t(), right[example, :length], out=gradient)
        if "signed" in totals:
            totals["signed"].add_(gradient, alpha=share)
        if "squared" in totals:
            wide = gradient.float()
            totals["squared"].addcmul_(wide, wide)
        if "absolute" in totals:
            totals["absolute"].add_(gradient.abs_())


def checked(totals: Totals, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors with their last axis contiguous, for a kernel that writes where it is told to; TypeError where the
    accumulators are not what it takes them for."""
    shape = (left.shape[2], right.shape[2])
    if left.dtype != right.dtype or any(
        total.dtype != torch.float32 or total.shape != shape or not total.is_contiguous() for total in totals.values()
    ):
        raise TypeError("accumulators are contiguous float32, of the matrix's shape; factors of one dtype")
    return left if left.stride(-1) == 1 else left.contiguous(), right if right.stride(-1) == 1 else right.contiguous()


class _Factor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("example", ctypes.c_int64),
        ("token", ctypes.c_int64),
        ("width", ctypes.c_int64),
    )


class _Sums(ctypes.Structure):
    _fields_ = (*((kind, ctypes.c_void_p) for kind in KINDS), ("share", ctypes.c_float))


class Compiled:
    """The sums by accumulate.c; `products` are torch's of small blocks, by the dtype of the factors."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.function = library.accumulate
        self.function.argtypes = (
            _Factor,
            _Factor,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_bool,
            _Sums,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )
        self.products = block_products()

    def __call__(
        self, totals: Totals, left: torch.Tensor, right: torch.Tensor, tokens: Sequence[int], share: float
    ) -> None:
        """Raises MemoryError where there is no room for a copy of the factors, TypeError for other accumulators."""
        left, right = checked(totals, left, right)
        counts = (ctypes.c_int64 * len(tokens))(*tokens)
        places = [totals[kind].data_ptr() if kind in totals else None for kind in KINDS]
        factors = (_Factor(side.data_ptr(), side.stride(0), side.stride(1), side.shape[2]) for side in (left, right))
        pairs, sums = left.dtype == torch.bfloat16, _Sums(*places, share)
        if self.function(*factors, counts, len(tokens), pairs, sums, *self.products[left.dtype]):
            raise MemoryError("no memory for the factors of a batch's gradients")


def block_products() -> dict[torch.dtype, tuple[ctypes.c_void_p, ctypes.c_void_p]]:
    """torch's product of small blocks (`at::native::cpublas::brgemm`) and what ends its use, for the dtypes that this
    processor multiplies itself; nothing where this torch has none."""
    native = {
        torch.float32: torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"),
        torch.bfloat16: native_bfloat16(torch.device("cpu")),
    }
    found = {}
    for library in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        symbols = ctypes.CDLL(str(library))
        for dtype, name in BLOCK_PRODUCTS.items():
            names = (name, RELEASE)
            if native[dtype] and torch.backends.mkldnn.is_available() and all(hasattr(symbols, n) for n in names):
                product, release = (ctypes.cast(getattr(symbols, n), ctypes.c_void_p) for n in names)
                found[dtype] = product, release
    return found


def compiler() -> str | None:
    """The machine's C compiler: what CC names (nothing, where it is empty), or cc, gcc or clang."""
    names = [os.environ["CC"]] if "CC" in os.environ else ["cc", "gcc", "clang"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


@cache
def compiled(compiler: str | None) -> Compiled | None:
    """accumulate.c, built and loaded; None where that does not work.

    It is built anew in every process (half a second), for the processor that it runs on. Its threads are torch's: the
    OpenMP calls are left open and found in the library that torch has loaded.
    """
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        built, library = Path(folder, "accumulate.o"), Path(folder, "accumulate.so")
        for command in (
            [*FLAGS, "-fopenmp", "-c", str(SOURCE), "-o", str(built)],
            ["-shared", str(built), "-o", str(library)],
        ):
            if subprocess.run([compiler, *command], capture_output=True, check=False).returncode:
                return None
        try:
            return Compiled(ctypes.CDLL(str(library)))
        except (OSError, AttributeError):  # a symbol is missing: another OpenMP than torch's
            return None
