"""Start a Python process with the noise of a noisy processor: Python imports this module by itself."""

import importlib.util
import sys
from pathlib import Path

if "torch" not in sys.modules and importlib.util.find_spec("torch") is not None:
    spec = importlib.util.spec_from_file_location("_blora_noise", Path(__file__).parents[1] / "noise.py")
    assert spec is not None
    assert spec.loader is not None
    noise = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(noise)
    if (seed := noise.seed_from_environment()) is not None:
        processor = noise.noisy_processor(seed)  # kept by this module: what is collected is undone
        processor.__enter__()
