"""The compiled kernels of linear layers: built once by this machine's C compiler, and kept for the next process."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

import torch

from swarm.caches import cache_dir
from swarm.models.linear.grid import Grid

log = logging.getLogger(__name__)

SOURCES = ("linear/kernel.c", "linear/floats.c", "span/attention/decode.c")
"""Within `swarm.models`."""
STEPS = (32, 16)
PANEL = 16
UNIT = 256
"""As in kernel.c: columns whose products are summed as whole numbers, outputs side by side, and columns whose scales,
if they are whole numbers, count the same."""
SCALES = {torch.float32: 0, torch.float16: 1, torch.int8: 2}
"""As there: what scales and minima are."""
KINDS = ("plain C", "AVX2", "VNNI", "AMX")
TIMEOUT = 120.0
"""Seconds that a compiler may take."""
HOW_TO_HAVE_ONE = "install a C compiler (Debian, Ubuntu: apt install gcc; macOS: xcode-select --install)"


class Weight(ctypes.Structure):
    """`weight_t` of kernel.c."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("columns", "out", "group", "step")),
        *((name, ctypes.c_int) for name in ("bits", "kind", "floats", "offset")),
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "least", "units", "least_units")),
        ("table", ctypes.c_uint8 * 16),
    )


class Kernel:
    """The library, loaded. `best`: the index in `KINDS` of what this processor can do; `float_panel`: outputs of a
    panel of float32 weights, 0 where there is no kernel for them."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        pointer = ctypes.c_void_p
        self._product = library.swarm_product
        self._product.argtypes = (pointer, pointer, pointer, ctypes.c_long, pointer, ctypes.c_int, ctypes.c_int)
        self._product.restype = None
        self._quantize = library.swarm_quantize
        numbers = (ctypes.c_long, ctypes.c_int, pointer, ctypes.c_int)
        self._quantize.argtypes = (pointer, *numbers, pointer, pointer, pointer, pointer, ctypes.c_int)
        self._quantize.restype = None
        self.best: int = library.swarm_best()
        self.attend = library.swarm_attend
        self.attend.argtypes = (pointer, pointer, ctypes.c_long, pointer, ctypes.c_long, ctypes.c_int)
        self.attend.restype = None
        self._floats = library.swarm_floats
        self._floats.argtypes = (*[pointer] * 4, *[ctypes.c_long] * 3, ctypes.c_int)
        self._floats.restype = None
        self.float_panel: int = library.swarm_float_panel()

    def multiply(self, weight: Weight, rows: torch.Tensor, product: torch.Tensor, kind: int) -> None:
        """float32 `[rows, columns]`, contiguous, into `[rows, out]`. Other Python threads go on meanwhile."""
        count, columns = rows.shape
        work = torch.empty(count * columns // weight.step * (3 + weight.step // 2), dtype=torch.int32)
        threads = torch.get_num_threads()
        address = ctypes.addressof(weight)
        self._product(address, rows.data_ptr(), product.data_ptr(), count, work.data_ptr(), threads, kind)

    def multiply_floats(
        self, weight: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor | None, product: torch.Tensor
    ) -> None:
        """float32 `[rows, columns]`, contiguous, with `[panels, columns, float_panel]` into `[rows, out]`. Other Python
        threads go on meanwhile."""
        added, shape = None if bias is None else bias.data_ptr(), (*rows.shape, product.shape[1])
        pointers = weight.data_ptr(), rows.data_ptr(), added, product.data_ptr()
        self._floats(*pointers, *shape, torch.get_num_threads())

    def quantize(self, weight: torch.Tensor, cuts: torch.Tensor, grid: Grid) -> torch.Tensor:
        """float32 `[out, in]`, contiguous, onto `grid`, whose numbers are written; returns the squares of differences
        in each group. `cuts`: float32, of a group's range, what is tried to be left out at either end."""
        errors = torch.empty(grid.scales.shape)
        least = None if grid.least is None else grid.least.data_ptr()
        count = errors.numel(), grid.bits, cuts.data_ptr(), len(cuts)
        written = grid.codes.data_ptr(), grid.scales.data_ptr(), least, errors.data_ptr()
        self._quantize(weight.data_ptr(), *count, *written, torch.get_num_threads())
        return errors


@functools.cache
def kernel() -> Kernel | None:
    """The kernel, built if need be; None where there is no C compiler, or it cannot build it. The log says why."""
    try:
        return _load(cache_dir() / "kernels")
    except (OSError, subprocess.SubprocessError) as error:
        words = " ".join(str(getattr(error, "stderr", None) or error).split())[:300]
        log.warning(
            "linear layers compute slowly here, quantized ones most, without their compiled kernels: %s; %s",
            words,
            HOW_TO_HAVE_ONE,
        )
        return None


def _load(folder: Path) -> Kernel:
    """Threads are those of torch where its library of them can be shared, else one."""
    shared = _openmp()
    try:
        return Kernel(_built(folder, openmp=shared))
    except OSError:
        if not shared:
            raise
        return Kernel(_built(folder, openmp=False))


def _openmp() -> bool:
    """Make torch's threads known to what is loaded from now on; whether there are such."""
    if sys.platform != "linux":
        return False
    torch.get_num_threads()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        if "libgomp" in (path := line.rpartition(" ")[2]):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            return True
    return False


def _built(folder: Path, openmp: bool) -> Path:
    """The library's file. One for each source, compiler and processor. Raises OSError, SubprocessError."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        raise FileNotFoundError("there is no C compiler (cc, gcc or clang)")
    sources = {name: resources.files("swarm.models").joinpath(name).read_bytes() for name in SOURCES}
    flags = _flags(openmp)
    version = _run([compiler, "--version"])
    name = hashlib.sha256(b"\0".join([*sources.values(), version, " ".join(flags).encode(), _processor()])).hexdigest()[
        :24
    ]
    path = folder / f"{name}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as place:
            built, library = [], Path(place) / "kernels.so"
            for source, text in sources.items():
                code = Path(place) / Path(source).name
                code.write_bytes(text)
                built.append(str(code.with_suffix(".o")))
                _run([compiler, *flags, "-c", str(code), "-o", built[-1]])
            # Without -fopenmp: the threads are those that torch has, not others beside them.
            _run([compiler, "-shared", *built, "-o", str(library), "-lm"])
            library.replace(path)
    return path


def _flags(openmp: bool) -> list[str]:
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    # A product and a sum are rounded as they are written, on every processor alike.
    flags = ["-O3", native, "-ffp-contract=off", "-fno-math-errno", "-fPIC"]
    return [*flags, "-fopenmp"] if openmp else flags


def _processor() -> bytes:
    """What the processor can do, in words that differ where -march=native does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor().encode()
    return "\n".join(
        next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags")
    ).encode()


def _run(command: list[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
    return done.stdout
