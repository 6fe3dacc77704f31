"""Values of options."""

from itertools import accumulate
from pathlib import Path

import pytest

from cli.options import parse_alphas
from featstore.kept_config import ScoreConfig
from matcher.errors import InputError


def read(text: str) -> tuple[float, ...] | None:
    """As `dualsd score` takes them."""
    return ScoreConfig(run=Path("run"), alphas=tuple(parse_alphas(text))).alphas


@pytest.mark.parametrize(
    ("text", "alphas"),
    [
        ("0.1", (0.1,)),
        ("0.05, 0.1,1", (0.05, 0.1, 1.0)),
        ("0.05,0.05", (0.05,)),
        ("0.1..0.3:0.1", (0.1, 0.2, 0.3)),
        ("0.1..0.25:0.1", (0.1, 0.2)),
        ("0.1..0.1:0.5", (0.1,)),
        (".05..0.1:.05,0.5, 0.7..0.9:0.1", (0.05, 0.1, 0.5, 0.7, 0.8, 0.9)),
        ("0.1,0.05..0.15:0.05", (0.1, 0.05, 0.15)),
    ],
)
def test_alphas(text: str, alphas: tuple[float, ...]) -> None:
    assert read(text) == alphas


def test_a_range_is_exactly_the_decimals_that_are_typed() -> None:
    """The float 0.01, added up, is not."""
    typed = "0.01,0.02,0.03,0.04,0.05,0.06,0.07,0.08,0.09,0.1,0.11,0.12,0.13,0.14,0.15,0.16,0.17,0.18,0.19,0.2"
    assert read("0.01..0.2:0.01") == tuple(float(number) for number in typed.split(","))
    assert tuple(accumulate([0.01] * 20)) != read(typed)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "takes numbers"),
        ("a", "takes numbers"),
        ("0", "above 0 and at most 1"),
        ("1.5", "above 0 and at most 1"),
        ("nan", "a finite number"),
        ("0.01..0.2", "with its step"),
        ("0.01..0.2:", "with its step"),
        ("..0.2:0.1", "with its step"),
        ("a..b:c", "with its step"),
        ("0.1..0.2:-0.1", "with its step"),
        ("0.1..0.2:nan", "with its step"),
        ("0.1..0.2:0.1:0.1", "with its step"),
        ("0.2..0.1:0.1", "empty range"),
        ("0.1..0.2:0", "empty range"),
        ("0..0.2:0.1", "above 0 and at most 1"),
        ("0.5..1.5:0.5", "above 0 and at most 1"),
        ("0.1..0.2:0.0000000001", "more than 1000 thresholds"),
    ],
)
def test_alphas_that_are_none(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(text)
