"""What runs on a bare GPU box: the engine and its kernels, without the packages of the server."""

from __future__ import annotations

import subprocess
import sys

ALLOWED = {"torch", "triton", "numpy", "safetensors", "msgspec"}
"""Direct dependencies; what these bring along themselves is there too."""

PROGRAM = """
import importlib.metadata, importlib.util, re, sys

def with_requirements(name, found):
    if name in found:
        return
    found.add(name)
    for line in importlib.metadata.requires(name) or []:
        required = re.match(r"[A-Za-z0-9._-]+", line)[0]
        try:
            with_requirements(required.lower().replace("_", "-"), found)
        except importlib.metadata.PackageNotFoundError:
            pass

allowed = set()
for name in sys.argv[1:]:
    if importlib.util.find_spec(name):
        with_requirements(name, allowed)
owners = {
    module: {name.lower().replace("_", "-") for name in names}
    for module, names in importlib.metadata.packages_distributions().items()
}

class Absent:
    def find_spec(self, name, path=None, target=None):
        owner = owners.get(name.partition(".")[0])
        if owner and not owner & (allowed | {"tuili"}):
            raise ModuleNotFoundError(f"{name} is not on a bare GPU box", name=name)

sys.meta_path.insert(0, Absent())
import app.engine.core, app.engine.inproc, app.engine.process, app.runner.start, app.worker
import benchmarks.gpu_report
for stage in benchmarks.gpu_report.STAGES:
    __import__(f"benchmarks.gpu.{stage.module}")
"""


def test_the_engine_needs_few_packages() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, *sorted(ALLOWED)], check=True, timeout=120)
