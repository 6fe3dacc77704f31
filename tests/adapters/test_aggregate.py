"""The aggregation network against GeoAware-SC's and DIY-SC's own code: outputs and gradients."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from featstore.adapters.base import AdapterSpec, make_adapter

GOLDEN = Path(__file__).parents[1] / "golden" / "adapter"


@pytest.mark.parametrize(("name", "width"), [("geoaware", 8), ("diy_sc", 12), ("diy_sc_widening", 12)])
def test_outputs_and_gradients(name: str, width: int) -> None:
    """Published code ran in torch; gradients are those of sum(output * probe). DIY-SC's has two blocks."""
    weights, maps, golden = (
        load_file(GOLDEN / f"{name}_{what}.safetensors") for what in ("weights", "maps", "gradients")
    )
    channels = {"geoaware": (8, 16, 16, 32), "diy_sc": (32,), "diy_sc_widening": (12,)}[name]
    inputs = tuple((f"part{index}", None) for index in range(len(channels)))
    blocks = 1 if name == "geoaware" else 2
    spec = AdapterSpec("aggregate", inputs, channels, width, (1.0,), projection=32, blocks=blocks, groups=4)
    adapter = make_adapter(spec)
    adapter.load_state_dict(weights)
    given = maps["input"].clone().requires_grad_()
    (made,) = adapter(dict(zip(inputs, given.split(channels, dim=1), strict=True))).values()
    torch.testing.assert_close(made, maps["output"], rtol=1e-5, atol=1e-5)
    (made * golden["probe"]).sum().backward()
    found = {"grad_input": given.grad} | {f"grad.{own}": value.grad for own, value in adapter.named_parameters()}
    for own in (own for own in golden if own.startswith("grad")):
        largest = golden[own].abs().max().item()
        torch.testing.assert_close(found[own], golden[own], rtol=1e-4, atol=1e-4 * largest)
    assert {own.removeprefix("grad.") for own in golden if own.startswith("grad.")} >= {
        own for own in weights if not own.endswith("logit_scale")
    }


def test_first_parameters_are_as_published() -> None:
    """He normal by what goes out, and nothing drawn from torch's own state."""
    spec = AdapterSpec("aggregate", (("2", 50),), (64,), 32, (1.0,), projection=128)
    state = torch.random.get_rng_state()
    adapter = make_adapter(spec, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    weight = dict(adapter.named_parameters())["bottleneck_layers.0.0.conv2.weight"]
    assert weight.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)
    assert not torch.equal(weight, dict(make_adapter(spec, 2).named_parameters())["bottleneck_layers.0.0.conv2.weight"])
