"""Exceptions of the engine; all are `InputError`, so the command line prints their sentence and exits with code 2."""

from typing import Self

from matcher.errors import InputError


class DatasetError(InputError):
    """A dataset's folder, split list, annotation or image is missing or malformed."""


class UnmarkedError(DatasetError):
    """A data set has images, but nobody has marked keypoints in them, so that nothing can be scored."""


class ImageError(DatasetError):
    """One image cannot be read. `image_id` names it, so that `--skip-bad` can list it and go on."""

    def __init__(self, image_id: str, sentence: str) -> None:
        super().__init__(sentence)
        self.image_id = image_id

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """So that one process can hand it to another."""
        return type(self), (self.image_id, str(self))


class ModelError(InputError):
    """A diffusion model cannot be found, reached, or used as asked."""


class PromptError(InputError):
    """Learned prompts are missing, malformed, made for another model, or lack what is asked of them."""


class TuningError(InputError):
    """A training run cannot start, go on or be resumed as asked."""


class AdapterError(InputError):
    """An adapter is missing, malformed, made for other maps, or cannot be trained as asked."""


class EvaluationError(InputError):
    """An evaluation's run folder is missing, malformed, in the way, or lacks what is asked of it."""


class ExportError(InputError):
    """Maps cannot be written in the layout asked for, or not there."""


class StoreError(InputError):
    """A store is missing, is not a dualsd store, was made with other settings, or holds damaged data."""


class ProcessError(InputError):
    """Several processes that do one command together do not find each other, or one of them ended early."""


class StoreExistsError(StoreError):
    """A store cannot be made where something lies already: another process may have made it at the same time."""


AGAIN = "run the same command again"
"""What to do once there is room, of nearly every command."""


class DiskFullError(StoreError):
    """There is no room left where a store or a run lies. `fault` says what could not be written, and what is free."""

    def __init__(self, fault: str, way_on: str = AGAIN) -> None:
        super().__init__(f"{fault}; make room and {way_on}, what is complete is kept.")
        self.fault = fault
        self._way_on = way_on

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """So that one process can hand it to another."""
        return type(self), (self.fault, self._way_on)


class MetadataError(StoreError):
    """The metadata of an array or a group of a store cannot be used. `fault` says why, without more."""

    def __init__(self, sentence: str, fault: str) -> None:
        super().__init__(sentence)
        self.fault = fault
