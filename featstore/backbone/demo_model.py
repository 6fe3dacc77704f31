"""The model that `--model demo` names: a small Stable Diffusion with seeded random weights, made at first use.

It shows how everything works; its features mean nothing.
"""

import shutil
import tempfile
from pathlib import Path

from featstore.backbone.cache_folder import cache_folder

SEED = 0


def demo_folder() -> Path:
    """The demo model's folder in diffusers' layout, written to the user's cache where it is not there yet."""
    folder = cache_folder() / f"demo-model-{SEED}"
    if folder.is_dir():
        return folder
    from featstore.backbone.quiet import quiet_libraries
    from featstore.backbone.small_model import write_small_model

    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix="demo-model-", dir=folder.parent))
    try:
        with quiet_libraries():
            write_small_model(making / "model", seed=SEED)
        if not folder.is_dir():  # another process may have been quicker
            (making / "model").rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder
