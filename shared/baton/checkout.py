"""What only a checkout of the repository has: the training kit of the demo model, the tests' fake worker."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from baton.errors import ConfigError

ROOT = Path(__file__).parents[2]


def import_from_checkout(module: str, *, asked_by: str) -> ModuleType:
    """Import a module that the package does not carry.

    Raises:
        ConfigError: Baton was not installed from a checkout as `pip install -e .` does.
    """
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if not file.is_file():
        raise ConfigError(
            f"{asked_by} needs {module}, which is not in the package. Clone the repository and install it with "
            f"`pip install -e .`."
        )
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return importlib.import_module(module)
