"""Dot products of rows of bytes: exact on any processor, by the best instruction that each has.

Rows of the left side are one after the other, in the form that the instruction takes: signed bytes plus `SHIFT`, as
`LEFT_TYPE`. Rows of the right side are signed bytes in packs of 16: four columns of each row side by side.
"""

from __future__ import annotations

from typing import Any

import numba as nb
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from dumap.kernels.instructions import DEPTH, PACK, Instruction, add_pairs, instruction_for

ROWS = 4
"""Left rows that are multiplied with a pack at once."""
INSTRUCTION = instruction_for(*cpu_target.target_context.codegen().magic_tuple())
"""That of the processor that numba compiles for."""
LEFT_TYPE, SHIFT = INSTRUCTION.left_type, INSTRUCTION.shift
"""The type of the left side's numbers, and what is added to signed bytes for it. Compiled functions hold them: numba
keeps those by processor."""
_BYTE = ir.IntType(8)


def _arrays(context: Any, builder: Any, kinds: Any, values: Any) -> list[Any]:
    """Return each array's data, as bytes, and its shape."""
    arrays = [context.make_array(kind)(context, builder, value) for kind, value in zip(kinds, values, strict=True)]
    shapes = [cgutils.unpack_tuple(builder, array.shape) for array in arrays]
    return [
        (builder.bitcast(array.data, _BYTE.as_pointer()), shape) for array, shape in zip(arrays, shapes, strict=True)
    ]


def _sums(builder: Any, instruction: Instruction, count: int) -> list[Any]:
    return [cgutils.alloca_once_value(builder, instruction.zero()) for _ in range(count)]


def write_products(builder: Any, using: Instruction, left: Any, packed: Any, out: Any) -> None:
    """Generate code that multiplies `ROWS` rows with a pack.

    Parameters
    ----------
    builder : IRBuilder
    using : Instruction
    left, packed, out : tuple of IR values
        Where the left rows begin, as bytes, and their columns; where the pack begins, and its columns / 4; where the
        sums of the first row go, and how many lie between those of two rows.
    """
    count, each = packed[1].type, left[1].type(using.left_type().itemsize)
    for first in range(0, PACK * DEPTH // using.right_bytes, using.registers):
        totals = [_sums(builder, using, using.registers) for _ in range(ROWS)]
        with cgutils.for_range(builder, packed[1]) as loop:
            place = builder.add(builder.mul(loop.index, count(PACK * DEPTH)), count(first * using.right_bytes))
            places = [builder.add(place, count(number * using.right_bytes)) for number in range(using.registers)]
            taken = [using.take(builder, builder.gep(packed[0], [place])) for place in places]
            for row in range(ROWS):
                place = builder.add(builder.mul(left[1], count(row)), builder.mul(loop.index, count(DEPTH)))
                four = using.spread(builder, builder.gep(left[0], [builder.mul(place, each)]))
                for total, right in zip(totals[row], taken, strict=True):
                    using.add(builder, total, four, right)
        for row, sums in enumerate(totals):
            vectors = [builder.load(total) for total in sums]
            if using.columns < DEPTH:  # two sums of each row lie side by side
                vectors = [add_pairs(builder, *vectors[at : at + 2]) for at in range(0, len(vectors), 2)]
            place = builder.add(builder.mul(out[1], count(row)), count(first * using.right_bytes // DEPTH))
            for number, vector in enumerate(vectors):
                at = builder.add(place, count(number * using.sums))
                at = builder.gep(out[0], [builder.mul(at, count(4))])
                builder.store(vector, builder.bitcast(at, vector.type.as_pointer()), align=1)


def multiplier(using: Instruction) -> Any:
    """Return a function of compiled code: multiply four rows, (4, 4 n), with a pack, int8 (n, 16, 4), into out, int32
    (4, m), from column `at` on.
    """

    @intrinsic
    def multiply_pack(typing: Any, rows: Any, pack: Any, out: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            left, right, sums = _arrays(context, builder, signature.args[:3], values[:3])
            begin = builder.gep(sums[0], [builder.mul(values[3], values[3].type(4))])
            write_products(builder, using, (left[0], left[1][1]), (right[0], right[1][0]), (begin, sums[1][1]))
            return context.get_dummy_value()

        return types.void(rows, pack, out, types.intp), generate

    return multiply_pack


def dot_product(using: Instruction) -> Any:
    """Return a function of compiled code: (left + shift) . right of two rows of int8, (a multiple of 64,)."""

    @intrinsic
    def dot(typing: Any, left: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            rows = _arrays(context, builder, signature.args, values)
            width, step = rows[0][1][0], using.right_bytes
            totals = _sums(builder, using, PACK * DEPTH // step)
            with cgutils.for_range(builder, builder.udiv(width, width.type(PACK * DEPTH))) as loop:
                place = builder.mul(loop.index, width.type(PACK * DEPTH))
                for number, total in enumerate(totals):
                    at = [builder.add(place, width.type(number * step))]
                    one, other = (builder.gep(row, at) for row, _ in rows)
                    using.add(builder, total, using.take_shifted(builder, one), using.take(builder, other))
            sums = builder.load(totals[0])
            for total in totals[1:]:
                sums = builder.add(sums, builder.load(total))
            form = ir.FunctionType(ir.IntType(32), [sums.type])
            add_up = cgutils.get_or_insert_function(builder.module, form, f"llvm.vector.reduce.add.v{using.sums}i32")
            return builder.call(add_up, [sums])

        return types.int32(left, right), generate

    return dot


_multiply_pack, dot = multiplier(INSTRUCTION), dot_product(INSTRUCTION)


@nb.njit(cache=True, nogil=True)
def multiply(rows, packs, first, out):
    """Multiply four left rows with the packs from `first` on.

    Parameters
    ----------
    rows : ndarray of LEFT_TYPE, shape (4, columns)
    packs : ndarray of int8, shape (packs, columns / 4, 16, 4)
        At least one column in all.
    first : int
    out : ndarray of int32, shape (4, 16 * packs)
        Written: sums of products, exact for at most 32,768 columns.
    """
    for pack in range(first, len(packs)):
        _multiply_pack(rows, packs[pack], out, PACK * pack)
