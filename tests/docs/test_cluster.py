"""The page of many jobs: its script as SLURM's shell reads it."""

import os
import shlex
import subprocess

from featstore.pipeline.distributed import Part, parse_part
from tests.docs.pages import DOCS, Block, blocks
from tests.docs.test_commands import parse


def script() -> Block:
    return next(block for block in blocks(DOCS / "cluster.md") if "#SBATCH" in block.text)


def commands(task: int, count: int) -> list[str]:
    """The script's commands as the shell hands them to dualsd."""
    code = f'dualsd() {{ printf "dualsd"; printf " %q" "$@"; echo; }}\n{script().text}'
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(count)}
    done = subprocess.run(["bash", "-e", "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()


def test_its_jobs_are_all_parts() -> None:
    assert "--array=0-7" in script().text
    for name in ("build", "maps"):
        lines = [line for task in range(8) for line in commands(task, 8) if f"cache {name}" in line]
        for line in lines:
            parse(line)
        parts = [parse_part(shlex.split(line)[shlex.split(line).index("--part") + 1]) for line in lines]
        assert parts == [Part(number, 8) for number in range(1, 9)]
