"""Compiles the CUDA kernels with NVRTC: machine code for the GPUs that there are, PTX for those that come.

    compile.py --nvrtc FOLDER --source kernels/cuda/device/all.cu --out OUT

Writes OUT/kernels.sm_90.cubin and so on. What has been compiled from the same sources with the same options is left as it is. No GPU, no C++
compiler and no headers of CUDA are needed. A PTX image ends with a NUL, as cuModuleLoadData wants it.
"""

import argparse
import concurrent.futures
import ctypes
import functools
import hashlib
import json
import os
import pathlib
import sys
import time

# Machine code runs on its major version from its minor version on: sm_80 is also for 8.6, 8.7 and 8.9. For a newer major version, the driver
# compiles the PTX. compute_75 is PTX for what is older than 8.0 only.
ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "compute_75", "compute_80"]
# A product and a sum stay two operations: the CPU rounds both, and the bits are to be the same. Where they are one, the source says fmaf.
OPTIONS = ["--fmad=false", "--std=c++17"]
PROCESSES_MAX = 2
COMPILED = "compiled.json"  # of each image in OUT, the fingerprint of what it was compiled from


class CompileError(Exception):
    """What NVRTC has to say against a source: lines that begin with FILE(LINE)."""


@functools.cache
def load(folder: str) -> ctypes.CDLL:
    return ctypes.CDLL(os.path.join(folder, "libnvrtc.so.12"))


def image_name(architecture: str) -> str:
    return f"kernels.{architecture}.{'ptx' if architecture.startswith('compute_') else 'cubin'}"


def fingerprint(nvrtc: pathlib.Path, source: pathlib.Path, architecture: str) -> str:
    """Of all that an image is made from: the compiler (the folder has its version), the options, and every source beside `source`."""
    sha256 = hashlib.sha256(json.dumps([nvrtc.name, architecture, OPTIONS]).encode())
    for file in sorted(source.parent.rglob("*.cu*")):
        text = file.read_bytes()
        sha256.update(f"{file.relative_to(source.parent)} {len(text)}\n".encode() + text)
    return sha256.hexdigest()


def output(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, kind: str) -> bytes:
    """One of the texts that NVRTC keeps of a program: PTX, CUBIN, ProgramLog."""
    size = ctypes.c_size_t()
    check(nvrtc, getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    check(nvrtc, getattr(nvrtc, f"nvrtcGet{kind}")(program, text))
    return text.raw


def check(nvrtc: ctypes.CDLL, code: int):
    if code != 0:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise CompileError(f"NVRTC: {nvrtc.nvrtcGetErrorString(code).decode()}")


def compile_image(folder: str, source: str, architecture: str) -> tuple[bytes, str, float]:
    """The image, the compiler's warnings, and how many seconds it took. Included files are looked for beside the one that includes them."""
    started = time.monotonic()
    nvrtc = load(folder)
    program = ctypes.c_void_p()
    text = pathlib.Path(source).read_bytes()
    check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), 0, None, None))
    options = [option.encode() for option in [f"--gpu-architecture={architecture}", *OPTIONS]]
    code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    log = output(nvrtc, program, "ProgramLog").rstrip(b"\0").decode().strip()
    if code != 0 and log:
        raise CompileError(log)
    check(nvrtc, code)
    image = output(nvrtc, program, "PTX" if architecture.startswith("compute_") else "CUBIN")
    check(nvrtc, nvrtc.nvrtcDestroyProgram(ctypes.byref(program)))
    return image, log, time.monotonic() - started


def write(path: pathlib.Path, content: bytes):
    """At once: who reads it sees the old file or the new one."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    os.replace(fresh, path)


def known(out: pathlib.Path) -> dict[str, str]:
    """The fingerprints of the images in OUT, by name."""
    try:
        compiled = json.loads((out / COMPILED).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return {name: mark for name, mark in compiled.items() if (out / name).exists()}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nvrtc", required=True, type=pathlib.Path, help="folder that has libnvrtc.so.12")
    parser.add_argument("--source", required=True, type=pathlib.Path, help="the file that includes all others")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    args = parser.parse_args()
    if not args.source.is_file():
        print(f"{args.source}: no such file", file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = {image_name(a): (a, fingerprint(args.nvrtc, args.source, a)) for a in ARCHITECTURES}
    # Whoever embeds this folder takes all images in it, so one that is not wanted any more must go.
    for stale in set(args.out.glob("kernels.*")) - {args.out / name for name in wanted}:
        stale.unlink()
    compiled = known(args.out)
    missing = [name for name, (_, mark) in wanted.items() if compiled.get(name) != mark]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} images are there already", flush=True)

    complaints = []  # each once, whatever the number of images that it is said of
    with concurrent.futures.ProcessPoolExecutor(PROCESSES_MAX) as pool:
        running = {pool.submit(compile_image, str(args.nvrtc), str(args.source), wanted[name][0]): name for name in missing}
        failed = []
        for future in concurrent.futures.as_completed(running):
            name = running[future]
            try:
                image, warnings, seconds = future.result()
            except CompileError as error:
                failed.append(name)
                complaints.append(str(error))
                continue
            complaints += [warnings] if warnings else []
            write(args.out / name, image)
            compiled[name] = wanted[name][1]
            write(args.out / COMPILED, json.dumps({n: compiled[n] for n in sorted(compiled)}, indent=1).encode())
            print(f"{name}: {len(image)} bytes in {seconds:.1f} s", flush=True)
    print("\n".join(dict.fromkeys(complaints)), end="\n" if complaints else "", file=sys.stderr)
    if failed:
        print(f"not compiled: {', '.join(sorted(failed))}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
