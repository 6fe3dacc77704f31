"""What a file holds is what its type says, or a sentence names the field."""

import json
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from featstore.parsing import STRICT, parse, parse_known, sentence_of


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Inner:
    weight: float
    count: int = 1


@dataclass(frozen=True, slots=True)
class Outer:
    name: str
    colour: Colour
    inner: tuple[Inner, ...]
    note: str | None = None


WHOLE = {"name": "x", "colour": "red", "inner": [{"weight": 1}, {"weight": 0.5, "count": 2}]}


def test_a_file_becomes_what_its_type_says() -> None:
    found = parse(Outer, WHOLE, "")
    assert found == Outer("x", Colour.RED, (Inner(1.0), Inner(0.5, 2)))
    assert isinstance(found.inner[0].weight, float)
    assert parse_known(Outer, {**WHOLE, "more": 1}) == found


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"nmae": "x"}, "run.nmae is unknown"),
        ({"name": 1}, "run.name is 1, not a text"),
        ({"colour": "green"}, "run.colour is 'green', not one of 'red', 'blue'"),
        ({"inner": [{"weight": True}]}, "run.inner[0].weight is True, not a finite number"),
        ({"inner": [{"weight": 1}, {"weight": "1"}]}, "run.inner[1].weight is '1', not a finite number"),
        ({"inner": [{"weight": float("nan")}]}, "run.inner[0].weight is nan, not a finite number"),
        ({"inner": [{"weight": 10**400}]}, "not a finite number"),
        ({"inner": [{"weight": 1, "count": True}]}, "run.inner[0].count is True, not a whole number"),
        ({"inner": [{"weight": 1, "count": 1.0}]}, "run.inner[0].count is 1.0, not a whole number"),
        ({"inner": [{"count": 1}]}, "run.inner[0].weight is missing"),
        ({"inner": [{"wieght": 1}]}, "run.inner[0].wieght is unknown"),
        ({"inner": [3]}, "run.inner[0] is 3, not a table"),
        ({"inner": {}}, "run.inner is {}, not a list"),
        ({"note": 5}, "run.note is 5, not a text"),
        ({"name": "\ud800"}, "run cannot be read: "),
    ],
)
def test_what_it_cannot_hold_is_a_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^run") as error:
        parse(Outer, {**WHOLE, **change}, "run")
    assert sentence in str(error.value)


def test_sentences_of_a_model_of_pydantics_own() -> None:
    class Own(BaseModel):
        model_config = STRICT
        share: Annotated[float, Field(gt=0, le=1)]
        kind: Literal["a", "b"] = "a"

    for content, sentence in [
        ({"share": 0}, "share is 0, not above 0.0"),
        ({"share": 1.5}, "share is 1.5, not at most 1.0"),
        ({"share": 1, "kind": "c"}, "kind is 'c', not one of 'a', 'b'"),
        ([], "it is [], not a table"),
    ]:
        with pytest.raises(ValidationError) as error:
            Own.model_validate_json(json.dumps(content))
        assert sentence_of(error.value, "") == sentence
