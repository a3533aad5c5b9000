"""Start a Python process with the noise of a noisy processor: Python imports this module by itself.

The noise waits for torch, so that a process that does without torch still does.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


class _Noise(MetaPathFinder):
    """Make noise as soon as torch has been imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See MetaPathFinder."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load: Any = spec.loader.exec_module

        def load_and_shake(module: ModuleType) -> None:
            load(module)
            noise = importlib.util.spec_from_file_location("_blora_noise", Path(__file__).parents[1] / "noise.py")
            assert noise is not None
            assert noise.loader is not None
            made: Any = importlib.util.module_from_spec(noise)
            noise.loader.exec_module(made)
            if (seed := made.seed_from_environment()) is not None:
                self.processor = made.noisy_processor(seed)  # kept: what is collected is undone
                self.processor.__enter__()

        spec.loader.exec_module = load_and_shake  # type: ignore[method-assign]
        _kept.append(self)
        return spec


_kept: list[_Noise] = []
sys.meta_path.insert(0, _Noise())
