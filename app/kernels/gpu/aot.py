"""Compiles collected launches for a GPU that need not be there, and reads what the compiler made of them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from app.kernels.gpu.launch import Launch

_WARP = 32


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled kernel."""

    name: str
    registers: int
    """Registers of a thread."""
    stack_bytes: int
    """Bytes of a thread's stack, which holds spilled registers."""
    shared_bytes: int
    """Bytes of shared memory of a thread block."""
    ptx: str
    """The kernel in PTX."""

    @property
    def uses_wgmma(self) -> bool:
        """Whether it multiplies with Hopper's warp-group instructions."""
        return "wgmma.mma_async" in self.ptx

    @property
    def waits_for_inputs(self) -> bool:
        """Whether it may start ahead of the end of the kernel before it, and waits for that."""
        return "griddepcontrol.wait" in self.ptx

    @property
    def lets_next_start_first(self) -> bool:
        """Whether it lets the next kernel start before it has waited itself."""
        return "griddepcontrol.launch_dependents" in self.ptx.partition("griddepcontrol.wait")[0]


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """Compiles a launch for compute capability ``capability`` (90 for sm_90).

    Raises:
        Exception: whatever Triton's compiler or ptxas has against it.
    """
    names = list(launch.kernel.arg_names)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in launch.aligned}
    source = ASTSource(
        fn=launch.kernel,
        signature=dict(launch.signature),
        constexprs={(names.index(name),): value for name, value in launch.constants},
        attrs=attributes,
    )
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, _WARP), options=options)
    registers, stack = _resources(kernel.asm["cubin"])
    return Compiled(launch.name, registers, stack, int(kernel.metadata.shared), str(kernel.asm["ptx"]))


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of the one function in a cubin."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "kernel.cubin")
        path.write_bytes(cubin)
        shown = subprocess.run([tool, "--dump-resource-usage", path], check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", shown)
    if found is None:
        raise RuntimeError(f"{tool} says nothing of registers: {shown!r}")
    return int(found[1]), int(found[2])
