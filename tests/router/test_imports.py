"""The router and all it imports work without torch."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
import baton.router
for module in pkgutil.walk_packages(baton.router.__path__, "baton.router."):
    importlib.import_module(module.name)
import baton.registry, baton.metrics, baton.logs, baton.messages, baton.block_hash
heavy = {"torch", "triton", "transformers", "numpy", "baton.engine", "baton.models", "baton.kernels"} & set(sys.modules)
sys.exit(f"loaded: {heavy}" if heavy else 0)
"""


def test_importing_the_router_loads_no_torch() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
