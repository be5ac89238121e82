"""Dot products of rows of bytes: exact on any processor, and fast on those with AVX-512 VNNI.

Rows of the left side are unsigned bytes, one row after the other. Rows of the right side are in packs of 16: four
columns of each row side by side, as VNNI's instruction takes them. Other processors compute the same sums with
multiplications of 32 bits.
"""

from __future__ import annotations

from typing import Any

import numba as nb
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

PACK, ROWS, DEPTH = 16, 4, 4
"""Rows of a pack, left rows that are multiplied with it at once, and columns that one instruction sums."""
BUILT_IN = "+avx512vnni"
"""The processor feature that `_INSTRUCTION` needs."""
_INSTRUCTION = "llvm.x86.avx512.vpdpbusd.512"
_BYTE, _INT = ir.IntType(8), ir.IntType(32)
_BYTES, _INTS = ir.VectorType(_BYTE, PACK * DEPTH), ir.VectorType(_INT, PACK)
_WIDE = ir.VectorType(_INT, PACK * DEPTH)


def _numbers(values: range | list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(_INT, len(values)), list(values))


def _pointer(builder: Any, array: Any, place: Any, kind: Any) -> Any:
    return builder.bitcast(builder.gep(array.data, [place]), kind.as_pointer())


def _arrays(context: Any, builder: Any, kinds: Any, values: Any) -> list[Any]:
    return [context.make_array(kind)(context, builder, value) for kind, value in zip(kinds, values, strict=True)]


def _add_products(context: Any, builder: Any, total: Any, left: Any, right: Any) -> None:
    """Add to each of 16 sums in memory the products of four unsigned and four signed bytes."""
    sums = builder.load(total)
    if BUILT_IN in context.codegen().magic_tuple()[2].split(","):
        instruction = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_INTS, [_INTS] * 3), _INSTRUCTION)
        sums = builder.call(instruction, [sums, builder.bitcast(left, _INTS), builder.bitcast(right, _INTS)])
    else:
        products = builder.mul(builder.zext(left, _WIDE), builder.sext(right, _WIDE))
        for count in (PACK * DEPTH, PACK * DEPTH // 2):
            even, odd = (builder.shuffle_vector(products, products, _numbers(range(s, count, 2))) for s in (0, 1))
            products = builder.add(even, odd)
        sums = builder.add(sums, products)
    builder.store(sums, total)


@intrinsic
def _multiply(typing: Any, rows: Any, pack: Any, out: Any, at: Any) -> Any:
    """Multiply four rows, uint8 (4, 4 n), with a pack, int8 (n, 16, 4), into out, int32 (4, m), from column `at` on."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        left, right, sums = _arrays(context, builder, signature.args[:3], values[:3])
        width, length = (cgutils.unpack_tuple(builder, side.shape)[1] for side in (left, sums))
        totals = [cgutils.alloca_once_value(builder, ir.Constant(_INTS, None)) for _ in range(ROWS)]
        with cgutils.for_range(builder, cgutils.unpack_tuple(builder, right.shape)[0]) as loop:
            place = builder.mul(loop.index, width.type(PACK * DEPTH))
            taken = builder.load(_pointer(builder, right, place, _BYTES), align=1)
            for row, total in enumerate(totals):
                place = builder.add(builder.mul(width, width.type(row)), builder.mul(loop.index, width.type(DEPTH)))
                four = builder.load(_pointer(builder, left, place, _INT), align=1)
                lane = builder.insert_element(ir.Constant(_INTS, ir.Undefined), four, _INT(0))
                spread = builder.bitcast(builder.shuffle_vector(lane, lane, _numbers([0] * PACK)), _BYTES)
                _add_products(context, builder, total, spread, taken)
        for row, total in enumerate(totals):
            place = builder.add(builder.mul(length, width.type(row)), values[3])
            builder.store(builder.load(total), _pointer(builder, sums, place, _INTS), align=1)
        return context.get_dummy_value()

    return types.void(rows, pack, out, types.intp), generate


@intrinsic
def dot(typing: Any, left: Any, right: Any) -> Any:
    """Return (left + 128) . right for two rows of int8, (a multiple of 64,)."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        rows = _arrays(context, builder, signature.args, values)
        width = cgutils.unpack_tuple(builder, rows[0].shape)[0]
        total = cgutils.alloca_once_value(builder, ir.Constant(_INTS, None))
        with cgutils.for_range(builder, builder.udiv(width, width.type(PACK * DEPTH))) as loop:
            place = builder.mul(loop.index, width.type(PACK * DEPTH))
            one, other = (builder.load(_pointer(builder, row, place, _BYTES), align=1) for row in rows)
            shifted = builder.xor(one, ir.Constant(_BYTES, [128] * PACK * DEPTH))
            _add_products(context, builder, total, shifted, other)
        add_up = ir.FunctionType(_INT, [_INTS])
        add_up = cgutils.get_or_insert_function(builder.module, add_up, f"llvm.vector.reduce.add.v{PACK}i32")
        return builder.call(add_up, [builder.load(total)])

    return types.int32(left, right), generate


@nb.njit(cache=True, nogil=True)
def multiply(rows, packs, first, out):
    """Multiply four left rows with the packs from `first` on.

    Parameters
    ----------
    rows : ndarray of uint8, shape (4, columns)
    packs : ndarray of int8, shape (packs, columns / 4, 16, 4)
        At least one column in all.
    first : int
    out : ndarray of int32, shape (4, 16 * packs)
        Written: sums of products, exact for at most 32,768 columns.
    """
    for pack in range(first, len(packs)):
        _multiply(rows, packs[pack], out, PACK * pack)
