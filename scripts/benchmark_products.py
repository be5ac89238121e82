"""Time the products of bytes of each instruction that can run here, beside float32 matrix products.

    python scripts/benchmark_products.py [--columns 64 384 784] [--rounds 7] [INSTRUCTION ...]

Instructions are those of dumap/kernels/instructions.py, such as VNNI_512 or PAIRS_256; default: the one that dumap
takes here, and plain multiplications. To try those of an older processor, tell numba and OpenBLAS to compute for it:

    NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES= OPENBLAS_CORETYPE=Haswell python scripts/benchmark_products.py

Each round times one after the other, on one core. Prints billions of products a second, medians of all rounds, as
JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
from numba import njit

from dumap.kernels import instructions
from dumap.kernels.instructions import PACK, Instruction
from dumap.kernels.products import INSTRUCTION, ROWS, multiplier
from dumap.kernels.threads import one_thread

LEFT_ROWS, RIGHT_ROWS, REPEATS = 64, 304, 20


def by_bytes(using: Instruction, left: np.ndarray, right: np.ndarray) -> Callable[[], np.ndarray]:
    """Return a function that multiplies by an instruction; it gives the products of the codes themselves."""
    multiply_pack = multiplier(using)

    @njit(nogil=True)
    def multiply(rows: np.ndarray, packs: np.ndarray, out: np.ndarray) -> None:
        for low in range(0, len(rows), ROWS):
            for pack in range(len(packs)):
                multiply_pack(rows[low : low + ROWS], packs[pack], out[low : low + ROWS], PACK * pack)

    rows: np.ndarray = (left.astype(np.int32) + using.shift).astype(using.left_type)
    packs = right.reshape(-1, PACK, right.shape[1] // 4, 4).transpose(0, 2, 1, 3).copy()
    out = np.zeros((len(left), len(right)), np.int32)

    def run() -> np.ndarray:
        multiply(rows, packs, out)
        return out

    added = using.shift * right.sum(axis=1, dtype=np.int64)
    if not np.array_equal(run() - added, left.astype(np.int64) @ right.T.astype(np.int64)):
        raise SystemExit(f"{using.name or 'plain multiplications'}: wrong products")
    return run


def measure(names: list[str], columns: int, rounds: int) -> dict[str, float]:
    """Return billions of products a second."""
    rng = np.random.default_rng(0)
    left, right = (rng.integers(-127, 128, (rows, columns)).astype(np.int8) for rows in (LEFT_ROWS, RIGHT_ROWS))
    a, b = left.astype(np.float32), right.astype(np.float32)
    runs: dict[str, Callable[[], np.ndarray]] = {
        name: by_bytes(getattr(instructions, name), left, right) for name in names
    }
    runs["float32"] = lambda: a @ b.T
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.thread_time()
            for _ in range(REPEATS):
                run()
            seconds[name].append(time.thread_time() - began)
    products = REPEATS * left.shape[0] * right.shape[0] * columns
    return {name: round(products / statistics.median(found) / 1e9, 1) for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = {name: found for name, found in vars(instructions).items() if isinstance(found, Instruction)}
    parser.add_argument("names", nargs="*", metavar="INSTRUCTION", help=", ".join(every))
    parser.add_argument("--columns", type=int, nargs="+", default=[64, 384, 784])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    own = [name for name, found in every.items() if found is INSTRUCTION]
    names = args.names or list(dict.fromkeys([*own, "PLAIN"]))
    with one_thread():
        print(json.dumps({str(columns): measure(names, columns, args.rounds) for columns in args.columns}))


if __name__ == "__main__":
    main()
