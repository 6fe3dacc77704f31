"""Training on one process or several: who takes which pairs, and gradients summed over all of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from featstore.processes import meeting

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")


def share(items: Sequence[Item], accelerator: "Accelerator") -> Sequence[Item]:
    """This process's part of `items`: neighbours stay together, as they share images."""
    count, index = accelerator.num_processes, accelerator.process_index
    return items[len(items) * index // count : len(items) * (index + 1) // count]


def sum_gradients(parameters: Sequence[nn.Parameter], accelerator: "Accelerator") -> None:
    """Sum gradients over processes, in place, in one message. A parameter that no process used keeps none.

    Losses are shares of the whole batch's mean, so the sum is the gradient of that mean, however many processes there
    are. (SD4Match's code calls the prompt module past DDP: its gradients are not averaged.) Raises `ProcessError` where
    another process ended.
    """
    if accelerator.num_processes == 1:
        return
    used = torch.stack([torch.tensor(float(own.grad is not None)) for own in parameters]).to(parameters[0])
    parts = [(torch.zeros_like(own) if own.grad is None else own.grad).flatten() for own in parameters]
    summed = _sum(torch.cat([used, *parts]), accelerator)
    for index, (own, part) in enumerate(
        zip(parameters, summed[len(used) :].split([own.numel() for own in parameters]), strict=True)
    ):
        own.grad = part.view_as(own).clone() if summed[index] > 0 else None


def sum_numbers(numbers: Sequence[float], accelerator: "Accelerator", device: torch.device) -> list[float]:
    """Each number summed over processes. Raises `ProcessError` where another one ended."""
    if accelerator.num_processes == 1:
        return list(numbers)
    # gloo and NCCL both add float64
    summed = _sum(torch.tensor(numbers, dtype=torch.float64, device=device), accelerator)
    return [float(number) for number in summed]


def wait_for_all(accelerator: "Accelerator") -> None:
    """Until all processes have come here. Raises `ProcessError` where another one ended."""
    with meeting(accelerator.num_processes):
        accelerator.wait_for_everyone()


def _sum(numbers: Tensor, accelerator: "Accelerator") -> Tensor:
    with meeting(accelerator.num_processes):
        summed: Tensor = accelerator.reduce(numbers, reduction="sum")
    return summed
