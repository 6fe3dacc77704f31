"""The example in README runs as it stands, with nothing of the engine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("block", "printed"), zip(EXAMPLES, ["kernelsoftmax", "lead:"], strict=True))
def test_the_python_examples(block: str, printed: str) -> None:
    code = block + "\nimport sys\nassert not {'diffusers', 'zarr', 'featstore', 'cli'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
