"""Builds the native kernels beside the Python package; everything else is in pyproject.toml.

Each ``app/kernels/<op>/cpu.cpp`` is compiled once for every instruction set, what they share once for the base one.
The library has no Python and no torch in it: :mod:`app.kernels.native` loads it through ctypes. Where there is no
compiler, or another architecture, the package installs without it, says so, and runs on plain torch.
"""

from __future__ import annotations

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, ExecError, PlatformError

KERNELS = Path("app/kernels")
SHARED = sorted(str(path) for path in (KERNELS / "native").glob("*.cpp"))
OPS = sorted(str(path) for path in KERNELS.glob("*/cpu.cpp"))
HEADERS = sorted(str(path) for path in KERNELS.glob("**/*.h"))
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
ISAS = {"avx2": AVX2, "avx512": AVX2 + AVX512, "avx512_bf16": AVX2 + AVX512 + ["-mavx512bf16"]}
# -ffp-contract=off: a multiplication and an addition are fused where the source says so and nowhere else, so that one
# row's result does not hang on how a loop over rows was unrolled.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off", "-fvisibility=hidden"]
# GCC 12 takes the undefined operands of its own intrinsics for mistakes of ours.
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-uninitialized"]
WARNINGS += ["-Wno-ignored-attributes"]


class BuildKernels(build_ext):
    """Compiles in parallel, with flags a file, and gives up gracefully."""

    def build_extension(self, ext: Extension) -> None:
        """Compiles and links the library."""
        if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
            self._skip(f"there are none for {sys.platform} on {platform.machine()}")
            return
        try:
            self._build(ext)
        except (BaseError, CCompilerError, ExecError, PlatformError, OSError) as error:
            if os.environ.get("TUILI_REQUIRE_NATIVE"):
                raise
            self._skip(f"they did not compile ({error})")

    def _skip(self, why: str) -> None:
        self.warn(f"tuili: installing without native CPU kernels: {why}; a CPU will run on plain torch, slower")

    def _build(self, ext: Extension) -> None:
        flags = [*FLAGS, *WARNINGS, *os.environ.get("TUILI_CXXFLAGS", "").split()]
        jobs = [(source, "", []) for source in SHARED]
        jobs += [(source, isa, [f"-DTUILI_ISA={isa}", *isa_flags]) for source in OPS for isa, isa_flags in ISAS.items()]

        def compile_one(job: tuple[str, str, list[str]]) -> list[str]:
            source, isa, extra = job
            target = Path(self.build_temp, isa or "base")
            return self.compiler.compile(
                [source], output_dir=str(target), extra_postargs=[*flags, *extra], depends=HEADERS
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [name for names in pool.map(compile_one, jobs) for name in names]
        path = self.get_ext_fullpath(ext.name)
        self.compiler.link_shared_object(objects, path, extra_postargs=["-pthread"], target_lang="c++")


setup(
    ext_modules=[
        Extension(
            "app.kernels.native.libtuili",
            [*SHARED, *OPS],
            language="c++",
            depends=HEADERS,
            # Or a build in place, an editable install among them, would fail to copy what was skipped.
            optional=not os.environ.get("TUILI_REQUIRE_NATIVE"),
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
