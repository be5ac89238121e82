"""Products of rows in a byte a column: exact whatever the processor, and fast where it has them built in.

Rows of the left side are unsigned bytes, one row after the other. Those of the right are in packs of 16, four columns
of each side by side, as the instruction takes them; processors without it find the same sums by what they have.
"""

from __future__ import annotations

from typing import Any

import numba as nb
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

PACK, ROWS, DEPTH = 16, 4, 4
"""Rows of a pack, rows that are multiplied with it at once, and columns that are summed at once."""
BUILT_IN = "+avx512vnni"
"""The processor's feature that `_INSTRUCTION` asks for."""
_INSTRUCTION = "llvm.x86.avx512.vpdpbusd.512"
_BYTE, _INT = ir.IntType(8), ir.IntType(32)
_BYTES, _INTS = ir.VectorType(_BYTE, PACK * DEPTH), ir.VectorType(_INT, PACK)
_WIDE = ir.VectorType(_INT, PACK * DEPTH)


def _is_built_in(context: Any) -> bool:
    return BUILT_IN in context.codegen().magic_tuple()[2].split(",")


def _numbers(values: range | list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(_INT, len(values)), list(values))


def _add_products(builder: Any, built_in: bool, sums: Any, left: Any, right: Any) -> Any:
    """Add to 16 sums the products of four unsigned and four signed bytes each."""
    if built_in:
        instruction = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_INTS, [_INTS] * 3), _INSTRUCTION)
        return builder.call(instruction, [sums, builder.bitcast(left, _INTS), builder.bitcast(right, _INTS)])
    products = builder.mul(builder.zext(left, _WIDE), builder.sext(right, _WIDE))
    for count in (PACK * DEPTH, PACK * DEPTH // 2):
        even, odd = (builder.shuffle_vector(products, products, _numbers(range(s, count, 2))) for s in (0, 1))
        products = builder.add(even, odd)
    return builder.add(sums, products)


@intrinsic
def _multiply(typing: Any, rows: Any, pack: Any, out: Any, at: Any) -> Any:
    """Multiply four rows, uint8 (4, 4 n), with a pack, int8 (n, 16, 4), into out, int32 (4, m), from column `at` on."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        left, right, sums = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args[:3], given[:3], strict=True)
        )
        built_in = _is_built_in(context)
        width, length = cgutils.unpack_tuple(builder, left.shape)[1], cgutils.unpack_tuple(builder, sums.shape)[1]
        steps = cgutils.unpack_tuple(builder, right.shape)[0]

        def number(value: int) -> Any:
            return ir.Constant(width.type, value)

        def pointer(base: Any, place: Any, kind: Any) -> Any:
            return builder.bitcast(builder.gep(base, [place]), kind.as_pointer())

        begin, loop, end = builder.block, builder.append_basic_block("columns"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        step, totals = builder.phi(width.type), [builder.phi(_INTS) for _ in range(ROWS)]
        taken = builder.load(pointer(right.data, builder.mul(step, number(PACK * DEPTH)), _BYTES), align=1)
        added = []
        for row, total in enumerate(totals):
            place = builder.add(builder.mul(width, number(row)), builder.mul(step, number(DEPTH)))
            four = builder.load(pointer(left.data, place, _INT), align=1)
            lane = builder.insert_element(ir.Constant(_INTS, ir.Undefined), four, ir.Constant(_INT, 0))
            spread = builder.bitcast(builder.shuffle_vector(lane, lane, _numbers([0] * PACK)), _BYTES)
            added.append(_add_products(builder, built_in, total, spread, taken))
            total.add_incoming(ir.Constant(_INTS, None), begin)
            total.add_incoming(added[-1], loop)
        after = builder.add(step, number(1))
        step.add_incoming(number(0), begin)
        step.add_incoming(after, loop)
        builder.cbranch(builder.icmp_signed("<", after, steps), loop, end)
        builder.position_at_end(end)
        for row, total in enumerate(added):
            place = builder.add(builder.mul(length, number(row)), given[3])
            builder.store(total, pointer(sums.data, place, _INTS), align=1)
        return context.get_dummy_value()

    return types.void(rows, pack, out, types.intp), generate


@intrinsic
def dot(typing: Any, left: Any, right: Any) -> Any:
    """Sum the products of one row's bytes, each plus 128, with another's: int8 (a multiple of 64,)."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        left, right = (
            context.make_array(kind)(context, builder, value) for kind, value in zip(signature.args, given, strict=True)
        )
        built_in = _is_built_in(context)
        width = cgutils.unpack_tuple(builder, left.shape)[0]
        begin, loop, end = builder.block, builder.append_basic_block("columns"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        place, total = builder.phi(width.type), builder.phi(_INTS)
        one, other = (
            builder.load(builder.bitcast(builder.gep(side.data, [place]), _BYTES.as_pointer()), align=1)
            for side in (left, right)
        )
        shifted = builder.xor(one, ir.Constant(_BYTES, [128] * PACK * DEPTH))
        added = _add_products(builder, built_in, total, shifted, other)
        after = builder.add(place, ir.Constant(width.type, PACK * DEPTH))
        for phi, first, then in ((place, ir.Constant(width.type, 0), after), (total, ir.Constant(_INTS, None), added)):
            phi.add_incoming(first, begin)
            phi.add_incoming(then, loop)
        builder.cbranch(builder.icmp_signed("<", after, width), loop, end)
        builder.position_at_end(end)
        kind = ir.FunctionType(_INT, [_INTS])
        return builder.call(
            cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.add.v16i32"), [added]
        )

    return types.int32(left, right), generate


@nb.njit(cache=True, nogil=True)
def multiply(rows, packs, first, out):
    """Multiply four rows with packs, from the pack `first` on.

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
