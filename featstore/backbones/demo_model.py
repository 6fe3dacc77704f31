"""The model that `--model demo` names: a small Stable Diffusion trained on the demo dataset, shipped with the package.
An ordinary diffusers folder; its README.md says what it is and how it was trained (`tools/train_demo_model.py`)."""

from pathlib import Path

import featstore


def demo_folder() -> Path:
    """The demo model's folder in diffusers' layout."""
    return Path(featstore.__file__).parent / "assets" / "demo_model"
