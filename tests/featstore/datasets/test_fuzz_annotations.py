"""Whatever the lists and annotations hold, a dataset answers with records or with one sentence of ours.

Each format is fuzzed with some hundred damaged files, and with 10,000 by `make test-slow`; the same each time.
"""

import json
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from featstore.datasets.pictures import original_size
from featstore.datasets.records import AnnotatedPairs, Dataset, Pair, to_resized_frame
from featstore.datasets.registry import open_dataset
from featstore.errors import DatasetError
from tests.featstore.datasets.conftest import COCO, SPAIR_ANNOTATION
from tests.featstore.datasets.damage import edited, files_of_object, files_of_table, recoded, text_bytes
from tests.featstore.datasets.mat_bytes import BIG, LITTLE, compressed, header, variable

SENTENCE = 3000
"""Characters of the longest sentence: it may quote a path, which may be 1,000 characters long, twice."""


@dataclass(frozen=True)
class Format:
    """root: the fixture that makes a valid dataset. file: the one that is damaged. split: of which pairs are asked."""

    dataset: str
    root: str
    file: str
    split: str
    files: Callable[[Path], SearchStrategy[bytes]]


def _table(path: Path) -> SearchStrategy[bytes]:
    return files_of_table([line.split(",") for line in path.read_text().splitlines()])


def _list(path: Path) -> SearchStrategy[bytes]:
    line = path.read_text().strip()
    stems = st.sampled_from(["2008_002719", "2008_004100", "..", "x", "\0", "a\x1b", "", "caf\u00e9", "x" * 5000])
    numbers = st.sampled_from(["000001", "", "\u0664", "-"])
    lines = st.just(line) | st.builds("{}-{}-{}:{}".format, numbers, stems, stems, stems)
    valid = st.lists(st.sampled_from([line, f" {line}\t", "", "  "]), min_size=1, max_size=8).map("\n".join)
    return recoded(valid) | edited(recoded(valid)) | st.lists(lines, max_size=3).map("\n".join).map(text_bytes)


def _object(path: Path) -> SearchStrategy[bytes]:
    return files_of_object(SPAIR_ANNOTATION)


KEYPOINTS = np.array([[7.0, 8.0], [9.0, 9.5], [11.0, 12.0], [4.0, 1.0]])


def _mat(path: Path) -> SearchStrategy[bytes]:
    files = [edited(st.just(path.read_bytes())), st.binary(max_size=300)]
    for order in (LITTLE, BIG):
        plain, small = variable(order, KEYPOINTS), variable(order, KEYPOINTS, stored="i1", code=1)
        variables = st.sampled_from([plain, small, variable(order, KEYPOINTS, b"bbox") + plain])
        begin = header(order)
        files.append(edited(variables.map(begin.__add__)))
        # damaged first, so that the damage is found behind a checksum that fits
        files.append(edited(variables).map(partial(compressed, order)).map(begin.__add__))
        files.append(edited(variables.map(partial(compressed, order))).map(begin.__add__))
        files.append(st.binary(max_size=120).map(begin.__add__))
    return st.one_of(files)


def _blanks(path: Path) -> SearchStrategy[bytes]:
    return edited(recoded(st.just(path.read_text()))) | edited(st.just(path.read_bytes()))


def _coco(path: Path) -> SearchStrategy[bytes]:
    """The whole file damaged, or an entry of one of its lists."""
    entries = [
        files_of_object(entry).map(partial(json.dumps(COCO).encode().replace, json.dumps(entry).encode()))
        for name in ("images", "categories", "annotations")
        for entry in COCO[name][:2]
    ]
    return st.one_of(files_of_object(COCO), *entries)


COCO_FILE = "annotations/person_keypoints_val2017.json"
PAIR_ANNOTATION = "PairAnnotation/test/000001-2008_002719-2008_004100:aeroplane.json"
MAT = "PF-dataset-PASCAL/Annotations/aeroplane/2008_000002.mat"
FORMATS = {
    "SPair's annotation": Format("spair", "spair_root", PAIR_ANNOTATION, "test", _object),
    "SPair's list": Format("spair", "spair_root", "Layout/large/test.txt", "test", _list),
    "PF-Pascal's list": Format("pf-pascal", "pascal_root", "test_pairs.csv", "test", _table),
    "PF-Pascal's training list": Format("pf-pascal", "pascal_root", "trn_pairs.csv", "trn", _table),
    "PF-Pascal's MATLAB file": Format("pf-pascal", "pascal_root", MAT, "test", _mat),
    "PF-Willow's list": Format("pf-willow", "willow_root", "test_pairs.csv", "test", _table),
    "folder's keypoints": Format("folder", "folder_root", "keypoints.csv", "test", _table),
    "folder's pairs": Format("folder", "folder_root", "pairs.csv", "test", _table),
    "folder's boxes": Format("folder", "folder_root", "boxes.csv", "test", _table),
    "COCO's annotations": Format("coco", "coco_root", COCO_FILE, "test", _coco),
    "CUB's images": Format("cub", "cub_root", "images.txt", "trn", _blanks),
    "CUB's boxes": Format("cub", "cub_root", "bounding_boxes.txt", "trn", _blanks),
    "CUB's parts": Format("cub", "cub_root", "parts/part_locs.txt", "trn", _blanks),
}


@pytest.mark.parametrize("cases", [200, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_records_or_a_sentence(name: str, cases: int, request: pytest.FixtureRequest) -> None:
    chosen = FORMATS[name]
    root: Path = request.getfixturevalue(chosen.root)
    (root / "dog").is_dir() and (root / "pairs.csv").write_text("source,target\ndog/a.jpg,dog/b.PNG\ndog/b,dog/a\n")
    (root / "dog").is_dir() and (root / "boxes.csv").write_text("image,x0,y0,x1,y1\ndog/a,1,2,15,9\ndog/b,1,2,3,4\n")
    annotations = Path(COCO_FILE) if chosen.dataset == "coco" else None
    path = root / chosen.file
    outcomes = {"pairs": 0, "refused": 0}

    @settings(
        max_examples=cases, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(data=chosen.files(path))
    def answer(data: bytes) -> None:
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                dataset = open_dataset(chosen.dataset, root, annotations)
                check_images(dataset, root)
                pairs = dataset.pairs(chosen.split)
            except DatasetError as error:
                check_sentence(str(error))
                outcomes["refused"] += 1
                return
            outcomes["pairs"] += 1
            for pair in pairs:
                check_pair(dataset, pair)

    answer()
    assert min(outcomes.values()) > cases // 200, outcomes  # neither answer came by default


def check_sentence(sentence: str) -> None:
    """One line, in which nothing controls the terminal."""
    assert not {unicodedata.category(letter) for letter in sentence} & {"Cc", "Cs", "Zl", "Zp"}, repr(sentence)
    assert len(sentence) < SENTENCE, repr(sentence)


def check_images(dataset: Dataset, root: Path) -> None:
    for image in dataset.images():
        check_sentence(image.id)
        assert (root / image.file).resolve().is_relative_to(root.resolve())
        assert dataset.read(image)


def check_pair(dataset: Dataset, pair: Pair) -> None:
    """Finite points of known images, which come into the resized frame or are refused there."""
    sizes = {image.id: original_size(image, dataset.read(image)) for image in dataset.images()}
    assert pair.source_points.shape == pair.target_points.shape == (len(pair.names), 2)
    assert len(set(pair.names)) == len(pair.names) > 0
    assert all(pair.names)
    for name in pair.names:
        check_sentence(name)
    assert max(np.abs(pair.source_points).max(), np.abs(pair.target_points).max()) <= 1e6
    try:
        (framed,) = to_resized_frame(AnnotatedPairs.of([pair]), dataset.theta_rule, sizes.__getitem__, 64)
    except DatasetError as error:
        check_sentence(str(error))
        return
    for points in (framed.source_points, framed.target_points):
        assert ((points > 0) & (points < 63)).all()
    assert 0 < framed.theta < 1e9
