"""Training on one process or several: who takes which pairs, and gradients summed over all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from featstore.errors import TuningError
from featstore.files import write_whole
from featstore.pipeline.distributed import Processes
from featstore.sealed import check_tensors_seal, read_tensors, seal_tensors

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")


def sum_gradients(parameters: Sequence[nn.Parameter], processes: Processes) -> None:
    """Sum gradients over processes, in place, in one message. A parameter that no process used keeps none.

    Losses are shares of the whole batch's mean, so the sum is the gradient of that mean, however many processes there
    are. (SD4Match's code calls the prompt module past DDP: its gradients are not averaged.)

    Raises:
        ProcessError: another process ended.
    """
    if processes.count == 1:
        return
    used = torch.stack([torch.tensor(float(own.grad is not None)) for own in parameters]).to(parameters[0])
    parts = [(torch.zeros_like(own) if own.grad is None else own.grad).flatten() for own in parameters]
    summed = processes.sum(torch.cat([used, *parts]))
    for index, (own, part) in enumerate(
        zip(parameters, summed[len(used) :].split([own.numel() for own in parameters]), strict=True)
    ):
        own.grad = part.view_as(own).clone() if summed[index] > 0 else None


def sum_numbers(numbers: Sequence[float], processes: Processes, device: torch.device) -> list[float]:
    """Each number summed over processes. Raises `ProcessError` where another one ended."""
    # gloo and NCCL both add float64
    return processes.sum(torch.tensor(numbers, dtype=torch.float64, device=device)).tolist()


_DESCRIBED_BYTES = 512
"""What the file says of a parameter and its Adam state, or of the run, at most."""


@dataclass(slots=True)
class TrainingState:
    """step: how many are done. parameters: in a fixed order. optimiser: Adam over them. best: the best validation PCK
    so far, a fraction; -1 before the first. scaler: of float16's gradients, None where there is none."""

    step: int
    parameters: Sequence[nn.Parameter]
    optimiser: torch.optim.Optimizer
    best: float
    scaler: Any

    def save(self, file: Path) -> None:
        """Write it; the file appears whole or not at all. Raises what `write_whole` raises."""
        write_whole(file, self.to_bytes())

    def to_bytes(self) -> bytes:
        """What its file holds."""
        tensors = {}
        for index, parameter in enumerate(self.parameters):
            tensors[f"{index}"] = parameter.detach().cpu().contiguous()
            for name, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"{index}|{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
        scaler = None if self.scaler is None else self.scaler.state_dict()
        written = {"step": self.step, "best": self.best, "scaler": scaler}
        return seal_tensors(written, lambda metadata: save(tensors, metadata=metadata))

    @property
    def largest_bytes(self) -> int:
        """How many that is at most: before the first step Adam has no averages yet."""
        return sum(3 * parameter.nbytes + _DESCRIBED_BYTES for parameter in self.parameters) + _DESCRIBED_BYTES

    def load(self, file: Path) -> None:
        """Take over what `save` wrote. Raises `TuningError` where the file is damaged or does not fit this run."""
        try:
            content, written = read_tensors(file)
            check_tensors_seal(content, written)
            tensors = load(content)
            for index, parameter in enumerate(self.parameters):
                own = tensors.pop(f"{index}")
                if (own.shape, own.dtype) != (parameter.shape, parameter.dtype):  # copying would broadcast and convert
                    raise ValueError(
                        f"parameter {index} is {own.dtype} of shape {tuple(own.shape)}, in this run {parameter.dtype} "
                        f"of shape {tuple(parameter.shape)}"
                    )
                with torch.no_grad():
                    parameter.copy_(own)
                prefix = f"{index}|"
                adam = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
                if adam:
                    # Adam keeps its count of steps on the CPU
                    self.optimiser.state[parameter] = {
                        name: value if name == "step" else value.to(parameter.device) for name, value in adam.items()
                    }
            self.step, self.best = int(written["step"]), float(written["best"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TuningError(
                f"The checkpoint {file} cannot be used ({error}): copy it again from where it is whole, or train anew."
            ) from error
        if self.scaler is not None and written["scaler"]:
            self.scaler.load_state_dict(written["scaler"])
