"""The embedded demo model: an ordinary diffusers folder, shipped with the package."""

from pathlib import Path

import featstore


def demo_folder() -> Path:
    """The folder of the demo model inside the installed package."""
    return Path(featstore.__file__).parent / "assets" / "demo_model"
