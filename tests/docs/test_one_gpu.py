"""The page of one GPU: its table is what its own counts of passes cost, as torch counts FLOPs, and its bytes are those
of the shapes; what it shows of the demo is printed."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import SIZE, VAE, whole_unet
from featstore.backbones.diffusion_networks import CutUNet
from tests.docs.pages import DOCS, Reader

PAGE = (DOCS / "one-gpu.md").read_text(encoding="utf-8")


def rows(first_cell: str) -> Iterator[list[str]]:
    """The rows of the table whose header begins with `first_cell`."""
    _, _, table = PAGE.partition(f"| {first_cell} |")
    for line in table.partition("\n\n")[0].splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def teraflop(layer: int, with_gradient: bool) -> float:
    """Of a pass to a layer, for one draw of one image."""
    noisy, prompt = torch.empty(1, 4, 96, 96, device="meta"), torch.empty(1, 77, 1024, device="meta")
    prompt.requires_grad_(with_gradient)
    cut = CutUNet(whole_unet(), layer)
    with FlopCounterMode(display=False) as counter:
        found = cut.tap(noisy, 0, prompt, [layer])[layer]
        if with_gradient:
            found.sum().backward()
    return float(counter.get_total_flops()) / 1e12


def encoding() -> float:
    with torch.device("meta"):
        vae, image = AutoencoderKL(**VAE).eval(), torch.empty(1, 3, SIZE, SIZE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.encode(image)
    return float(counter.get_total_flops()) / 1e12


def test_the_table_of_hours_is_what_its_passes_cost() -> None:
    cost = {(layer, gradient): teraflop(layer, gradient) for layer in (2, 3) for gradient in (False, True)}
    said = re.search(
        r"layer 2 takes ([\d.]+) TFLOP .* gradient ([\d.]+) .* layer 3 ([\d.]+) and ([\d.]+), the VAE", PAGE
    )
    assert said is not None
    counted = [cost[2, False], cost[2, True], cost[3, False], cost[3, True]]
    assert list(said.groups()) == [f"{own:.2f}" for own in counted]
    found = list(rows("what"))
    assert len(found) == 8
    for what, passes, petaflop, hours in found:
        gradient = "with gradient" in passes
        counts = [
            (int(own[0].replace(",", "")), own[1])
            for own in re.findall(r"([\d,]*\d) (?:of the VAE|to layer (\d))", passes)
        ]
        total = sum(count * (cost[int(layer), gradient] if layer else encoding()) for count, layer in counts) / 1000
        assert float(petaflop.replace(",", "")) == pytest.approx(total, abs=0.06 if total < 100 else 0.6), what
        shown = total * 1000 / 10 / 3600
        assert float(hours) == pytest.approx(shown, abs=0.051 if shown < 1 else 0.51), what


def test_the_bytes_are_those_of_the_shapes() -> None:
    two, three, latents = (2 * one * side**2 for one, side in ((1280, 48), (640, 96), (4, 96)))
    test = 27 * 18
    table = {what: (each, total) for what, each, total in list(rows("what is kept"))}
    expected = {
        "latents, and noisy ones at four timesteps": ("74 kB, 9,000 rows", 5 * 1800 * latents),
        "maps of layer 2, test": ("5.9 MB per image", test * two),
        "maps of layer 3, test": ("11.8 MB per image", test * three),
        "both, of all 1,800 images": ("17.7 MB per image", 1800 * (two + three)),
        "both, test, `--encoding bitround3`": ("9.0 MB per image", 0.51 * test * (two + three)),
    }
    for what, (each, count) in expected.items():
        assert table[what] == (each, f"{count / 1e9:.2f} GB" if count < 1e9 else f"{count / 1e9:.1f} GB")
    assert f"is another {test * (two + three) / 1e9:.1f} GB" in PAGE


def test_what_the_demo_prints(tmp_path: Path) -> None:
    assert Reader(tmp_path, 0).follow(DOCS / "one-gpu.md", {"demo"}, {"sh"}) == 1
