"""The instructions that sum products of small numbers, and which of them the compiler's processor has.

All find the same whole numbers. VNNI multiplies unsigned bytes with signed ones, so that the left side is shifted by
128; ARM's `sdot` takes signed bytes; `pmaddwd`, which every x86 processor has, takes numbers of 16 bits, so that bytes
are widened. There is no use of `pmaddubsw`: its sums of 16 bits would saturate.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba.core import cgutils

PACK_ROWS, COLUMN_GROUP = 16, 4
"""Rows of a pack, and how many columns of each lie side by side in it."""
_INT32 = ir.IntType(32)


class Instruction(NamedTuple):
    """An instruction that adds products to sums of 32 bits.

    Attributes
    ----------
    name : str
        LLVM's name of it; nothing for plain multiplications.
    mnemonic : str
        Its name in assembly.
    n_sums : int
        Sums of a register.
    products_per_sum : int
        Products that it adds to each sum: of 4 bytes, or of 2 numbers of 16 bits.
    is_signed : bool
        Whether the left side is signed.
    n_registers : int
        Registers of sums, for each left row, that are filled at once: so many that all fit the processor's.
    """

    name: str
    mnemonic: str
    n_sums: int
    products_per_sum: int
    is_signed: bool
    n_registers: int

    @property
    def left_type(self) -> type:
        """The type of the left side's numbers."""
        return np.int16 if self.products_per_sum == 2 else np.int8 if self.is_signed else np.uint8

    @property
    def left_offset(self) -> int:
        """What is added to signed bytes for the left side."""
        return 0 if self.is_signed else 128

    @property
    def right_bytes(self) -> int:
        """Bytes of the right side that it takes."""
        return self.n_sums * self.products_per_sum

    def sums_type(self) -> ir.VectorType:
        """The type of a register of sums."""
        return ir.VectorType(_INT32, self.n_sums)

    def zero_sums(self) -> ir.Constant:
        """Return sums of nothing."""
        return ir.Constant(self.sums_type(), None)

    def load_repeated(self, builder: Any, pointer: Any) -> Any:
        """Load four numbers of a left row, and repeat them."""
        size = np.dtype(self.left_type).itemsize * COLUMN_GROUP
        group_type = ir.IntType(8 * size)
        repeats = self.n_sums * self.products_per_sum // COLUMN_GROUP
        repeated_type = ir.VectorType(group_type, repeats)
        group = builder.load(builder.bitcast(pointer, group_type.as_pointer()), align=1)
        repeated = builder.insert_element(ir.Constant(repeated_type, ir.Undefined), group, _INT32(0))
        repeated = builder.shuffle_vector(repeated, repeated, index_vector([0] * repeats))
        return builder.bitcast(
            repeated, ir.VectorType(ir.IntType(8 * size // COLUMN_GROUP), self.n_sums * self.products_per_sum)
        )

    def load_right(self, builder: Any, pointer: Any) -> Any:
        """Load signed bytes, widened if need be."""
        byte_vector = ir.VectorType(ir.IntType(8), self.right_bytes)
        bytes_loaded = builder.load(builder.bitcast(pointer, byte_vector.as_pointer()), align=1)
        wide_type = ir.VectorType(ir.IntType(16), self.right_bytes)
        return builder.sext(bytes_loaded, wide_type) if self.products_per_sum == 2 else bytes_loaded

    def load_left(self, builder: Any, pointer: Any) -> Any:
        """Load signed bytes for the left side."""
        bytes_loaded = self.load_right(builder, pointer)
        return (
            bytes_loaded
            if self.is_signed
            else builder.xor(bytes_loaded, ir.Constant(bytes_loaded.type, [128] * self.right_bytes))
        )

    def add_to_sums(self, builder: Any, sums_pointer: Any, left: Any, right: Any) -> None:
        """Add products to sums in memory."""
        sums, sums_type = builder.load(sums_pointer), self.sums_type()
        if not self.name:
            wide_type = ir.VectorType(_INT32, self.right_bytes)
            products = builder.mul(builder.sext(left, wide_type), builder.sext(right, wide_type))
            sums = builder.add(sums, add_adjacent(builder, products, products))
        elif self.products_per_sum == 2:
            function_type = ir.FunctionType(sums_type, [left.type] * 2)
            function = cgutils.get_or_insert_function(builder.module, function_type, self.name)
            sums = builder.add(sums, builder.call(function, [left, right]))
        else:
            operand_type = left.type if self.is_signed else sums_type
            function_type = ir.FunctionType(sums_type, [sums_type, operand_type, operand_type])
            function = cgutils.get_or_insert_function(builder.module, function_type, self.name)
            sums = builder.call(
                function, [sums, builder.bitcast(left, operand_type), builder.bitcast(right, operand_type)]
            )
        builder.store(sums, sums_pointer)


def index_vector(values: range | list[int]) -> ir.Constant:
    """Return a constant vector of integers."""
    return ir.Constant(ir.VectorType(_INT32, len(values)), list(values))


def add_adjacent(builder: Any, vector: Any, next_vector: Any) -> Any:
    """Add neighbours of a vector and one that follows; of a vector alone, if both are the same."""
    n_elements = vector.type.count * (1 if vector is next_vector else 2)
    even, odd = (
        builder.shuffle_vector(vector, next_vector, index_vector(range(first, n_elements, 2))) for first in (0, 1)
    )
    return builder.add(even, odd)


VNNI_512 = Instruction("llvm.x86.avx512.vpdpbusd.512", "vpdpbusd", 16, 4, False, 1)
VNNI_256 = Instruction("llvm.x86.avx512.vpdpbusd.256", "vpdpbusd", 8, 4, False, 2)
PAIRS_512 = Instruction("llvm.x86.avx512.pmaddw.d.512", "vpmaddwd", 16, 2, True, 2)
PAIRS_256 = Instruction("llvm.x86.avx2.pmadd.wd", "vpmaddwd", 8, 2, True, 2)
PAIRS_128 = Instruction("llvm.x86.sse2.pmadd.wd", "pmaddwd", 4, 2, True, 2)
SDOT = Instruction("llvm.aarch64.neon.sdot.v4i32.v16i8", "sdot", 4, 4, True, 4)
PLAIN = Instruction("", "", 4, 2, True, 2)
_INSTRUCTION_OF_PATTERN = {
    r"vpdpbusd.*%zmm": VNNI_512,
    r"vpdpbusd.*%ymm": VNNI_256,
    r"pmaddwd.*%zmm": PAIRS_512,
    r"pmaddwd.*%ymm": PAIRS_256,
    r"pmaddwd.*%xmm": PAIRS_128,
    r"\bsdot\b": SDOT,
}
"""Instructions by what tells them in the assembly that LLVM makes of `_SAMPLE_IR`."""
_SAMPLE_IR = """
define i32 @sample(ptr %p, ptr %q) #0 {{
 %a = load <64 x i8>, ptr %p, align 1
 %b = load <64 x i8>, ptr %q, align 1
 %x = {extended} <64 x i8> %a to <64 x i32>
 %y = sext <64 x i8> %b to <64 x i32>
 %m = mul <64 x i32> %x, %y
 %s = call i32 @llvm.vector.reduce.add.v64i32(<64 x i32> %m)
 ret i32 %s
}}
declare i32 @llvm.vector.reduce.add.v64i32(<64 x i32>)
attributes #0 = {{ "prefer-vector-width"="512" "min-legal-vector-width"="512" }}
"""


def instruction_for(target_triple: str, cpu: str, features: str) -> Instruction:
    """Return the best instruction of a processor, as LLVM names it: what it compiles a product of bytes to.

    So that it knows what a processor's name implies, where features are not told.

    Parameters
    ----------
    target_triple, cpu, features : str
        As of numba's `codegen().magic_tuple()`.
    """
    machine = llvm.Target.from_triple(target_triple).create_target_machine(cpu=cpu, features=features)
    is_x86 = re.match("x86|amd64|i.86", target_triple)
    module = llvm.parse_assembly(_SAMPLE_IR.format(extended="zext" if is_x86 else "sext"))
    module.triple = target_triple
    assembly = machine.emit_assembly(module)
    return next(
        (instruction for pattern, instruction in _INSTRUCTION_OF_PATTERN.items() if re.search(pattern, assembly)), PLAIN
    )
