import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from dumap.kernels import instructions, products
from dumap.kernels.instructions import Instruction


def drawn(using: Instruction, seed: int, packs: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both sides, the right one in packs, and their products; some numbers at the ends of their range."""
    rng = np.random.default_rng(seed)
    left, right = rng.integers(-127, 128, (4, width)), rng.integers(-127, 128, (16 * packs, width))
    left[0], right[0], left[1], right[-1] = 127, 127, -127, -127
    left += using.shift
    packed = right.astype(np.int8).reshape(packs, 16, width // 4, 4).transpose(0, 2, 1, 3)
    return left.astype(using.left_type), np.ascontiguousarray(packed), left @ right.T


@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 40), st.data())
def test_four_rows_are_multiplied_with_packs(seed, packs, fours, data):
    left, packed, wanted = drawn(products.INSTRUCTION, seed, packs, 4 * fours)
    first, out = data.draw(st.integers(0, packs)), np.full((4, 16 * packs), 7, np.int32)
    products.multiply(left, packed, first, out)
    assert np.array_equal(out[:, 16 * first :], wanted[:, 16 * first :])
    assert (out[:, : 16 * first] == 7).all()


def dot_function(using: Instruction):
    """Compile products of two rows."""
    dot = products.dot_product(using)

    @njit
    def function(left, right):
        return dot(left, right)

    return function


def multiplier(using: Instruction):
    """Compile products of rows with a pack."""
    multiply_pack = products.multiplier(using)

    @njit
    def function(rows, pack, out):
        multiply_pack(rows, pack, out, 0)

    return function


NEEDS = {
    "VNNI_512": ("avx512vnni",),
    "VNNI_256": ("avx512vnni avx512vl", "avxvnni"),
    "PAIRS_512": ("avx512bw",),
    "PAIRS_256": ("avx2",),
    "PAIRS_128": ("sse2",),
    "SDOT": ("dotprod",),
    "PLAIN": ("",),
}
"""Features of a processor, any of several sets, by instruction."""


@pytest.fixture(params=NEEDS)
def using(request):
    """Yield each instruction that the processor has which numba compiles for."""
    features = products.cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    told = {feature.removeprefix("+") for feature in features if feature.startswith("+")}
    found = getattr(instructions, request.param)
    if found is not products.INSTRUCTION and not any(told.issuperset(need.split()) for need in NEEDS[request.param]):
        pytest.skip(f"this processor has no {' or '.join(NEEDS[request.param])}")
    return found


def test_every_instruction_finds_the_same_products(using):
    multiply = multiplier(using)
    for seed, width in enumerate([4, 8, 60, 64, 32_768]):
        left, packed, wanted = drawn(using, seed, 1, width)
        out = np.zeros((4, 16), np.int32)
        multiply(left, packed[0], out)
        assert np.array_equal(out, wanted)


def test_every_instruction_finds_the_same_products_of_two_rows(using):
    dot, rng = dot_function(using), np.random.default_rng(0)
    for width in (64, 128, 832, 32_768):
        left, right = rng.integers(-127, 128, (2, width)).astype(np.int8)
        ends = np.full(width, 127, np.int8)
        for one, other in ((left, right), (ends, ends), (ends, -ends), (-ends, -ends)):
            assert dot(one, other) == (one.astype(np.int64) + using.shift) @ other.astype(np.int64)


# instructions of other processors ------------------------------------------------------------------

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
PROCESSORS = {
    (X86, "znver4", ""): "VNNI_512",
    (X86, "cascadelake", ""): "VNNI_512",
    (X86, "haswell", "+avx512f,+avx512bw,+avx512vl,+avx512vnni"): "VNNI_512",
    (X86, "alderlake", ""): "VNNI_256",
    (X86, "haswell", "+avxvnni"): "VNNI_256",
    (X86, "skylake-avx512", ""): "PAIRS_512",
    (X86, "haswell", ""): "PAIRS_256",
    (X86, "znver4", "-avx512f"): "PAIRS_256",
    (X86, "x86-64", ""): "PAIRS_128",
    (ARM, "neoverse-n1", ""): "SDOT",
    (ARM, "neoverse-v1", ""): "SDOT",
    (ARM, "generic", "+dotprod"): "SDOT",
    ("arm64-apple-darwin", "apple-m1", ""): "SDOT",
    (ARM, "cortex-a53", ""): "PLAIN",
    ("riscv64-unknown-linux-gnu", "generic-rv64", "+m"): "PLAIN",
}


@pytest.fixture(scope="module")
def all_targets():
    """Let LLVM compile for all kinds of processors."""
    instructions.llvm.initialize_all_targets()
    instructions.llvm.initialize_all_asmprinters()


@pytest.mark.parametrize(("processor", "name"), PROCESSORS.items(), ids=lambda value: str(value))
def test_the_best_instruction_of_a_processor_is_taken(all_targets, processor, name):
    assert instructions.instruction_for(*processor) is getattr(instructions, name)


def assembly(processor: tuple[str, str, str]) -> str:
    """Compile products of rows with a pack for a processor that need not be at hand."""
    triple, cpu, features = processor
    ir, llvm = instructions.ir, instructions.llvm
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(64)
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [byte, number] * 3), "multiply")
    builder, values = ir.IRBuilder(function.append_basic_block()), function.args
    products.write_products(builder, instructions.instruction_for(*processor), values[:2], values[2:4], values[4:])
    builder.ret_void()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features)
    return machine.emit_assembly(llvm.parse_assembly(str(module)))


@pytest.mark.parametrize("processor", PROCESSORS, ids=str)
def test_code_for_a_processor_holds_its_instruction(all_targets, processor):
    using = instructions.instruction_for(*processor)
    assert using.mnemonic in assembly(processor)


def test_avx_vnni_has_its_own_form(all_targets):
    text = assembly((X86, "alderlake", ""))
    assert "{vex}" in text
    assert "zmm" not in text


def test_this_processors_instruction_is_the_one_in_use():
    left, packed, _ = drawn(products.INSTRUCTION, 0, 1, 64)
    multiply = multiplier(products.INSTRUCTION)
    multiply(left, packed[0], np.zeros((4, 16), np.int32))
    text = "".join(multiply.inspect_asm().values())
    assert products.INSTRUCTION.mnemonic in text
    assert (products.INSTRUCTION.left_type, products.INSTRUCTION.shift) == (products.LEFT_TYPE, products.SHIFT)
