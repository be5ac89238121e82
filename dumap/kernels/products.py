"""Dot products of rows of bytes: exact on any processor, by the best instruction that each has.

Rows of the left side are one after the other, in the form that the instruction takes: signed bytes plus
`LEFT_OFFSET`, as `LEFT_TYPE`. Rows of the right side are signed bytes in packs of 16: four columns of each row side by
side.
"""

from __future__ import annotations

from typing import Any

import numba as nb
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from dumap.kernels.instructions import COLUMN_GROUP, PACK_ROWS, Instruction, add_adjacent, instruction_for

LEFT_ROWS = 4
"""Left rows that are multiplied with a pack at once."""
INSTRUCTION = instruction_for(*cpu_target.target_context.codegen().magic_tuple())
"""That of the processor that numba compiles for."""
LEFT_TYPE, LEFT_OFFSET = INSTRUCTION.left_type, INSTRUCTION.left_offset
"""The type of the left side's numbers, and what is added to signed bytes for it. Compiled functions hold them: numba
keeps those by processor."""
_BYTE = ir.IntType(8)


def _array_pointers(context: Any, builder: Any, array_types: Any, values: Any) -> list[Any]:
    """Return each array's data, as bytes, and its shape."""
    arrays = [
        context.make_array(array_type)(context, builder, value)
        for array_type, value in zip(array_types, values, strict=True)
    ]
    shapes = [cgutils.unpack_tuple(builder, array.shape) for array in arrays]
    return [
        (builder.bitcast(array.data, _BYTE.as_pointer()), shape) for array, shape in zip(arrays, shapes, strict=True)
    ]


def _allocate_sums(builder: Any, instruction: Instruction, count: int) -> list[Any]:
    return [cgutils.alloca_once_value(builder, instruction.zero_sums()) for _ in range(count)]


def generate_products(builder: Any, instruction: Instruction, left: Any, packed: Any, out: Any) -> None:
    """Generate code that multiplies `LEFT_ROWS` rows with a pack.

    Parameters
    ----------
    builder : IRBuilder
    instruction : Instruction
    left, packed, out : tuple of IR values
        Where the left rows begin, as bytes, and their columns; where the pack begins, and its columns / 4; where the
        sums of the first row go, and how many lie between those of two rows.
    """
    index_type, item_bytes = packed[1].type, left[1].type(instruction.left_type().itemsize)
    for first_register in range(0, PACK_ROWS * COLUMN_GROUP // instruction.right_bytes, instruction.n_registers):
        totals = [_allocate_sums(builder, instruction, instruction.n_registers) for _ in range(LEFT_ROWS)]
        with cgutils.for_range(builder, packed[1]) as loop:
            offset = builder.add(
                builder.mul(loop.index, index_type(PACK_ROWS * COLUMN_GROUP)),
                index_type(first_register * instruction.right_bytes),
            )
            offsets = [
                builder.add(offset, index_type(register * instruction.right_bytes))
                for register in range(instruction.n_registers)
            ]
            right_vectors = [instruction.load_right(builder, builder.gep(packed[0], [offset])) for offset in offsets]
            for left_row in range(LEFT_ROWS):
                offset = builder.add(
                    builder.mul(left[1], index_type(left_row)), builder.mul(loop.index, index_type(COLUMN_GROUP))
                )
                left_vector = instruction.load_repeated(
                    builder, builder.gep(left[0], [builder.mul(offset, item_bytes)])
                )
                for total, right in zip(totals[left_row], right_vectors, strict=True):
                    instruction.add_to_sums(builder, total, left_vector, right)
        for left_row, sums in enumerate(totals):
            vectors = [builder.load(total) for total in sums]
            if instruction.products_per_sum < COLUMN_GROUP:  # two sums of each row lie side by side
                vectors = [
                    add_adjacent(builder, *vectors[element : element + 2]) for element in range(0, len(vectors), 2)
                ]
            offset = builder.add(
                builder.mul(out[1], index_type(left_row)),
                index_type(first_register * instruction.right_bytes // COLUMN_GROUP),
            )
            for register, vector in enumerate(vectors):
                element = builder.add(offset, index_type(register * instruction.n_sums))
                element = builder.gep(out[0], [builder.mul(element, index_type(4))])
                builder.store(vector, builder.bitcast(element, vector.type.as_pointer()), align=1)


def make_multiply_pack(instruction: Instruction) -> Any:
    """Return a function of compiled code: multiply four rows, (4, 4 n), with a pack, int8 (n, 16, 4), into out, int32
    (4, m), from column `first_column` on.
    """

    @intrinsic
    def multiply_pack(typing: Any, rows: Any, pack: Any, out: Any, first_column: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            left, right, sums = _array_pointers(context, builder, signature.args[:3], values[:3])
            first_sum = builder.gep(sums[0], [builder.mul(values[3], values[3].type(4))])
            generate_products(
                builder, instruction, (left[0], left[1][1]), (right[0], right[1][0]), (first_sum, sums[1][1])
            )
            return context.get_dummy_value()

        return types.void(rows, pack, out, types.intp), generate

    return multiply_pack


def make_dot_codes(instruction: Instruction) -> Any:
    """Return a function of compiled code: (left + shift) . right of two rows of int8, (a multiple of 64,)."""

    @intrinsic
    def dot_codes(typing: Any, left: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            rows = _array_pointers(context, builder, signature.args, values)
            width, register_bytes = rows[0][1][0], instruction.right_bytes
            totals = _allocate_sums(builder, instruction, PACK_ROWS * COLUMN_GROUP // register_bytes)
            with cgutils.for_range(builder, builder.udiv(width, width.type(PACK_ROWS * COLUMN_GROUP))) as loop:
                offset = builder.mul(loop.index, width.type(PACK_ROWS * COLUMN_GROUP))
                for register, total in enumerate(totals):
                    element = [builder.add(offset, width.type(register * register_bytes))]
                    left_element, right_element = (builder.gep(row, element) for row, _ in rows)
                    instruction.add_to_sums(
                        builder,
                        total,
                        instruction.load_left(builder, left_element),
                        instruction.load_right(builder, right_element),
                    )
            sums = builder.load(totals[0])
            for total in totals[1:]:
                sums = builder.add(sums, builder.load(total))
            function_type = ir.FunctionType(ir.IntType(32), [sums.type])
            reduce_add = cgutils.get_or_insert_function(
                builder.module, function_type, f"llvm.vector.reduce.add.v{instruction.n_sums}i32"
            )
            return builder.call(reduce_add, [sums])

        return types.int32(left, right), generate

    return dot_codes


_multiply_pack, dot_codes = make_multiply_pack(INSTRUCTION), make_dot_codes(INSTRUCTION)


@nb.njit(cache=True, nogil=True)
def multiply_packs(rows, packs, first_pack, out):
    """Multiply four left rows with the packs from `first_pack` on.

    Parameters
    ----------
    rows : ndarray of LEFT_TYPE, shape (4, columns)
    packs : ndarray of int8, shape (packs, columns / 4, 16, 4)
        At least one column in all.
    first_pack : int
    out : ndarray of int32, shape (4, 16 * packs)
        Written: sums of products, exact for at most 32,768 columns.
    """
    for pack in range(first_pack, len(packs)):
        _multiply_pack(rows, packs[pack], out, PACK_ROWS * pack)
