"""What the demo model is told of its training pictures, held against what was drawn."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from tools.demo_drawing.picture import compose
from tools.demo_model.captions import Told, caption, tell_pictures, words
from tools.demo_model.pictures import CATEGORIES, draw_pictures, stream
from tools.demo_model.small_model import WORDS, write_tokenizer

COUNT = 80


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[Told]:
    return tell_pictures(0, draw_pictures(0, COUNT, tmp_path_factory.mktemp("pictures")))


def phrase(told: Told, name: str) -> str:
    return next(each.name for each in told.phrases if name in each.name)


def test_what_is_told_is_what_was_drawn(told: list[Told]) -> None:
    """Which way it faces, and where its front is, by the keypoints that the drawing marks."""
    fronts = {"bird": ("eye", "tail tip"), "car": ("headlight", "tail light"), "fish": ("eye", "tail base")}
    seen: Counter[str] = Counter()
    for index, each in enumerate(told):
        category = CATEGORIES[index % len(CATEGORIES)]
        assert each.category == category
        points = compose(category, stream(0), index // len(CATEGORIES)).keypoints
        front, back = fronts.get(category, ("nose", "nose"))
        if front in points and back in points and front != back:
            facing = phrase(each, "facing").split()[1]
            assert facing == ("left" if points[front][0] < points[back][0] else "right")
            seen[facing] += 1
    assert min(seen["left"], seen["right"]) >= 10


def test_every_part_with_a_name_is_told(told: list[Told]) -> None:
    for index, category in enumerate(CATEGORIES):
        parts = {part.name for part in compose(category, stream(0), 0).parts} - {""}
        assert len(parts) >= 9
        assert parts | {"ground"} < {each.name for each in told[index].phrases}


def test_shades_part_the_pictures_in_thirds(told: list[Told]) -> None:
    """A third of the birds' wings is called dark, a third light, and the dark ones are."""
    birds = [each for each in told if each.category == "bird"]
    wings = [next(each for each in bird.phrases if each.name == "wing") for bird in birds]
    values: dict[str, list[int]] = {"dark": [], "light": [], "": []}
    for number, wing in enumerate(wings):
        shade = next((word for word in ("dark", "light") if word in wing.before), "")
        part = next(part for part in compose("bird", stream(0), number).parts if part.name == "wing")
        values[shade].append(max(part.colour))
    assert all(abs(len(own) - COUNT / 12) <= 1 for own in values.values())
    assert max(values["dark"]) <= min(values[""]) <= max(values[""]) <= min(values["light"])


def test_captions_leave_out_and_never_invent(told: list[Told]) -> None:
    drawn = [caption(told[0], torch.Generator().manual_seed(seed)) for seed in range(600)]
    counted = Counter("empty" if not text else "plain" if text == "a photo of a bird" else "told" for text in drawn)
    assert 0.06 < counted["empty"] / 600 < 0.14
    assert 0.2 < counted["plain"] / 600 < 0.34
    assert len(set(drawn)) > 300
    full = {" ".join(filter(None, (*each.before, each.name, each.after))) for each in told[0].phrases}
    for text in drawn:
        for said in text.split(", ")[1:]:
            assert any(set(said.split()) <= set(whole.split()) for whole in full), said


def test_same_generator_same_caption(told: list[Told]) -> None:
    one, other = (caption(told[3], torch.Generator().manual_seed(5)) for _ in range(2))
    assert one == other


def test_every_word_is_one_token(told: list[Told], tmp_path: Path) -> None:
    """Beside the words that the first stage knows, whose tokens stay."""
    said = words(told)
    write_tokenizer(tmp_path / "first")
    write_tokenizer(tmp_path / "second", (*WORDS, *(word for word in said if word not in WORDS)))
    first, second = (CLIPTokenizer.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert len(said) > 60
    assert all(len(second.tokenize(word)) == 1 for word in said)
    assert all(second.tokenize(word) == first.tokenize(word) for word in WORDS)
