"""The page of many jobs: its script as SLURM's shell reads it, its Job as Kubernetes does, its Python as it stands."""

import importlib.util
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cli.main import app
from featstore.pipeline.distributed import Part, find_part
from tests.docs.pages import DOCS, Block, Reader, blocks
from tests.docs.test_commands import parse

PARTS = [Part(number, 8) for number in range(1, 9)]


def block(holding: str) -> Block:
    return next(own for own in blocks(DOCS / "cluster.md") if holding in own.text)


def commands(script: str) -> list[str]:
    """The commands of a script as the shell hands them to dualsd."""
    code = f'dualsd() {{ printf "dualsd"; printf " %q" "$@"; echo; }}\n{script}'
    done = subprocess.run(["bash", "-e", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def check_commands(script: str) -> None:
    """Both commands of a job can be typed, and find their share themselves."""
    lines = commands(script)
    assert [shlex.split(line)[1:3] for line in lines] == [["cache", "build"], ["cache", "maps"]]
    for line in lines:
        parse(line)
        assert line.endswith(" --part auto")


def test_the_jobs_of_the_array_are_all_parts() -> None:
    script = block("#SBATCH").text
    assert "--array=0-7\n" in script
    check_commands(script)
    values = {"MIN": "0", "MAX": "7", "STEP": "1", "COUNT": "8"}
    told = {f"SLURM_ARRAY_TASK_{name}": value for name, value in values.items()}
    assert [find_part({**told, "SLURM_ARRAY_TASK_ID": str(id_)}) for id_ in range(8)] == PARTS


def test_the_pods_of_the_job_are_all_parts() -> None:
    """Kubernetes adds the index to what the container's env says."""
    job: Any = yaml.safe_load(block("completionMode").text)
    assert (job["apiVersion"], job["kind"], job["spec"]["completionMode"]) == ("batch/v1", "Job", "Indexed")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] in ("OnFailure", "Never")  # a Job takes no other
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    check_commands("\n".join(container["args"]))
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert all(isinstance(value, str) for value in environment.values())
    indices = range(job["spec"]["completions"])
    assert [find_part({**environment, "JOB_COMPLETION_INDEX": str(index)}) for index in indices] == PARTS


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed: make install does")
def test_submitit_runs_the_parts_here(
    tmp_path: Path, photographs: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's own script, with a small data set and model and 2 jobs for 8, on a machine without SLURM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join(["/usr/bin", "/bin"]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = block("submitit.AutoExecutor").text
    told = 'dataset="spair", root="data/SPair-71k", model="sd2-1", store=store, part=part'
    for old, new in {
        told: f'dataset="folder", root="{photographs}", model="{small_model}", size=64, store=store, part=part',
        'f"{number}/8" for number in range(1, 9)': 'f"{number}/2" for number in range(1, 3)',
    }.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    Reader(tmp_path, moved=0).run(Block("python", "", text))
    assert CliRunner().invoke(app, ["cache", "info", "--store", "spair.zarr", "--json", "info.json"]).exit_code == 0
    arrays = json.loads((tmp_path / "info.json").read_text())["arrays"]
    assert {array["path"].split("/")[0] for array in arrays} >= {"latents", "maps"}
    assert all(array["present"] == array["rows"] > 0 for array in arrays)
