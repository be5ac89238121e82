import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from dumap.kernels import instructions, products
from dumap.kernels.instructions import Instruction


def draw_operands(
    instruction: Instruction, seed: int, packs: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both sides, the right one in packs, and their products; some numbers at the ends of their range."""
    rng = np.random.default_rng(seed)
    left, right = rng.integers(-127, 128, (4, width)), rng.integers(-127, 128, (16 * packs, width))
    left[0], right[0], left[1], right[-1] = 127, 127, -127, -127
    left += instruction.left_offset
    packs_of_rows = right.astype(np.int8).reshape(packs, 16, width // 4, 4).transpose(0, 2, 1, 3)
    return left.astype(instruction.left_type), np.ascontiguousarray(packs_of_rows), left @ right.T


@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 40), st.data())
def test_four_rows_are_multiplied_with_packs(seed, packs, n_groups, data):
    left, packs_of_rows, expected = draw_operands(products.INSTRUCTION, seed, packs, 4 * n_groups)
    first, out = data.draw(st.integers(0, packs)), np.full((4, 16 * packs), 7, np.int32)
    products.multiply_packs(left, packs_of_rows, first, out)
    assert np.array_equal(out[:, 16 * first :], expected[:, 16 * first :])
    assert (out[:, : 16 * first] == 7).all()


def compile_dot(instruction: Instruction):
    """Compile products of two rows."""
    dot = products.make_dot_codes(instruction)

    @njit
    def function(left, right):
        return dot(left, right)

    return function


def compile_multiply(instruction: Instruction):
    """Compile products of rows with a pack."""
    multiply_pack = products.make_multiply_pack(instruction)

    @njit
    def function(rows, pack, out):
        multiply_pack(rows, pack, out, 0)

    return function


FEATURES_OF = {
    "VNNI_512": ("avx512vnni",),
    "VNNI_256": ("avx512vnni avx512vl", "avxvnni"),
    "PAIRS_512": ("avx512bw",),
    "PAIRS_256": ("avx2",),
    "PAIRS_128": ("sse2",),
    "SDOT": ("dotprod",),
    "PLAIN": ("",),
}
"""Features of a processor, any of several sets, by instruction."""


@pytest.fixture(params=FEATURES_OF)
def instruction(request):
    """Yield each instruction that the processor has which numba compiles for."""
    features = products.cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    features_present = {feature.removeprefix("+") for feature in features if feature.startswith("+")}
    instruction = getattr(instructions, request.param)
    if instruction is not products.INSTRUCTION and not any(
        features_present.issuperset(features_needed.split()) for features_needed in FEATURES_OF[request.param]
    ):
        pytest.skip(f"this processor has no {' or '.join(FEATURES_OF[request.param])}")
    return instruction


def test_every_instruction_finds_the_same_products(instruction):
    multiply = compile_multiply(instruction)
    for seed, width in enumerate([4, 8, 60, 64, 32_768]):
        left, packs_of_rows, expected = draw_operands(instruction, seed, 1, width)
        out = np.zeros((4, 16), np.int32)
        multiply(left, packs_of_rows[0], out)
        assert np.array_equal(out, expected)


def test_every_instruction_finds_the_same_products_of_two_rows(instruction):
    dot, rng = compile_dot(instruction), np.random.default_rng(0)
    for width in (64, 128, 832, 32_768):
        left, right = rng.integers(-127, 128, (2, width)).astype(np.int8)
        ends = np.full(width, 127, np.int8)
        for one, other in ((left, right), (ends, ends), (ends, -ends), (-ends, -ends)):
            assert dot(one, other) == (one.astype(np.int64) + instruction.left_offset) @ other.astype(np.int64)


def test_this_processors_instruction_is_the_one_in_use():
    left, packs_of_rows, _ = draw_operands(products.INSTRUCTION, 0, 1, 64)
    multiply = compile_multiply(products.INSTRUCTION)
    multiply(left, packs_of_rows[0], np.zeros((4, 16), np.int32))
    text = "".join(multiply.inspect_asm().values())
    assert products.INSTRUCTION.mnemonic in text
    assert (products.INSTRUCTION.left_type, products.INSTRUCTION.left_offset) == (
        products.LEFT_TYPE,
        products.LEFT_OFFSET,
    )
