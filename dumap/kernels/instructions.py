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

PACK, DEPTH = 16, 4
"""Rows of a pack, and how many columns of each lie side by side in it."""
_INT = ir.IntType(32)


class Instruction(NamedTuple):
    """An instruction that adds products to sums of 32 bits.

    Attributes
    ----------
    name : str
        LLVM's name of it; nothing for plain multiplications.
    mnemonic : str
        Its name in assembly.
    sums : int
        Sums of a register.
    columns : int
        Products that it adds to each sum: of 4 bytes, or of 2 numbers of 16 bits.
    signed : bool
        Whether the left side is signed.
    registers : int
        Registers of sums, for each left row, that are filled at once: so many that all fit the processor's.
    """

    name: str
    mnemonic: str
    sums: int
    columns: int
    signed: bool
    registers: int

    @property
    def left_type(self) -> type:
        """The type of the left side's numbers."""
        return np.int16 if self.columns == 2 else np.int8 if self.signed else np.uint8

    @property
    def shift(self) -> int:
        """What is added to signed bytes for the left side."""
        return 0 if self.signed else 128

    @property
    def right_bytes(self) -> int:
        """Bytes of the right side that it takes."""
        return self.sums * self.columns

    def sums_type(self) -> ir.VectorType:
        """The type of a register of sums."""
        return ir.VectorType(_INT, self.sums)

    def zero(self) -> ir.Constant:
        """Return sums of nothing."""
        return ir.Constant(self.sums_type(), None)

    def spread(self, builder: Any, pointer: Any) -> Any:
        """Load four numbers of a left row, and repeat them."""
        size = np.dtype(self.left_type).itemsize * DEPTH
        whole = ir.IntType(8 * size)
        times = self.sums * self.columns // DEPTH
        lanes = ir.VectorType(whole, times)
        four = builder.load(builder.bitcast(pointer, whole.as_pointer()), align=1)
        lane = builder.insert_element(ir.Constant(lanes, ir.Undefined), four, _INT(0))
        lane = builder.shuffle_vector(lane, lane, numbers([0] * times))
        return builder.bitcast(lane, ir.VectorType(ir.IntType(8 * size // DEPTH), self.sums * self.columns))

    def take(self, builder: Any, pointer: Any) -> Any:
        """Load signed bytes, widened if need be."""
        kind = ir.VectorType(ir.IntType(8), self.right_bytes)
        loaded = builder.load(builder.bitcast(pointer, kind.as_pointer()), align=1)
        wide = ir.VectorType(ir.IntType(16), self.right_bytes)
        return builder.sext(loaded, wide) if self.columns == 2 else loaded

    def take_shifted(self, builder: Any, pointer: Any) -> Any:
        """Load signed bytes for the left side."""
        taken = self.take(builder, pointer)
        return taken if self.signed else builder.xor(taken, ir.Constant(taken.type, [128] * self.right_bytes))

    def add(self, builder: Any, total: Any, left: Any, right: Any) -> None:
        """Add products to sums in memory."""
        sums, kind = builder.load(total), self.sums_type()
        if not self.name:
            wide = ir.VectorType(_INT, self.right_bytes)
            products = builder.mul(builder.sext(left, wide), builder.sext(right, wide))
            sums = builder.add(sums, add_pairs(builder, products, products))
        elif self.columns == 2:
            form = ir.FunctionType(kind, [left.type] * 2)
            called = cgutils.get_or_insert_function(builder.module, form, self.name)
            sums = builder.add(sums, builder.call(called, [left, right]))
        else:
            taken = left.type if self.signed else kind
            form = ir.FunctionType(kind, [kind, taken, taken])
            called = cgutils.get_or_insert_function(builder.module, form, self.name)
            sums = builder.call(called, [sums, builder.bitcast(left, taken), builder.bitcast(right, taken)])
        builder.store(sums, total)


def numbers(values: range | list[int]) -> ir.Constant:
    """Return a constant vector of integers."""
    return ir.Constant(ir.VectorType(_INT, len(values)), list(values))


def add_pairs(builder: Any, one: Any, other: Any) -> Any:
    """Add neighbours of a vector and one that follows; of a vector alone, if both are the same."""
    count = one.type.count * (1 if one is other else 2)
    even, odd = (builder.shuffle_vector(one, other, numbers(range(first, count, 2))) for first in (0, 1))
    return builder.add(even, odd)


VNNI_512 = Instruction("llvm.x86.avx512.vpdpbusd.512", "vpdpbusd", 16, 4, False, 1)
VNNI_256 = Instruction("llvm.x86.avx512.vpdpbusd.256", "vpdpbusd", 8, 4, False, 2)
PAIRS_512 = Instruction("llvm.x86.avx512.pmaddw.d.512", "vpmaddwd", 16, 2, True, 2)
PAIRS_256 = Instruction("llvm.x86.avx2.pmadd.wd", "vpmaddwd", 8, 2, True, 2)
PAIRS_128 = Instruction("llvm.x86.sse2.pmadd.wd", "pmaddwd", 4, 2, True, 2)
SDOT = Instruction("llvm.aarch64.neon.sdot.v4i32.v16i8", "sdot", 4, 4, True, 4)
PLAIN = Instruction("", "", 4, 2, True, 2)
_BEST_FIRST = {
    r"vpdpbusd.*%zmm": VNNI_512,
    r"vpdpbusd.*%ymm": VNNI_256,
    r"pmaddwd.*%zmm": PAIRS_512,
    r"pmaddwd.*%ymm": PAIRS_256,
    r"pmaddwd.*%xmm": PAIRS_128,
    r"\bsdot\b": SDOT,
}
"""Instructions by what tells them in the assembly that LLVM makes of `_SAMPLE`."""
_SAMPLE = """
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


def instruction_for(triple: str, cpu: str, features: str) -> Instruction:
    """Return the best instruction of a processor, as LLVM names it: what it compiles a product of bytes to.

    So that it knows what a processor's name implies, where features are not told.

    Parameters
    ----------
    triple, cpu, features : str
        As of numba's `codegen().magic_tuple()`.
    """
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features)
    is_x86 = re.match("x86|amd64|i.86", triple)
    module = llvm.parse_assembly(_SAMPLE.format(extended="zext" if is_x86 else "sext"))
    module.triple = triple
    assembly = machine.emit_assembly(module)
    return next((each for pattern, each in _BEST_FIRST.items() if re.search(pattern, assembly)), PLAIN)
