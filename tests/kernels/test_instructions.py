import pytest

from dumap.kernels import instructions, products

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
def initialized_targets():
    """Let LLVM compile for all kinds of processors."""
    instructions.llvm.initialize_all_targets()
    instructions.llvm.initialize_all_asmprinters()


@pytest.mark.parametrize(("processor", "name"), PROCESSORS.items(), ids=lambda value: str(value))
def test_the_best_instruction_of_a_processor_is_taken(initialized_targets, processor, name):
    assert instructions.instruction_for(*processor) is getattr(instructions, name)


def compile_assembly(processor: tuple[str, str, str]) -> str:
    """Compile products of rows with a pack for a processor that need not be at hand."""
    triple, cpu, features = processor
    ir, llvm = instructions.ir, instructions.llvm
    byte, int64 = ir.IntType(8).as_pointer(), ir.IntType(64)
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [byte, int64] * 3), "multiply")
    builder, values = ir.IRBuilder(function.append_basic_block()), function.args
    products.generate_products(builder, instructions.instruction_for(*processor), values[:2], values[2:4], values[4:])
    builder.ret_void()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features)
    return machine.emit_assembly(llvm.parse_assembly(str(module)))


@pytest.mark.parametrize("processor", PROCESSORS, ids=str)
def test_code_for_a_processor_holds_its_instruction(initialized_targets, processor):
    using = instructions.instruction_for(*processor)
    assert using.mnemonic in compile_assembly(processor)


def test_avx_vnni_has_its_own_form(initialized_targets):
    text = compile_assembly((X86, "alderlake", ""))
    assert "{vex}" in text
    assert "zmm" not in text
