"""Profiles as their files state them: each setting with its source, or unknown; and which is taken for a model."""

import tomllib
from pathlib import Path

import pytest

import featstore.backbones
from featstore.backbones.models import open_model
from featstore.backbones.registry import FOUR_BLOCKS, SETTINGS, Profile, profile_of, profiles

FILES = sorted((Path(featstore.backbones.__file__).parent / "profiles").glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_setting_has_a_source_or_is_unknown(file: Path) -> None:
    stated, read = tomllib.loads(file.read_text()), profiles()[file.stem]
    assert {*stated} - {"models", "structure"} == {*SETTINGS}
    for name in SETTINGS:
        value, source = stated[name]["value"], stated[name].get("source")
        if value == "unknown":
            assert not getattr(read, name)
        else:
            assert source
            assert read.sources[name] == source
            assert getattr(read, name) == (tuple(value) if isinstance(value, list) else value)


def test_layers_and_their_timesteps_and_weights_go_together() -> None:
    for name, own in profiles().items():
        for by_layer in (own.text_timesteps, own.learned_timesteps, own.training_timesteps, own.weights):
            assert not by_layer or {*own.layers} <= {*by_layer}, name


def test_no_model_and_no_structure_has_two_profiles() -> None:
    models = [model for own in profiles().values() for model in own.models]
    structures = [own.structure for own in profiles().values() if own.structure]
    assert len({*models}) == len(models)
    assert len({*structures}) == len(structures)


def test_a_model_without_a_profile_takes_that_of_its_structure(small_model: Path) -> None:
    assert open_model(str(small_model)).structure == FOUR_BLOCKS
    usual = profiles()["sd2-1"]
    assert profile_of("somebody/fine-tuned", FOUR_BLOCKS) is usual
    assert profile_of("somebody/fine-tuned") is usual  # a store that names no structure
    assert profile_of("demo", "other") is profiles()["demo"]
    assert profile_of("somebody/other", "of another structure") == Profile()


def test_what_is_unknown_weighs_nothing() -> None:
    nothing = Profile()
    assert nothing.weights_of(["2"]) == (1.0,)
    assert nothing.weights_of(["2", "3"]) is None
    assert nothing.weights_of(["2", "dino"]) is None
