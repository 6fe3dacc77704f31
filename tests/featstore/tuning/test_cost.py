"""What a training step runs, counted: TFLOP on SD 2-1's own configuration, and which networks are called at all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from benchmarks.flops import teraflop_an_image
from cli.main import app
from featstore.backbones import diffusion_networks as networks_module
from featstore.prompts.base import Mode
from tests.featstore.trainable import write_trainable


@pytest.mark.parametrize(("mode", "limit"), [(Mode.SINGLE, 2.68), (Mode.CLASS, 2.70), (Mode.CPM, 2.70)])
def test_a_dual_step_on_sd_2_1_runs_no_more_than_it_needs(mode: Mode, limit: float) -> None:
    """2.65 for the UNet up to layer 2 and up to layer 3; the rest is text: 9 pairs, of 9 categories, none sharing."""
    assert 2.65 <= teraflop_an_image(mode) <= limit


def test_training_calls_no_vae_and_no_block_beyond_its_layers(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_trainable(Path("spair"))
    small = ["--device", "cpu", "--batch-size", "4"]
    build = ["cache", "build", "--dataset", "spair", "--root", "spair", "--model", str(small_model), "--size", "64"]
    built = CliRunner().invoke(app, [*build, *small])
    assert built.exit_code == 0, built.output
    calls = dict.fromkeys(range(4), 0)
    encoded: list[int] = []
    plain_load = networks_module.load_unet

    def counting(*arguments: Any) -> nn.Module:
        unet = plain_load(*arguments)
        for index, block in enumerate(unet.up_blocks):
            block.register_forward_hook(lambda *_, index=index: calls.__setitem__(index, calls[index] + 1))
        return unet

    def refused(_vae: nn.Module, images: torch.Tensor, *_: Any) -> torch.Tensor:
        encoded.append(len(images))
        raise AssertionError("training called the VAE")

    monkeypatch.setattr(networks_module, "load_unet", counting)
    monkeypatch.setattr(networks_module, "encode", refused)
    # a fresh noise draw each step asks for clean latents, and still for no VAE
    train = [
        "train",
        "--mode",
        "class",
        "--steps",
        "3",
        "--val-every",
        "3",
        "--length",
        "4",
        "--noise",
        "fresh",
        *small,
    ]
    assert CliRunner().invoke(app, [*train, "--batch", "2"]).exit_code == 0
    assert encoded == []
    # layers 2 and 3, as many passes each: blocks 0 and 1 serve both, block 2 layer 3 alone, block 3 none
    assert calls[0] == calls[1] == 2 * calls[2] > 0
    assert calls[3] == 0
