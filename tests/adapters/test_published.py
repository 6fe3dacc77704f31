"""`dualsd adapter import | export`: GeoAware-SC's and DIY-SC's files, and what is refused. The golden values are those
of their own code."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from featstore.adapters.applied import fingerprint
from featstore.adapters.base import load_adapter
from featstore.adapters.published import import_adapter
from featstore.errors import AdapterError
from matcher.errors import InputError
from tests.cli.conftest import Run

GOLDEN = Path(__file__).parents[1] / "golden" / "adapter"
OF_FILE = {
    "diy_sc": ("dino", ()),
    "diy_sc_widening": ("s8", ()),
    "geoaware": ("3,2,1,dino", ("--t", "50,50,50", "--cells", "0")),
}


@pytest.mark.parametrize("name", OF_FILE)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_imported_weights_give_the_output_of_their_own_code(run: Run, tmp_path: Path, name: str, suffix: str) -> None:
    file, (layers, more) = GOLDEN / f"{name}_weights.safetensors", OF_FILE[name]
    if suffix == "pth":
        torch.save(load_file(file), tmp_path / "w.pth")
        file = tmp_path / "w.pth"
    imported = run("adapter", "import", str(file), "--layers", layers, *more, "--groups", "4", "--out", "a.safetensors")
    assert imported.exit_code == 0, imported.output
    exported = run("adapter", "export", "a.safetensors", "--out", "b.safetensors")
    assert exported.exit_code == 0, exported.output
    adapter, maps = load_adapter(Path("b.safetensors")), load_file(GOLDEN / f"{name}_maps.safetensors")
    assert fingerprint(adapter) == fingerprint(load_adapter(Path("a.safetensors")))
    assert fingerprint(adapter) in exported.output
    parts = maps["input"].split(adapter.spec.channels, dim=1)
    (made,) = adapter(dict(zip(adapter.spec.inputs, parts, strict=True))).values()
    torch.testing.assert_close(made, maps["output"], rtol=1e-5, atol=1e-5)


def test_the_published_size(tmp_path: Path) -> None:
    shapes = json.loads((GOLDEN / "geoaware_published_shapes.json").read_text())
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "g.safetensors")
    spec = import_adapter(tmp_path / "g.safetensors", ("3", "2", "1", "dino"), (50, 50, 50), 32).spec
    assert (spec.channels, spec.width, spec.projection) == ((640, 1280, 1280, 768), 192, 768)
    assert (spec.blocks, spec.groups, spec.cells, spec.weights) == (1, 32, 60, (1.0,))
    assert spec.inputs == (("3", 50), ("2", 50), ("1", 50), ("dino", None))


def weights(parts: int = 2, projection: int = 8, width: int = 4) -> dict[str, Tensor]:
    """A file of two maps, of 6 and 8 channels."""
    random = torch.Generator().manual_seed(2)
    found = {name: torch.tensor(1.0) for name in ("logit_scale", "self_logit_scale")}
    found["mixing_weights"] = torch.randn(parts, generator=random)
    for part, channels in enumerate((6, 8)[:parts]):
        shapes = {"conv1": (width, channels, 1, 1), "conv2": (width, width, 3, 3), "conv3": (projection, width, 1, 1)}
        shapes |= {"shortcut": (projection, channels, 1, 1)} if channels != projection else {}
        for name, shape in shapes.items():
            place = f"bottleneck_layers.{part}.0.{name}"
            found[f"{place}.weight"] = torch.randn(shape, generator=random)
            found[f"{place}.norm.weight"], found[f"{place}.norm.bias"] = torch.ones(shape[0]), torch.zeros(shape[0])
    return found


def test_maps_are_brought_to_the_side_that_is_asked_for(tmp_path: Path) -> None:
    """As GeoAware-SC does, which brings a finer map to DINO's cells, bilinearly."""
    save_file(weights(), tmp_path / "w.safetensors")
    fine, coarse = torch.randn(1, 6, 16, 16), torch.randn(1, 8, 4, 4)
    maps = {("a", None): fine, ("b", None): coarse}
    made = {cells: import_adapter(tmp_path / "w.safetensors", ("a", "b"), None, 2, cells) for cells in (0, 8)}
    assert made[0](maps)["adapted", None].shape[-2:] == (16, 16)
    small = {key: torch.nn.functional.interpolate(own, (8, 8), mode="bilinear") for key, own in maps.items()}
    assert torch.equal(made[8](maps)["adapted", None], made[0](small)["adapted", None])
    assert import_adapter(tmp_path / "w.safetensors", ("a", "b"), None, 2).spec.cells == 60


NAME, FIRST = "bottleneck_layers.0.0.conv2.weight", "bottleneck_layers.0.0.conv1.weight"
CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "lacks one": (lambda own: own.pop(NAME), f"it lacks {NAME}"),
    "lacks a norm": (lambda own: own.pop("bottleneck_layers.1.0.conv1.norm.bias"), "it lacks bottleneck_layers.1.0"),
    "lacks a shortcut": (lambda own: own.pop("bottleneck_layers.0.0.shortcut.weight"), "it lacks bottleneck_layers.0"),
    "lacks the first": (
        lambda own: own.pop("bottleneck_layers.0.0.conv1.weight"),
        "it has no bottleneck_layers.0.0.conv1",
    ),
    "has no shares": (lambda own: own.pop("mixing_weights"), "it has no mixing_weights, one per part"),
    "has more": (lambda own: own.update(optimiser=torch.zeros(1)), "it has optimiser, which belongs to none"),
    "has another part": (
        lambda own: own.update({"bottleneck_layers.2.0.conv1.weight": torch.zeros(4, 6, 1, 1)}),
        "it has bottleneck_layers.2.0.conv1.weight, which belongs to none",
    ),
    "of another shape": (
        lambda own: own.update({NAME: torch.zeros(4, 4, 5, 5)}),
        f"{NAME} is of shape (4, 4, 5, 5), where (4, 4, 3, 3) goes",
    ),
    "not finite": (
        lambda own: own.update({NAME: torch.full((4, 4, 3, 3), torch.nan)}),
        f"{NAME} holds values that are not finite",
    ),
    "of integers": (lambda own: own.update({NAME: torch.zeros(4, 4, 3, 3, dtype=torch.int32)}), f"{NAME} is int32"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_names_and_shapes_are_checked_completely(tmp_path: Path, change: str) -> None:
    own = weights()
    CHANGES[change][0](own)
    save_file(own, tmp_path / "w.safetensors")
    with pytest.raises(AdapterError) as caught:
        import_adapter(tmp_path / "w.safetensors", ("a", "b"), None, 2)
    assert "holds no adapter as GeoAware-SC and DIY-SC publish them" in str(caught.value)
    assert CHANGES[change][1] in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "timesteps", "words"),
    [
        (("a",), None, "has 2 part(s), and --layers names 1 layer(s)"),
        (("2", "3"), None, "There is no default timestep for layer 2: give one per layer with --t"),
        (("2", "3"), (50,), "2 layer(s) but 1 timestep(s)"),
        (("2", "2"), (50, 50), "names a layer twice"),
        (("a", "b"), (50, 50), "--t goes with layers of the UNet"),
    ],
)
def test_which_maps_it_takes_must_be_said_rightly(tmp_path: Path, layers: Any, timesteps: Any, words: str) -> None:
    save_file(weights(), tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        import_adapter(tmp_path / "w.safetensors", layers, timesteps, 2)
    assert words in str(caught.value)


class Trap:
    """What a pickle may do."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("sprung"),)


def test_nothing_is_executed(run: Run) -> None:
    Path("trap.pth").write_bytes(pickle.dumps({"mixing_weights": Trap()}))
    torch.save({"mixing_weights": Trap()}, "trap2.pth")
    Path("damaged.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    for name in ("trap.pth", "trap2.pth", "damaged.safetensors", "none.pth"):
        result = run("adapter", "import", name, "--layers", "a,b", "--out", "a.safetensors")
        assert result.exit_code == 2, result.output
        assert len(result.output.strip().splitlines()) == 1
    assert not Path("sprung").exists()
    assert not Path("a.safetensors").exists()
    assert "Say with --layers which maps" in run("adapter", "import", "trap.pth", "--out", "a.safetensors").output


def _foreign(file: Path) -> None:
    save_file({"a": torch.zeros(1)}, file)


def _list(file: Path) -> None:
    save_file({"a": torch.zeros(1)}, file, {"dualsd": "[]"})


def _flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def _relabelled(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(rb"\"groups\": 2", rb"\"groups\": 4"))


def _newer(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(rb"\"version\": 1", rb"\"version\": 9"))


DAMAGE = (_foreign, _list, _flipped, _cut, _relabelled, _newer, Path.unlink, lambda file: file.write_bytes(b"no"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_adapter_that_is_damaged_or_none(run: Run, damage: Callable[[Path], Any]) -> None:
    save_file(weights(), "w.safetensors")
    made = run("adapter", "import", "w.safetensors", "--layers", "a,b", "--groups", "2", "--out", "a.safetensors")
    assert made.exit_code == 0, made.output
    load_adapter(Path("a.safetensors"))
    damage(Path("a.safetensors"))
    for command in (
        ("adapter", "export", "a.safetensors", "--out", "b.safetensors"),
        ("eval", "--adapter", "a.safetensors"),
    ):
        result = run(*command)
        assert result.exit_code == 2, result.output
        assert "a.safetensors" in result.output
        assert result.output.strip().endswith(".")
        assert len(result.output.strip().splitlines()) == 1
    assert not Path("b.safetensors").exists()
