"""Plants in small PTX and machine code what lint.py is to find: python3 -m unittest discover tools/cuda"""

import pathlib
import subprocess
import sys
import tempfile
import unittest

import lint

# As NVRTC writes it, shortened: no line of it breaks a rule.
PTX = """\
.version 8.8
.target sm_80
.visible .entry linear_q8_8(
	.param .u64 linear_q8_8_param_0
)
.maxntid 256, 1, 1
{
	.reg .f32 	%f<8>;
	ld.param.u64 	%rd1, [linear_q8_8_param_0];
	// begin inline asm
	{.reg .b16 h; mov.b16 h, %rs1; cvt.f32.f16 %f1, h;}
	// end inline asm
	// begin inline asm
	mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1,%r2,%r3,%r4}, {%r5,%r6,%r7,%r8}, {%r9,%r10}, {%r11,%r11,%r11,%r11};
	// end inline asm
	sub.rn.f32 	%f2, %f1, 0f4B400000;
$L__BB1_2:
	@%p1 fma.rn.f32 	%f3, %f2, %f1, %f3; // was two; add.f32 %f3, %f1, %f2;
	mad.lo.s32 	%r12, %r1, %r2, %r3;
	@%p1 bra 	$L__BB1_2;
	ret;
}
.visible .entry linear_f16_8(
	.param .u64 linear_f16_8_param_0
)
.maxntid 256, 1, 1
.minnctapersm 2
{
	fma.rn.f32 	%f3, %f2, %f1, %f3;
	ret;
}
.visible .entry rms_norm(
	.param .u64 rms_norm_param_0
)
{
	sqrt.rn.f32 	%f1, %f2;
	div.rn.f32 	%f3, 0f3F800000, %f1;
	ret;
}
.visible .entry rope(
	.param .u64 rope_param_0
)
{
	mul.rn.f32 	%f1, %f2, %f3;
	ret;
}
\0"""
PTX_PLACE = "	sqrt.rn.f32 	%f1, %f2;\n"  # in rms_norm

RESOURCES = """\

Resource usage:
 Common:
  GLOBAL:0
 Function linear_q8_8:
  REG:64 STACK:0 SHARED:9728 LOCAL:0 CONSTANT[0]:580 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function linear_f16_8:
  REG:80 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:580 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function rms_norm:
  REG:64 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:568 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function rope:
  REG:22 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:568 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
ASSEMBLY = """\
	.headerflags	@"EF_CUDA_SM90"
//--------------------- .text.linear_q8_8          --------------------------
	.section	.text.linear_q8_8,"ax",@progbits
linear_q8_8:
.text.linear_q8_8:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   IMMA.16832.S8.S8 R4, R8.ROW, R12.COL, R4 ;
        /*0020*/              @!P0 BRA `(.L_x_0) ;
        /*0030*/                   NOP ;
	.section	.text.linear_f16_8,"ax",@progbits
        /*0000*/                   FFMA R3, R4, R5, R3 ;
	.section	.text.rms_norm,"ax",@progbits
        /*0000*/                   FMUL R3, R4, R5 ;
        /*0010*/             @!UP0 EXIT ;
	.section	.text.rope,"ax",@progbits
        /*0000*/                   FMUL R3, R4, R5 ;
"""
CODE_PLACE = "        /*0000*/                   FMUL R3, R4, R5 ;\n        /*0010*/             @!UP0 EXIT ;\n"  # in rms_norm


def ptx_findings(text):
    return {(finding.kernel, finding.rule) for finding in lint.lint_ptx("kernels.compute_80.ptx", lint.parse_ptx(text))}


def code_findings(resources=RESOURCES, assembly=ASSEMBLY):
    limits = {name: kernel.registers_max() for name, kernel in lint.parse_ptx(PTX).items()}
    return {(finding.kernel, finding.rule) for finding in lint.lint_code("kernels.sm_90.cubin", lint.parse_code(resources, assembly), limits)}


def changed(text, old, new):
    assert text.count(old) == 1, (old, text.count(old))
    return text.replace(old, new)


def planted(operation):
    return changed(ASSEMBLY, CODE_PLACE, f"        /*0000*/ {operation} ;\n{CODE_PLACE}")


class Ptx(unittest.TestCase):
    def test_what_is_right_has_no_findings(self):
        self.assertEqual(ptx_findings(PTX), set())
        self.assertEqual(sorted(lint.parse_ptx(PTX)), ["linear_f16_8", "linear_q8_8", "rms_norm", "rope"])

    def test_every_planted_operation_is_found(self):
        faults = {
            "rounding": """add.f32 sub.f32 mul.f32 fma.rz.f32 div.f32 sqrt.rp.f32 rcp.f64 add.f64 mul.f16 fma.rm.bf16x2 add.f32x2 mad.f32""",
            "approximate": """div.approx.f32 div.full.f32 sqrt.approx.f32 rcp.approx.ftz.f64 ex2.approx.f32 lg2.approx.f32 sin.approx.f32 cos.approx.f32
                tanh.approx.f32 rsqrt.approx.f32""",
            "subnormals": """add.rn.ftz.f32 fma.rn.ftz.f32 max.ftz.f32 cvt.rn.ftz.f32.s32""",
            "atomic": """atom.global.add.f32 red.global.add.f32 red.relaxed.gpu.global.add.noftz.f16x2""",
            "float-matrix": """mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
                wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32""",
        }
        for rule, operations in faults.items():
            for operation in operations.split():
                for line in ("\t{} \t%f1, %f2;", "$L__BB0_1: @!%p3 {} %f1, %f2;", "{{.reg .b32 t; mov.b32 t, %r1; {} %f1, t;}}"):
                    with self.subTest(operation=operation, line=line):
                        text = changed(PTX, PTX_PLACE, line.format(operation) + "\n" + PTX_PLACE)
                        self.assertEqual(ptx_findings(text), {("rms_norm", rule)})

    def test_what_rounds_nothing_is_let_pass(self):
        right = "atom.global.add.s32 red.global.min.u32 max.f32 neg.f32 cvt.rzi.s32.f32 cvt.rni.f32.f32 mul.wide.s32 st.global.f32 setp.gt.f32"
        for operation in right.split():
            with self.subTest(operation=operation):
                self.assertEqual(ptx_findings(changed(PTX, PTX_PLACE, f"\t{operation} \t%r1, %r2;\n" + PTX_PLACE)), set())

    def test_many_of_one_kind_are_one_line_that_says_where_the_first_is(self):
        text = changed(PTX, PTX_PLACE, "/* two\nlines */\n" + "\tadd.f32 \t%f1, %f2, %f3;\n" * 3)
        [finding] = lint.lint_ptx("kernels.compute_80.ptx", lint.parse_ptx(text))
        line = text.splitlines().index("\tadd.f32 \t%f1, %f2, %f3;") + 1
        self.assertEqual(str(finding), f"kernels.compute_80.ptx: rms_norm: add.f32 has no .rn (line {line}, and 2 more) [rounding]")

    def test_a_quantised_product_without_matrix_instructions_is_found(self):
        text = changed(PTX, "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", "dp4a.s32.s32")
        self.assertEqual(ptx_findings(text), {("linear_q8_8", "integer-matrix")})

    def test_a_function_that_kernels_call_is_looked_at_and_is_no_kernel(self):
        function = ".func  (.param .b32 func_retval0) _Z6helperfi(\n\t.param .b32 p\n)\n{\n\tadd.f32 \t%f1, %f2, %f3;\n}\n"
        kernels = lint.parse_ptx(PTX + function)
        self.assertEqual(lint.entries(kernels), lint.entries(lint.parse_ptx(PTX)))
        self.assertEqual(ptx_findings(PTX + function), {("_Z6helperfi", "rounding")})

    def test_an_image_without_the_kernels_that_rules_are_for_is_found(self):
        self.assertEqual(ptx_findings(".version 8.8\n"), {("-", "kernels")})
        self.assertEqual(ptx_findings(PTX.replace("linear_q8_8", "product_q8_8")), {("-", "kernels")})

    def test_registers_by_launch_bounds(self):
        for threads, blocks, registers in [(1024, 1, 64), (256, 1, 255), (256, 2, 128), (128, 1, 255), (288, 1, 168), (128, 16, 32)]:
            self.assertEqual(lint.Ptx(threads=threads, blocks=blocks).registers_max(), registers, (threads, blocks))
        kernels = lint.parse_ptx(PTX)
        self.assertEqual((kernels["linear_f16_8"].threads, kernels["linear_f16_8"].blocks), (256, 2))
        self.assertEqual(kernels["rope"].threads, lint.THREADS_MAX)


class Code(unittest.TestCase):
    def test_what_is_right_has_no_findings(self):
        self.assertEqual(code_findings(), set())
        code = lint.parse_code(RESOURCES, ASSEMBLY)["linear_q8_8"]
        self.assertEqual((code.registers, code.shared, code.local, code.instructions()), (64, 9728, 0, 3))

    def test_local_memory_is_found(self):
        for operation in ("STL [R1], R68", "@P0 LDL.LU.64 R72, [R1+0x8]", "@!UP1 STL.64 [R1], R2"):
            with self.subTest(operation=operation):
                self.assertEqual(code_findings(assembly=planted(operation)), {("rms_norm", "local-memory")})
        norm = "Function rms_norm:\n  REG:64 STACK:0 SHARED:1024 LOCAL:0"
        for use in ("STACK:16 SHARED:1024 LOCAL:0", "STACK:0 SHARED:1024 LOCAL:8"):
            with self.subTest(use=use):
                self.assertEqual(code_findings(changed(RESOURCES, norm, f"Function rms_norm:\n  REG:64 {use}")), {("rms_norm", "local-memory")})

    def test_local_memory_of_a_kernel_that_is_not_hot_is_let_pass(self):
        self.assertEqual(code_findings(changed(RESOURCES, "REG:22 STACK:0", "REG:22 STACK:64")), set())

    def test_a_quantised_product_without_matrix_instructions_is_found(self):
        self.assertEqual(code_findings(assembly=changed(ASSEMBLY, "IMMA.16832.S8.S8", "IDP.4A.S8.S8")), {("linear_q8_8", "integer-matrix")})

    def test_approximations_and_products_of_floats_in_matrix_units_are_found(self):
        for operation, rule in [("MUFU.EX2 R3, R4", "approximate"), ("@P1 MUFU.LG2 R3, R4", "approximate"), ("HMMA.16816.F32 R4, R8, R12, R4", "float-matrix")]:
            self.assertEqual(code_findings(assembly=planted(operation)), {("rms_norm", rule)})
        for operation in ("MUFU.RCP R3, R4", "MUFU.RSQ R3, R4", "FADD.FTZ R3, R4, R5", "FFMA.RZ R3, R4, R5, R3"):
            self.assertEqual(code_findings(assembly=planted(operation)), set())

    def test_more_registers_than_the_launch_bounds_leave_are_found(self):
        self.assertEqual(code_findings(changed(RESOURCES, "REG:80", "REG:128")), set())
        self.assertEqual(code_findings(changed(RESOURCES, "REG:80", "REG:136")), {("linear_f16_8", "registers")})
        self.assertEqual(code_findings(changed(RESOURCES, "REG:22", "REG:72")), {("rope", "registers")})

    def test_a_disassembly_that_was_not_understood_is_found(self):
        self.assertIn(("rope", "kernels"), code_findings(assembly=ASSEMBLY.replace("/*0000*/", "0000:")))
        self.assertEqual(code_findings("", ""), {("-", "kernels")})


class Images(unittest.TestCase):
    def test_a_kernel_that_one_image_lacks_is_found(self):
        [finding] = lint.lint_names({"kernels.sm_80.cubin": {"rope", "swiglu"}, "kernels.sm_90.cubin": {"rope"}})
        self.assertEqual((finding.file, finding.kernel, finding.rule), ("kernels.sm_90.cubin", "swiglu", "kernels"))

    def test_exceptions_excuse_what_they_name_and_nothing_else(self):
        spills = [lint.Finding(f"kernels.{sm}.cubin", "linear_q8_32", "local-memory", "16 bytes") for sm in ("sm_80", "sm_90")]
        exception = ("local-memory", "kernels.sm_80.cubin", "linear_q8_*", "two registers, outside of the loop")
        files = [finding.file for finding in spills]
        left, excused = lint.excuse(spills, files, [exception])
        self.assertEqual((left, len(excused)), ([spills[1]], 1))
        self.assertIn("two registers, outside of the loop", excused[0])
        for other in (("registers", *exception[1:]), (*exception[:2], "attention", "")):
            left, excused = lint.excuse(spills, files, [other])
            self.assertEqual((left[:2], [finding.rule for finding in left[2:]], excused), (spills, ["exceptions"], []))

    def test_exceptions_have_reasons(self):
        for exception in lint.EXCEPTIONS:
            self.assertTrue(all(exception), exception)


class Program(unittest.TestCase):
    def run_it(self, ptx, assembly):
        """The whole program, with a disassembler that prints what it is given here."""
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            for program, text in (("cuobjdump", RESOURCES), ("nvdisasm", assembly)):
                (folder / f"{program}.txt").write_text(text)
                (folder / program).write_text(f"#!/bin/sh\ncat {folder}/{program}.txt\n")
                (folder / program).chmod(0o755)
            (folder / "kernels.sm_90.cubin").write_bytes(b"")
            (folder / "kernels.compute_80.ptx").write_text(ptx)
            command = [sys.executable, lint.__file__, "--disassembler", name, name]
            return subprocess.run(command, capture_output=True, text=True, check=False)

    def test_exits_with_1_if_there_is_a_finding(self):
        right = self.run_it(PTX, ASSEMBLY)
        self.assertEqual((right.returncode, right.stderr), (0, ""))
        self.assertIn("0 findings", right.stdout)
        self.assertRegex(right.stdout, r"linear_q8_8 +9728 \| +64 +0 +3")
        wrong = self.run_it(changed(PTX, "sqrt.rn.f32", "sqrt.approx.f32"), changed(ASSEMBLY, "IMMA", "IDP"))
        self.assertEqual(wrong.returncode, 1)
        self.assertIn("\nkernels.compute_80.ptx: rms_norm: sqrt.approx.f32 is an approximation", wrong.stdout)
        self.assertIn("\nkernels.sm_90.cubin: linear_q8_8: no integer matrix instruction (IMMA)", wrong.stdout)

    def test_an_empty_folder_is_an_error(self):
        with tempfile.TemporaryDirectory() as name:
            done = subprocess.run([sys.executable, lint.__file__, "--disassembler", name, name], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("has compile.py run?", done.stderr)


if __name__ == "__main__":
    unittest.main()
