"""Looks whether compiled CUDA kernels are what the CPU's bits and a GPU's speed ask for: exits with 1 and names what is not.

    lint.py --disassembler FOLDER IMAGES

IMAGES is what compile.py wrote: kernels.*.cubin and kernels.*.ptx. PTX shows how floats are rounded (a driver that compiles it may join what has
no .rn); machine code shows what the compiler made of a kernel. Prints a table of the kernels, then one line for each finding: file, kernel, what.
"""

import argparse
import collections
import dataclasses
import fnmatch
import math
import pathlib
import re
import subprocess
import sys

# Products of quantised weights: integers, in the matrix units.
QUANTISED = re.compile(r"linear_(?!f32_|f16_|bf16_)\w+")
# What is called for every token: nothing of it may lie in local memory, which is device memory.
HOT = re.compile(r"linear_\w+|attention\w*|rms_norm")

# What is allowed although a rule speaks against it: (rule, file, kernel, reason). File and kernel are patterns of fnmatch. Take out what is mended:
# an exception that excuses nothing is a finding itself.
EXCEPTIONS: list[tuple[str, str, str, str]] = []

REGISTERS = 65536  # of a multiprocessor, on all GPUs from sm_75 on
THREADS_MAX = 1024  # of a block, if the kernel has no launch bounds

# An operation with its suffixes at the begin of a statement of PTX, after a label and a predicate.
OPERATION = re.compile(r"[{\s]*(?:[\w$]+:\s*)?[{\s]*(?:@!?[%\w$]+\s+)?([a-z][a-z0-9_]*(?:\.[a-zA-Z0-9_:]+)*)(?=\s|$)")
FLOAT = r"\.(?:f|bf)(?:16|32|64)(?:x2)?\b"
ARITHMETIC = re.compile(rf"(?:add|sub|mul|mad|fma|div|sqrt|rcp)\b.*{FLOAT}$")
FUNCTIONS = re.compile(r"(?:ex2|lg2|sin|cos|tanh|rsqrt)\.")
MATRIX = re.compile(r"(?:mma|wmma\.mma|wgmma\.mma_async|tcgen05\.mma)\b")
INTEGER_MATRIX = re.compile(r"mma\.sync\.\S*\.s32\.[su]8\.[su]8\.s32$")
# What may not be in machine code: it is compiled apart from PTX, and may have parts that PTX of older architectures has not. Flushes of subnormal numbers,
# MUFU.RCP and MUFU.RSQ are no sign here, for they are steps of exact divisions and square roots.
CODE_RULES = [
    ("approximate", "is an approximation", ["MUFU.EX2", "MUFU.LG2", "MUFU.SIN", "MUFU.COS", "MUFU.TANH", "MUFU.SQRT"]),
    ("float-matrix", "sums floats in an order of its own", ["HMMA", "DMMA", "QMMA", "OMMA", "HGMMA", "QGMMA", "UTCHMMA", "UTCQMMA"]),
]


@dataclasses.dataclass(frozen=True)
class Finding:
    file: str
    kernel: str
    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.kernel}: {self.what} [{self.rule}]"


@dataclasses.dataclass
class Ptx:
    """One kernel of a PTX image, or a function that kernels call. In machine code, such a function is part of the kernel that calls it."""

    entry: bool = True
    operations: list[tuple[int, str]] = dataclasses.field(default_factory=list)  # (line of the file, operation with its suffixes)
    threads: int = THREADS_MAX  # of a block at most
    blocks: int = 1  # on a multiprocessor at least

    def registers_max(self) -> int:
        """Four warps of a block at a time get registers, each in lots of 256, so a thread gets a multiple of 8; 255 is what an instruction can name."""
        warps = -(-self.threads // 128) * 4
        return min(255, REGISTERS // (warps * self.blocks) // 256 * 8)


@dataclasses.dataclass
class Code:
    """One kernel of an image of machine code."""

    registers: int
    shared: int  # bytes; on sm_90 and newer, 1 KiB of them is the system's
    local: int  # bytes of a thread: stack (spilled registers are in it) and arrays
    operations: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # without suffixes, but for that of MUFU

    def instructions(self) -> int:
        return self.operations.total() - self.operations["NOP"]


def parse_ptx(text: str) -> dict[str, Ptx]:
    """Kernels and functions by name."""
    kernels: dict[str, Ptx] = {}
    kernel = Ptx()
    # The lines stay, so that their numbers are those of the file.
    text = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n"), text.rstrip("\0"), flags=re.S)
    for number, line in enumerate(text.splitlines(), 1):
        line = line.split("//")[0].strip()
        if match := re.search(r"\.(entry|func)\s+(?:\([^)]*\)\s*)?([\w$]+)", line):
            kernel = kernels.setdefault(match[2], Ptx(entry=match[1] == "entry"))
        elif bounds := re.match(r"\.(?:maxntid|reqntid)\s+([\d,\s]+)", line):
            kernel.threads = math.prod(map(int, bounds[1].split(",")))
        elif bounds := re.match(r"\.minnctapersm\s+(\d+)", line):
            kernel.blocks = int(bounds[1])
        else:
            # A line of inline assembly may have many: {.reg .b16 h; mov.b16 h, %rs1; cvt.f32.f16 %f1, h;}
            for statement in line.split(";"):
                if operation := OPERATION.match(statement):
                    kernel.operations.append((number, operation[1]))
    return kernels


def fault(operation: str) -> tuple[str, str] | None:
    """The rule that a PTX operation breaks, and why it is one."""
    suffixes = operation.split(".")[1:]
    if "approx" in suffixes or "full" in suffixes or FUNCTIONS.match(operation):
        return "approximate", "is an approximation"
    if "ftz" in suffixes:
        return "subnormals", "makes 0 of subnormal numbers"
    if suffixes and MATRIX.match(operation) and not INTEGER_MATRIX.match(operation):
        return "float-matrix", "is no product of 8-bit integers: floats are summed in an order of its own"
    if suffixes and operation.split(".")[0] in ("atom", "red", "multimem") and re.search(FLOAT, operation) and "add" in suffixes:
        return "atomic", "sums floats in the order in which threads come"
    if ARITHMETIC.match(operation) and "rn" not in suffixes:
        return "rounding", "has no .rn"
    return None


def lint_ptx(file: str, kernels: dict[str, Ptx]) -> list[Finding]:
    findings = missing_kernels(file, entries(kernels))
    for name, kernel in kernels.items():
        lines = collections.defaultdict(list)
        for line, operation in kernel.operations:
            if broken := fault(operation):
                lines[operation, *broken].append(line)
        for (operation, rule, why), at in lines.items():
            again = f", and {len(at) - 1} more" if len(at) > 1 else ""
            findings.append(Finding(file, name, rule, f"{operation} {why} (line {at[0]}{again})"))
        if QUANTISED.fullmatch(name) and not any(INTEGER_MATRIX.match(operation) for _, operation in kernel.operations):
            findings.append(Finding(file, name, "integer-matrix", "no integer matrix instruction (mma of s8)"))
    return findings


def entries(kernels: dict[str, Ptx]) -> set[str]:
    return {name for name, kernel in kernels.items() if kernel.entry}


def missing_kernels(file: str, names: set[str]) -> list[Finding]:
    """Rules that find no kernel hold of everything."""
    rules = [(QUANTISED, "product of quantised weights"), (HOT, "kernel that is called for every token")]
    return [Finding(file, "-", "kernels", f"no {what} ({pattern.pattern})") for pattern, what in rules if not any(map(pattern.fullmatch, names))]


def parse_code(resources: str, assembly: str) -> dict[str, Code]:
    """Kernels by name, from what `cuobjdump --dump-resource-usage` and `nvdisasm -c` print."""
    kernels = {}
    for match in re.finditer(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", resources):
        registers, stack, shared, local = map(int, match.groups()[1:])
        kernels[match[1]] = Code(registers, shared, stack + local)
    operations: collections.Counter[str] = collections.Counter()
    for line in assembly.splitlines():
        if match := re.match(r"\s*\.section\s+\.text\.([\w$]+)", line):
            operations = kernels.setdefault(match[1], Code(registers=0, shared=0, local=0)).operations
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@!?U?P\w+\s+)?(MUFU\.\w+|[A-Z][A-Z0-9_]*)", line):
            operations[match[1]] += 1
    return kernels


def lint_code(file: str, kernels: dict[str, Code], registers_max: dict[str, int]) -> list[Finding]:
    findings = missing_kernels(file, set(kernels))
    for name, kernel in kernels.items():
        loads, stores = kernel.operations["LDL"], kernel.operations["STL"]
        if HOT.fullmatch(name) and (kernel.local or loads or stores):
            what = f"{kernel.local} bytes of local memory, {loads} loads and {stores} stores (LDL, STL)"
            findings.append(Finding(file, name, "local-memory", what))
        if QUANTISED.fullmatch(name) and not kernel.operations["IMMA"]:
            findings.append(Finding(file, name, "integer-matrix", "no integer matrix instruction (IMMA)"))
        for rule, why, operations in CODE_RULES:
            if there := [f"{operation} ({kernel.operations[operation]})" for operation in operations if kernel.operations[operation]]:
                findings.append(Finding(file, name, rule, f"{', '.join(there)} {why}"))
        if not kernel.instructions():
            findings.append(Finding(file, name, "kernels", "no instructions: the disassembly was not understood"))
        limit = registers_max.get(name)
        if limit is not None and kernel.registers > limit:
            what = f"{kernel.registers} registers, where the launch bounds (without: {THREADS_MAX} threads) leave {limit}"
            findings.append(Finding(file, name, "registers", what))
    return findings


def lint_names(names: dict[str, set[str]]) -> list[Finding]:
    """Every image has every kernel."""
    everything = set().union(*names.values())
    return [Finding(file, kernel, "kernels", "not in this image") for file, there in names.items() for kernel in sorted(everything - there)]


def excuse(findings: list[Finding], files: list[str], exceptions: list[tuple[str, str, str, str]]) -> tuple[list[Finding], list[str]]:
    """What is left of the findings, and a line for each that is excused."""
    left, excused, used = [], [], set()
    for finding in findings:
        for index, (rule, file, kernel, reason) in enumerate(exceptions):
            if rule == finding.rule and fnmatch.fnmatchcase(finding.file, file) and fnmatch.fnmatchcase(finding.kernel, kernel):
                used.add(index)
                excused.append(f"allowed: {finding}: {reason}")
                break
        else:
            left.append(finding)
    for index, (rule, file, kernel, _) in enumerate(exceptions):
        if index not in used and any(fnmatch.fnmatchcase(name, file) for name in files):
            left.append(Finding(file, kernel, "exceptions", f"the exception from {rule} excuses nothing any more: take it out"))
    return left, excused


def table(codes: dict[str, dict[str, Code]]) -> str:
    """A line for each kernel: its shared memory, and in each image its registers, bytes of local memory and instructions."""
    images = sorted(codes, key=lambda file: int(re.sub(r"\D", "", file)))
    kernels = sorted(set().union(*codes.values()))
    width = max(map(len, [*kernels, "kernel"]))
    lines = [" " * width + " " * 8 + "".join(f" |{file.split('.')[1]:^17}" for file in images)]
    lines.append(f"{'kernel':{width}}  shared" + " |regs  local instr" * len(images))
    for kernel in kernels:
        there = [codes[file].get(kernel) for file in images]
        columns = [f" |{code.registers:4} {code.local:6} {code.instructions():5}" if code else " |" + " " * 17 for code in there]
        lines.append(f"{kernel:{width}}  {max(code.shared for code in there if code):6}" + "".join(columns))
    return "\n".join(lines)


def disassemble(folder: pathlib.Path, file: pathlib.Path) -> dict[str, Code]:
    def run(*command: str) -> str:
        # Both warn of formats of older machine code, which they read all the same; what they could not read has no instructions here.
        done = subprocess.run([folder / command[0], *command[1:], file], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{file}: {command[0]}: {done.stderr.strip()}")
        return done.stdout

    return parse_code(run("cuobjdump", "--dump-resource-usage"), run("nvdisasm", "-c"))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--disassembler", required=True, type=pathlib.Path, help="folder that has nvdisasm and cuobjdump")
    parser.add_argument("images", type=pathlib.Path, help="folder that has kernels.*.cubin and kernels.*.ptx")
    args = parser.parse_args()
    ptx = {file.name: parse_ptx(file.read_text()) for file in sorted(args.images.glob("kernels.*.ptx"))}
    codes = {file.name: disassemble(args.disassembler, file) for file in sorted(args.images.glob("kernels.*.cubin"))}
    if not ptx or not codes:
        sys.exit(f"{args.images}: no kernels.*.ptx, or no kernels.*.cubin: has compile.py run?")
    # Launch bounds stand in PTX; they are those of the source, and so of all images.
    registers_max: dict[str, int] = {}
    for kernels in ptx.values():
        for name, kernel in kernels.items():
            registers_max[name] = min(kernel.registers_max(), registers_max.get(name, 255))

    findings = lint_names({**{file: entries(ptx[file]) for file in ptx}, **{file: set(codes[file]) for file in codes}})
    for file in ptx:
        findings += lint_ptx(file, ptx[file])
    for file in codes:
        findings += lint_code(file, codes[file], registers_max)
    findings, excused = excuse(findings, [*ptx, *codes], EXCEPTIONS)
    print(table(codes))
    print("\n".join([*excused, *map(str, findings)]), end="\n" if excused or findings else "")
    print(f"{len(codes)} images of machine code, {len(ptx)} of PTX: {len(findings)} findings, {len(excused)} allowed")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
