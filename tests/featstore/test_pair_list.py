"""A list's hash shows what changes a score and nothing else; what is odd about photographs is said."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from featstore.datasets.demo import DemoDataset
from featstore.datasets.records import ThetaRule
from featstore.pipeline.pairs import copies, describe_list, list_hash, note_oddities
from featstore.progress import Silent
from tests.featstore.evaluations import annotated, framed, many_pairs


@dataclass(frozen=True)
class Notes(Silent):
    """Keeps what was noted."""

    said: list[str]

    def note(self, sentence: str) -> None:
        self.said.append(sentence)


def test_the_hash_by_hand() -> None:
    """As docs/numbers.md defines it."""
    text = "test\ncat\tcat/a\tcat/b\t200 100 50 400\t200.00\t100.00,50.00,30.00,240.00 20.00,10.00,5.00,40.00\n"
    pair = framed(annotated())
    expected = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert describe_list("test", [pair]) == {"n_pairs": 1, "n_points": 2, "pairs_hash": expected}


def test_what_the_hash_shows() -> None:
    pairs = [framed(annotated()), *many_pairs()]
    known = list_hash("trn", pairs)
    assert list_hash("train", pairs[::-1]) == known
    reordered = annotated(
        source_points=annotated().source_points[::-1],
        target_points=annotated().target_points[::-1],
        names=("nose", "eye"),
    )
    assert list_hash("trn", [framed(reordered), *pairs[1:]]) == known
    assert (
        list_hash("trn", [framed(annotated(), size=64), *pairs[1:]]) == known
    )  # the size resized to is another matter
    changed = {
        list_hash("test", pairs),
        list_hash("trn", pairs[1:]),
        list_hash("trn", [*pairs, pairs[0]]),
        list_hash("trn", [framed(annotated(source="cat/c")), *pairs[1:]]),
        list_hash("trn", [framed(annotated(target_points=annotated().target_points + 8)), *pairs[1:]]),
        list_hash("trn", [framed(annotated(source_points=annotated().source_points - 0.01)), *pairs[1:]]),
        list_hash("trn", [framed(annotated(target_box=(5.0, 20.0, 45.0, 230.0))), *pairs[1:]]),
        list_hash("trn", [framed(annotated(), ThetaRule.IMAGE), *pairs[1:]]),
    }
    assert len(changed) == 8
    assert known not in changed


def test_one_photograph_under_two_names() -> None:
    (sentence,) = copies("folder", ["cat/a", "cat/b", "cat/c", "cat/d"], {"cat/a": "1", "cat/b": "2", "cat/c": "1"})
    assert sentence.startswith("1 of 4 images of folder are the same files as others under another name, e.g. cat/c as")
    assert copies("folder", ["cat/a", "cat/b"], {"cat/a": "1", "cat/b": "2", "cat/c": "1"}) == ()


def test_the_demo_trains_on_none_that_it_is_tested_on() -> None:
    said: list[str] = []
    note_oddities(DemoDataset(), ["test"], [], {}, Notes(said))
    assert said == []


def test_points_that_move_less_than_is_shown() -> None:
    pair = framed(annotated())
    frame = pair.in_original_frame()
    moved = replace(frame, source_points=(frame.source_points + 0.001).astype(np.float32))
    assert list_hash("test", [replace(pair, original=moved)]) == list_hash("test", [pair])
