"""Lists that name a pair again, in whichever form: refused, or noted and counted once, but never counted twice."""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featstore.datasets.registry import open_dataset
from featstore.errors import DatasetError


@dataclass(frozen=True)
class List:
    """A data set's list. respelled: other ways in which a line may name what it names. header: its lines of header."""

    dataset: str
    fixture: str
    file: str
    split: str
    respelled: tuple[Callable[[str], str], ...]
    header: int = 1


def _decomposed(line: str) -> str:
    return unicodedata.normalize("NFD", line)


LISTS = {
    "folder": List(
        "folder",
        "folder_root",
        "pairs.csv",
        "test",
        (_decomposed, lambda line: line.replace(".jpg", ""), lambda line: f" {line} "),
    ),
    "SPair-71k": List(
        "spair", "spair_root", "Layout/large/trn.txt", "trn", (_decomposed, lambda line: f" {line}\t"), header=0
    ),
    "PF-Pascal": List(
        "pf-pascal",
        "pascal_root",
        "trn_pairs.csv",
        "trn",
        (_decomposed, lambda line: line.replace("PF-dataset-PASCAL/", "x/"), lambda line: line.replace(",1,", ",1.0,")),
    ),
    "PF-Willow": List(
        "pf-willow", "willow_root", "test_pairs.csv", "test", (_decomposed, lambda line: line.replace("PF-", "./PF-"))
    ),
}


@pytest.mark.parametrize("listed", LISTS.values(), ids=LISTS)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_pair_is_counted_twice(listed: List, request: pytest.FixtureRequest, data: st.DataObject) -> None:
    root: Path = request.getfixturevalue(listed.fixture)
    path = root / listed.file
    if listed.dataset == "folder":
        path.write_text("source,target\ndog/a.jpg,dog/b.PNG\ndog/b.PNG,dog/a.jpg\n")
    published = path.read_text()
    lines = published.splitlines()
    head, body = lines[: listed.header], lines[listed.header :]
    again = data.draw(st.lists(st.tuples(st.sampled_from(body), st.sampled_from(listed.respelled)), max_size=4))
    order = data.draw(st.permutations([*body, *(respell(line) for line, respell in again)]))
    dataset = open_dataset(listed.dataset, root)
    alone = {(pair.source, pair.target) for pair in dataset.pairs(listed.split)}
    try:
        path.write_text("\n".join([*head, *order]) + "\n")
        pairs = [(pair.source, pair.target) for pair in dataset.pairs(listed.split)]
        notes = dataset.notes(listed.split)
    except DatasetError as refusal:
        if not again or "is there already, in line" not in str(refusal):
            raise
    else:
        assert sorted(pairs) == sorted(alone)
        counted = [note for note in notes if "repeat a pair" in note]
        assert [note.split()[0] for note in counted] == ([str(len(again))] if again else [])
    finally:
        path.write_text(published)
