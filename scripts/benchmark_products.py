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
from dumap.kernels.instructions import PACK_ROWS, Instruction
from dumap.kernels.products import INSTRUCTION, LEFT_ROWS, make_multiply_pack
from dumap.kernels.threads import one_thread

LEFT_COUNT, RIGHT_COUNT, REPEATS = 64, 304, 20


def byte_multiplier(instruction: Instruction, left: np.ndarray, right: np.ndarray) -> Callable[[], np.ndarray]:
    """Return a function that multiplies by an instruction; it gives the products of the codes themselves."""
    multiply_pack = make_multiply_pack(instruction)

    @njit(nogil=True)
    def multiply(rows: np.ndarray, packs: np.ndarray, products: np.ndarray) -> None:
        for start in range(0, len(rows), LEFT_ROWS):
            for pack in range(len(packs)):
                multiply_pack(
                    rows[start : start + LEFT_ROWS], packs[pack], products[start : start + LEFT_ROWS], PACK_ROWS * pack
                )

    rows: np.ndarray = (left.astype(np.int32) + instruction.left_offset).astype(instruction.left_type)
    packs = right.reshape(-1, PACK_ROWS, right.shape[1] // 4, 4).transpose(0, 2, 1, 3).copy()
    products = np.zeros((len(left), len(right)), np.int32)

    def multiply_all() -> np.ndarray:
        multiply(rows, packs, products)
        return products

    shift_products = instruction.left_offset * right.sum(axis=1, dtype=np.int64)
    if not np.array_equal(multiply_all() - shift_products, left.astype(np.int64) @ right.T.astype(np.int64)):
        raise SystemExit(f"{instruction.name or 'plain multiplications'}: wrong products")
    return multiply_all


def measure_speeds(names: list[str], columns: int, rounds: int) -> dict[str, float]:
    """Return billions of products a second."""
    rng = np.random.default_rng(0)
    left, right = (rng.integers(-127, 128, (rows, columns)).astype(np.int8) for rows in (LEFT_COUNT, RIGHT_COUNT))
    left_floats, right_floats = left.astype(np.float32), right.astype(np.float32)
    multipliers: dict[str, Callable[[], np.ndarray]] = {
        name: byte_multiplier(getattr(instructions, name), left, right) for name in names
    }
    multipliers["float32"] = lambda: left_floats @ right_floats.T
    seconds: dict[str, list[float]] = {name: [] for name in multipliers}
    for _ in range(rounds):
        for name, multiply in multipliers.items():
            start_time = time.thread_time()
            for _ in range(REPEATS):
                multiply()
            seconds[name].append(time.thread_time() - start_time)
    products = REPEATS * left.shape[0] * right.shape[0] * columns
    return {name: round(products / statistics.median(times) / 1e9, 1) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    instruction_by_name = {
        name: instruction for name, instruction in vars(instructions).items() if isinstance(instruction, Instruction)
    }
    parser.add_argument("names", nargs="*", metavar="INSTRUCTION", help=", ".join(instruction_by_name))
    parser.add_argument("--columns", type=int, nargs="+", default=[64, 384, 784])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    default_names = [name for name, instruction in instruction_by_name.items() if instruction is INSTRUCTION]
    names = args.names or list(dict.fromkeys([*default_names, "PLAIN"]))
    with one_thread():
        print(json.dumps({str(columns): measure_speeds(names, columns, args.rounds) for columns in args.columns}))


if __name__ == "__main__":
    main()
