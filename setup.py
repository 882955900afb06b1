"""Builds the native library `dspark_kernels/_native.abi3.so`; the metadata is in pyproject.toml.

One library serves every Python and every torch >= 2.11: it speaks only torch's stable ABI. torch is
never imported here, its headers are found by path, so that build isolation works. Environment:

    CXX                 the C++ compiler (g++)
    CUDA_HOME           where nvcc is; else it is looked for on PATH. Without nvcc: CPU kernels only
    DSPARK_CUDA_ARCHS   such as "80;90a": the GPU architectures; empty: CPU kernels only
    DSPARK_SANITIZE=1   with AddressSanitizer and UndefinedBehaviorSanitizer, for tests
    DSPARK_CUDART       a library with the CUDA runtime, in place of nvcc's own; for tests
"""

import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = Path("csrc")
# sources in csrc/cpu/kernels are compiled once per instruction set, and chosen from at run time
INSTRUCTION_SETS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = [
        *INSTRUCTION_SETS["avx2"],
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
    ]
    INSTRUCTION_SETS["avx512bf16"] = [*INSTRUCTION_SETS["avx512"], "-mavx512bf16"]
    INSTRUCTION_SETS["amx"] = [*INSTRUCTION_SETS["avx512bf16"], "-mamx-tile", "-mamx-bf16"]
DEFAULT_CUDA_ARCHS = ("80", "90a", "100")
RESOURCES = re.compile(r"ptxas info|    \d+ bytes stack frame")  # what -Xptxas -v says of kernels


def torch_include() -> Path:
    """The folder of torch's headers, found without importing torch."""
    folders = {
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        *site.getsitepackages(),
    }
    for folder in (*folders, site.getusersitepackages()):
        include = Path(folder, "torch", "include")
        if (include / "torch/csrc/stable/library.h").exists():
            return include
    raise SystemExit(
        "dspark_kernels needs the headers of torch >= 2.11 to build. Please run\n"
        "    pip install 'torch>=2.11'\n"
        "    pip install ."
    )


def find_nvcc() -> str | None:
    """The path of nvcc, or None."""
    if home := os.environ.get("CUDA_HOME"):
        return shutil.which("nvcc", path=str(Path(home, "bin")))
    return shutil.which("nvcc")


def cuda_archs(nvcc: str) -> list[str]:
    """The architectures to build for: those asked for, or the default ones which nvcc knows."""
    asked = os.environ.get("DSPARK_CUDA_ARCHS")
    if asked is not None:
        return [arch for arch in asked.replace(",", ";").split(";") if arch]
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    return [
        arch for arch in DEFAULT_CUDA_ARCHS if f"compute_{arch.rstrip('a')}" in known.stdout.split()
    ]


def cuda_targets(archs: list[str]) -> list[str]:
    """What nvcc calls machine code for each architecture, and PTX of the last for newer GPUs."""
    targets = [f"arch=compute_{arch},code=sm_{arch}" for arch in archs]
    portable = [arch for arch in archs if arch.isdigit()]  # the code of 90a runs on nothing newer
    targets += [f"arch=compute_{arch},code=compute_{arch}" for arch in portable[-1:]]
    return targets


def dependencies(depfile: Path) -> list[Path]:
    """The files named in a makefile rule written by the compiler (-MD)."""
    rule = depfile.read_text().replace("\\\n", " ")
    return [Path(name) for name in rule.split(":", 1)[1].split()]


def compile_file(command: list[str], source: Path, target: Path) -> None:
    """Run `command -c source -o target` unless neither the command nor an included file changed.

    What kernels take of a GPU goes into target.resources, for tests.
    """
    command = [*command, "-MD", "-MF", f"{target}.d", "-c", str(source), "-o", str(target)]
    recipe, stamp = Path(f"{target}.cmd"), shlex.join(command)
    if target.exists() and recipe.exists() and recipe.read_text() == stamp:
        built = target.stat().st_mtime
        files = dependencies(Path(f"{target}.d"))
        if all(file.exists() and file.stat().st_mtime <= built for file in files):
            return
    print(f"compiling {target}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    recipe.unlink(missing_ok=True)
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    resources, messages = "", ""
    for line in done.stderr.splitlines(keepends=True):
        if RESOURCES.match(line):
            resources += line
        else:
            messages += line
    print(messages, end="", file=sys.stderr, flush=True)
    if done.returncode:
        raise CompileError(f"{source} does not compile, see what the compiler says above")
    if resources:
        Path(f"{target}.resources").write_text(resources)
    recipe.write_text(stamp)


def compile_files(jobs: list[tuple[list[str], Path, Path]], workers: int | None) -> None:
    """Run (command, source, target) in parallel; once one fails, no other is started."""
    with ThreadPoolExecutor(workers) as pool:
        started = [pool.submit(compile_file, *job) for job in jobs]
        try:
            for job in as_completed(started):
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class BuildNative(build_ext):
    """Compiles csrc/ in parallel, only what changed, and links one library."""

    def build_extension(self, ext: Extension) -> None:
        nvcc = find_nvcc() if any(source.endswith(".cu") for source in ext.sources) else None
        archs = cuda_archs(nvcc) if nvcc else []
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        # warnings are for our code (-I), not for torch's (-isystem)
        common = ["-std=c++20", "-O3", f"-I{CSRC}", "-isystem", str(torch_include())]
        common += ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
        # gcc 12 finds fault with its own immintrin.h
        host = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-uninitialized"]
        link = [f"-L{torch_include().parent / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
        # one place, also for editable installs, so that nothing is compiled twice
        objects_folder = Path("build/native")
        if os.environ.get("DSPARK_SANITIZE") == "1":
            objects_folder = Path("build/native-sanitized")
            host += ["-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
            link += ["-lasan", "-lubsan"]
        jobs = []
        # what takes longest first
        for source in sorted(map(Path, ext.sources), key=lambda path: path.suffix != ".cu"):
            target = objects_folder / source.with_suffix(".o")
            if source.suffix == ".cu":
                if archs:
                    gencode = [f"-gencode={flag}" for flag in cuda_targets(archs)]
                    flags = ["-ccbin", compiler[0], "--expt-relaxed-constexpr", "-Xptxas=-v"]
                    flags += [f"-Xcompiler={flag}" for flag in host]
                    cuda_target = target.with_suffix(".cu.o")
                    jobs.append(([nvcc, *common, *flags, *gencode], source, cuda_target))
            elif source.parent.name == "kernels":
                for isa, flags in INSTRUCTION_SETS.items():
                    flags = [*flags, "-fno-exceptions", f"-DDSPARK_ISA={isa}"]
                    command = [*compiler, *common, *host, *flags]
                    jobs.append((command, source, target.with_suffix(f".{isa}.o")))
            else:
                names = [f'-DDSPARK_CUDA_ARCHS="{";".join(archs)}"'] * (source.name == "module.cpp")
                jobs.append(([*compiler, *common, *host, *names], source, target))
        compile_files(jobs, self.parallel or os.cpu_count())
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        objects = [str(target) for _, _, target in jobs]
        # a new file, not the old one overwritten: a running program may have that one mapped
        library.unlink(missing_ok=True)
        linker = compiler
        if archs and (cudart := os.environ.get("DSPARK_CUDART")):
            link.append(cudart)
        elif archs:
            linker = [nvcc, "-ccbin", compiler[0], "-cudart=static"]
        subprocess.run([*linker, "-shared", *objects, *link, "-o", str(library)], check=True)


if int(setuptools.__version__.split(".")[0]) < 77:  # it cannot read the license's name
    raise SystemExit(
        f"dspark_kernels needs setuptools >= 77 to build, found {setuptools.__version__}. "
        "Please run\n    pip install 'setuptools>=77'"
    )
setup(
    ext_modules=[
        Extension(
            "dspark_kernels._native",
            [str(path) for path in sorted(CSRC.rglob("*")) if path.suffix in (".cpp", ".cu")],
            depends=[
                str(path) for path in sorted(CSRC.rglob("*")) if path.suffix in (".h", ".cuh")
            ],
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
