"""Opening datasets by name, and choosing categories."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from featstore.datasets.pf_willow import PfWillowDataset
from featstore.datasets.records import AnnotatedPairs, Pair
from featstore.datasets.registry import DATASET_NAMES, open_dataset
from featstore.errors import DatasetError
from featstore.pipeline.pairs import choose_pairs


def test_names_are_sorted() -> None:
    assert list(DATASET_NAMES) == sorted(DATASET_NAMES)


def test_opens_each(
    spair_root: Path, pascal_root: Path, pascal_folder: Path, willow_root: Path, folder_root: Path
) -> None:
    for name, root in (
        ("spair", spair_root),
        ("pf-pascal", pascal_root),
        ("pf-pascal", pascal_folder),
        ("pf-willow", willow_root),
        ("folder", folder_root),
    ):
        dataset = open_dataset(name, root)
        assert dataset.name == name
        assert dataset.images()
        assert dataset.pairs("test")


def test_the_demo_takes_no_root(tmp_path: Path) -> None:
    pytest.importorskip("featstore.datasets.demo")
    assert open_dataset("demo", None).name == "demo"
    with pytest.raises(DatasetError, match="The demo dataset comes with dualsd and takes no root"):
        open_dataset("demo", tmp_path)


@pytest.mark.parametrize(
    ("name", "usual"), [("spair", "SPair-71k"), ("pf-pascal", "pf-pascal"), ("pf-willow", "pf-willow")]
)
def test_the_usual_sub_folder_is_accepted(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, usual: str
) -> None:
    fixture = {"spair": "spair_root", "pf-pascal": "pascal_root", "pf-willow": "willow_root"}[name]
    root: Path = request.getfixturevalue(fixture)
    root.rename(tmp_path / usual)
    assert open_dataset(name, tmp_path).pairs("test")


@pytest.mark.parametrize("name", ["spair", "pf-pascal", "pf-willow"])
def test_another_sub_folder_is_suggested(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> None:
    for fixture in ("spair_root", "pascal_root", "willow_root"):
        request.getfixturevalue(fixture)
    child = {"spair": "spair", "pf-pascal": "pascal", "pf-willow": "willow"}[name]
    with pytest.raises(
        DatasetError, match=rf"holds no {name} dataset \(looked for .*\); it is in .*/{child}: give that"
    ):
        open_dataset(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        ("spair", r"Layout/large/\{trn,val,test\}\.txt"),
        ("pf-pascal", r"\{trn,val,test\}_pairs\.csv"),
        ("pf-willow", r"test_pairs\.csv"),
    ],
)
def test_nothing_there(tmp_path: Path, name: str, looked_for: str) -> None:
    with pytest.raises(DatasetError, match=rf"holds no {name} dataset \(looked for {looked_for}.*unpacked to"):
        open_dataset(name, tmp_path)


@pytest.mark.parametrize("name", ["folder", "spair", "pf-pascal", "pf-willow"])
def test_roots_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=f"The dataset {name} needs the folder that it is in; give it with --root"):
        open_dataset(name, None)
    with pytest.raises(DatasetError, match=f"of the dataset {name} does not exist"):
        open_dataset(name, tmp_path / "none")
    with pytest.raises(DatasetError, match=f"of the dataset {name} does not exist"):
        open_dataset(name, tmp_path / ("x" * 300))
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=f"of the dataset {name} is a file"):
        open_dataset(name, tmp_path / "file")


def test_unknown_name() -> None:
    with pytest.raises(
        DatasetError,
        match="no dataset 'voc'; choose one of ap10k, coco, cub, demo, folder, pf-pascal, pf-willow, spair, spair-u",
    ):
        open_dataset("voc", None)


def test_adapters_are_imported_lazily(willow_root: Path) -> None:
    program = (
        "import sys, pathlib; from featstore.datasets.registry import open_dataset;"
        f"open_dataset('pf-willow', pathlib.Path({str(willow_root)!r})).pairs('test');"
        "print(*(n for n in ('scipy', 'torch', 'PIL', 'featstore.datasets.spair') if n in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@dataclass(frozen=True)
class Both:
    """Pairs of two data sets under the name of one."""

    pairs_of: AnnotatedPairs
    name: str = "spair"

    def pairs(self, split: str) -> AnnotatedPairs:
        assert split == "test"
        return self.pairs_of


def test_categories_are_chosen(spair_root: Path, willow_root: Path) -> None:
    pairs = [*open_dataset("spair", spair_root).pairs("test"), *PfWillowDataset(willow_root).pairs("test")]
    names = [(pair.source, pair.target) for pair in pairs]

    def chosen(categories: Sequence[str], of: Sequence[Pair] = pairs) -> list[tuple[str, str]]:
        found = choose_pairs(Both(AnnotatedPairs.of(of)), "test", categories)  # type: ignore[arg-type]
        return [(pair.source, pair.target) for pair in found]

    assert chosen(["aeroplane"]) == names[:1]
    assert chosen(("car(G)", "aeroplane")) == chosen(()) == names
    with pytest.raises(DatasetError, match=r"spair has no category 'cat', 'dog' .*; choose from aeroplane, car\(G\)"):
        chosen(["dog", "aeroplane", "cat"])
    with pytest.raises(DatasetError, match="The split 'test' of spair has no pairs"):
        chosen(["cat"], [])
