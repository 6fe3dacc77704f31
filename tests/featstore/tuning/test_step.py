"""One training step's loss: against the plain way, its gradient, and what it costs."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from featstore.backbones.text_encoders import encode_token_embeddings, fill
from featstore.prompts.base import Mode, PromptSet
from featstore.tuning.loss import keypoint_losses
from featstore.tuning.settings import TuningSettings
from featstore.tuning.step import Learner, Networks, batch_loss
from matcher.geometry import pixels_to_cells
from matcher.match import correlate, fuse
from matcher.pairs import MatchingPair
from tests.featstore.tuning.conftest import NoiseLatents, Setup, one_layer, some_pairs


def plain_loss(
    pairs: list[MatchingPair], step: int, networks: Networks, prompts: list[PromptSet], settings: TuningSettings
) -> Tensor:
    """Pair by pair, two UNet passes a layer and pair, every fused map built, as the published code does it."""
    losses = []
    for pair in pairs:
        maps: list[list[Tensor]] = [[], []]
        for layer, timestep in enumerate(settings.timesteps):
            vectors, _ = prompts[layer].vectors([pair])
            prompt = encode_token_embeddings(networks.text.encoder, fill(networks.framed, vectors))
            for end, image in enumerate((pair.source, pair.target)):
                latents = torch.from_numpy(NoiseLatents().load(image, timestep, step)).double()[None]
                found = networks.unets[layer](latents, timestep, encoder_hidden_states=prompt, return_dict=False)
                maps[end].append(found[0][0])
        matching = settings.matching
        source, target = (fuse(own, settings.weights, 1, matching.upsample_align) for own in maps)
        size = (target.shape[-2], target.shape[-1])
        cells = [
            pixels_to_cells(torch.from_numpy(points), matching.image_size, size, matching.geometry)
            for points in (pair.source_points, pair.target_points)
        ]
        correlation = correlate(source, cells[0], target)
        losses.append(keypoint_losses(correlation, cells[1], settings.kernel, matching.beta).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("mode", list(Mode))
def test_it_equals_the_plain_way(setup: Setup, mode: Mode) -> None:
    settings = replace(setup.settings, mode=mode)
    prompts, pairs = setup.open_prompts(settings), some_pairs()
    ours, passes = batch_loss(Learner(settings, setup.networks, prompts, NoiseLatents().load), pairs, len(pairs), 3)
    assert ours.item() == pytest.approx(plain_loss(pairs, 3, setup.networks, prompts, settings).item(), rel=1e-5)
    # a, b, c, x and y once a layer; a cpm's prompts belong to pairs, so each pair takes two passes of its own
    assert passes == 2 * (2 * len(pairs) if mode is Mode.CPM else 5)


def test_one_layer_alone_equals_the_plain_way(setup: Setup) -> None:
    networks, settings = one_layer(setup, 2)
    prompts, pairs = setup.open_prompts(settings), some_pairs()
    ours, _ = batch_loss(Learner(settings, networks, prompts, NoiseLatents().load), pairs, len(pairs), 0)
    assert ours.item() == pytest.approx(plain_loss(pairs, 0, networks, prompts, settings).item(), rel=1e-5)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_gradients_are_the_same_bits_every_time(setup: Setup, four_threads: None) -> None:
    """All passes share one prompt: the order in which its gradients are summed must not depend on threads."""
    settings = replace(setup.settings, mode=Mode.SINGLE)
    networks = replace(  # in single precision: in double torch sums with one thread
        setup.networks,
        text=replace(setup.networks.text, encoder=deepcopy(setup.text_encoder).float()),
        unets=tuple(deepcopy(own).float() for own in setup.networks.unets),
        framed=setup.networks.framed.float(),
        compute=replace(setup.networks.compute, dtype=torch.float32),
    )
    prompts = setup.open_prompts(settings)
    # so many images that torch finds the sum worth several threads
    pairs = [
        replace(pair, source=f"{pair.source}{n}", target=f"{pair.target}{n}") for n in range(6) for pair in some_pairs()
    ]
    parameters = [own for layer in prompts for own in layer.parameters()]

    def gradients() -> list[Tensor]:
        loss, _ = batch_loss(Learner(settings, networks, prompts, NoiseLatents().load), pairs, len(pairs), 1)
        return list(torch.autograd.grad(loss, parameters))

    first = gradients()
    for _ in range(4):
        assert all(torch.equal(one, other) for one, other in zip(first, gradients(), strict=True))


@pytest.mark.parametrize("mode", list(Mode))
def test_the_gradient_into_the_prompts_is_the_finite_difference(setup: Setup, mode: Mode) -> None:
    """Through text encoder, UNet and dual fusion, in double precision, along a random direction of each layer."""
    settings = replace(setup.settings, mode=mode)
    prompts, pairs = setup.open_prompts(settings), some_pairs()

    def loss() -> Tensor:
        return batch_loss(Learner(settings, setup.networks, prompts, NoiseLatents().load), pairs, len(pairs), 1)[0]

    random = torch.Generator().manual_seed(2)
    for layer in prompts:
        parameters: list[nn.Parameter] = [*layer.parameters(), *layer.network_parameters()]
        directions = [torch.randn(own.shape, generator=random, dtype=own.dtype) for own in parameters]
        gradients = torch.autograd.grad(loss(), parameters)
        along = sum((own * way).sum().item() for own, way in zip(gradients, directions, strict=True))
        ends = []
        step = 1e-7  # small, as a cpm takes maxima
        for sign in (1, -2):  # forth by one step, back by two
            with torch.no_grad():
                for own, way in zip(parameters, directions, strict=True):
                    own.add_(way, alpha=sign * step)
            ends.append(loss().item())
        with torch.no_grad():
            for own, way in zip(parameters, directions, strict=True):
                own.add_(way, alpha=step)
        assert abs(along) > 1e-3
        assert along == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


def test_a_batch_in_parts_has_the_gradient_of_the_whole(setup: Setup) -> None:
    prompts, pairs = setup.open_prompts(setup.settings), some_pairs()
    parameters = [own for layer in prompts for own in layer.parameters()]

    def gradients(parts: list[list[MatchingPair]]) -> list[Tensor]:
        for own in parameters:
            own.grad = None
        for part in parts:
            loss, _ = batch_loss(setup.learner(prompts), part, len(pairs), 0)
            loss.backward()  # type: ignore[no-untyped-call]
        return [own.grad for own in parameters if own.grad is not None]

    for whole, parted in zip(gradients([pairs]), gradients([pairs[:2], pairs[2:]]), strict=True):
        torch.testing.assert_close(whole, parted, rtol=1e-6, atol=1e-9)


def test_a_category_that_a_batch_lacks_does_not_drift(setup: Setup) -> None:
    """Its gradient is None, so Adam leaves it alone, though it has moved it before; a gradient of zero would not."""
    prompts, pairs = setup.open_prompts(setup.settings), some_pairs()
    cat, dog = prompts[0].parameters()
    optimiser = torch.optim.Adam([cat, dog], lr=0.1)
    for batch in (pairs, pairs[:3], pairs[:3]):
        optimiser.zero_grad(set_to_none=True)
        before = dog.detach().clone(), cat.detach().clone()
        loss, _ = batch_loss(setup.learner(prompts), batch, len(batch), 0)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        assert not torch.equal(cat, before[1])
        if len(batch) == len(pairs):
            assert not torch.equal(dog, before[0])
        else:
            assert dog.grad is None
            assert torch.equal(dog, before[0])
    dog.grad = torch.zeros_like(dog)
    before_zero = dog.detach().clone()
    optimiser.step()
    assert not torch.equal(dog, before_zero)


def test_gradient_checkpointing_computes_again_instead_of_keeping(setup: Setup) -> None:
    """The same gradient; what lies on its way is computed a second time."""
    prompts, pairs = setup.open_prompts(setup.settings), some_pairs()
    parameters = [own for layer in prompts for own in layer.parameters()]
    unets = setup.networks.unets
    calls: list[int] = []
    # before, not after: the second computation ends as soon as it has what the gradient needs
    last = unets[-1].up_blocks[-1]
    handles = [resnet.register_forward_pre_hook(lambda *_: calls.append(1)) for resnet in last.resnets]

    def gradients() -> tuple[list[Tensor], int]:
        calls.clear()
        loss, _ = batch_loss(setup.learner(prompts), pairs, len(pairs), 0)
        found = torch.autograd.grad(loss, parameters)
        return list(found), len(calls)

    plain, once = gradients()
    unets[-1].enable_gradient_checkpointing()
    try:
        sparing, twice = gradients()
    finally:
        unets[-1].disable_gradient_checkpointing()
        for handle in handles:
            handle.remove()
    for ours, theirs in zip(plain, sparing, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert twice == 2 * once
