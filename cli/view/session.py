"""What the workbench answers: requests as the page sends them to the engine, and results as JSON has them."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, TypeVar

from PIL import Image
from pydantic import Field

from cli.view.answers import defaults_of, details_of, heat_of, keypoint_at, kind_of, setting_to_json, size_of
from cli.view.typed import spell_match, told_by
from featstore.backbones.registry import TITLES
from featstore.config import ViewConfig
from featstore.errors import DatasetError, StoreError
from featstore.parsing import parse
from featstore.pipeline.defaults import dataset_of
from featstore.pipeline.grid_results import KeptGrid
from featstore.pipeline.live import KeptExtractor, LiveMaps, LiveSetting, Pictured, StoredImage
from featstore.pipeline.live_adapters import Adapters
from featstore.pipeline.live_data import CommonKeypoint, LiveData
from featstore.pipeline.live_runs import Asked, ListedRun, grid_cells, is_adapted, list_runs, worst_pairs
from featstore.pipeline.live_uploads import UploadedImage, Uploads
from featstore.pipeline.results import EvaluationRun
from featstore.prompts.base import LearnedPrompts
from featstore.prompts.saved import load_prompts, prompts_of
from featstore.store.keys import AdaptedExtractor, AnyExtractor, Extractor, PixelExtractor, absolute
from featstore.store.store import open_store
from matcher.configuration import MODULES, Frame, Geometry, frame_of
from matcher.errors import InputError

LARGEST_SIDE = 2048
"""Pixels of a picture's longer side that the page gets at most; points count in those of the whole picture."""

LOSSLESS = 1 << 18
"""Pixels up to which a picture is sent as it is."""

ALPHA = 0.1
"""Share of theta within which a match is right, where the page does not say."""


class NotThereError(Exception):
    """What is asked for is not there; says what, in a sentence."""


Name = int | str
Point = tuple[Annotated[float, Field(ge=-1e6, le=1e6)], Annotated[float, Field(ge=-1e6, le=1e6)]]


@dataclass(frozen=True, slots=True)
class MatchAsked:
    """Points of one image that are looked for in another. heat: whether correlation maps are asked for. keypoints:
    whether the truth is, where the points are keypoints; alpha: for its radius."""

    source: Name
    target: Name
    points: tuple[Point, ...]
    setting: LiveSetting
    heat: bool = False
    keypoints: bool = False
    alpha: Annotated[float, Field(gt=0, le=1)] = ALPHA


@dataclass(frozen=True, slots=True)
class MarkAsked:
    """A keypoint of an image, in pixels as stored; None for both to remove it."""

    image: int
    name: str
    x: float | None = None
    y: float | None = None


Kind = TypeVar("Kind")


def read(kind: type[Kind], value: Any) -> Kind:
    """A request's body. Raises `InputError` where it is none."""
    try:
        found: Kind = parse(kind, value, "")
    except ValueError as error:
        raise InputError(f"The request cannot be used: {error}.") from error
    return found


class Session:
    """A store, its data set and runs, opened for as long as the workbench runs. One thread at a time asks it, but for
    pictures."""

    def __init__(self, config: ViewConfig) -> None:
        """Open them. Raises `StoreError` where there is no store."""
        self._config = config
        self.maps = LiveMaps(open_store(config.store), int(config.memory * 1e9))
        self._listed: list[ListedRun] = []
        self._opened: dict[Path, tuple[int, EvaluationRun | KeptGrid]] = {}
        self._learned: list[tuple[Path, LearnedPrompts]] = []
        self._adapters = Adapters(config.runs)
        self._uploads = Uploads(self.maps, lambda: [own for _, own in self._learned], self._adapters)
        self._data, self._no_data = self._open_data()
        self._setting: LiveSetting | None = None
        self._refresh()

    def _open_data(self) -> tuple[LiveData | None, str]:
        """The data set, and why there is none."""
        try:
            data = LiveData(self.maps.store, dataset_of(self.maps.store, self._config.root))
            data.refresh(self.maps.store)
        except DatasetError as error:
            return None, str(error)
        return data, ""

    def _refresh(self) -> None:
        self.maps.refresh()
        if self._data is None:
            self._data, self._no_data = self._open_data()
        else:
            try:
                self._data.refresh(self.maps.store)
            except DatasetError as error:
                self._data, self._no_data = None, str(error)
        self._listed = list_runs(self._config.runs, self.maps.store)
        self._learned = [
            (run.path, found) for run in self._listed if run.kind == "train" and (found := _prompts(run.path))
        ]

    def state(self) -> dict[str, Any]:
        """All that the page chooses from, as it is now."""
        self._refresh()
        store, extractors = self.maps.store, self.maps.extractors()
        defaults = defaults_of(extractors, store.header)
        self._setting = self._setting or defaults
        header, images = store.header, store.images
        present = [own for one in extractors.values() for steps in one.layers.values() for own in steps.values()]
        here = [row for row in images.rows.values() if images.sizes[row].all()]
        return {
            "store": absolute(store.path),
            "model": header.model_id,
            "image_size": header.image_size,
            "pad": header.pad.value,
            "dataset": header.dataset,
            "dataset_error": self._no_data or None,
            "categories": sorted({images.categories[row] for row in here}),
            "images": [
                {
                    "row": row,
                    "id": images.ids[row],
                    "category": images.categories[row],
                    **size_of(images.sizes[row]),
                    "maps": sum(int(own[row : row + 1].sum()) for own in present),
                }
                for row in here
            ],
            "extractors": self._describe(extractors),
            "defaults": setting_to_json(defaults),
            "readouts": [name for name in MODULES if frame_of(name) is Frame.RESIZED],
            "geometries": [own.value for own in Geometry],
            "runs": [{"path": str(run.path), "kind": run.kind, "label": run.label} for run in self._listed],
            "annotate": self._data is not None and self._data.annotations is not None,
            "can_upload": self._uploads.is_possible,
        }

    def _describe(self, extractors: Mapping[str, KeptExtractor]) -> list[dict[str, Any]]:
        labels = {key: self._label(own.extractor) for key, own in extractors.items()}
        several = {label for label in labels.values() if [*labels.values()].count(label) > 1}
        return [
            {
                "key": key,
                "label": label + (f" ({details_of(own.extractor)})" if label in several else ""),
                "kind": kind_of(own.extractor),
                "layers": own.timesteps,
            }
            for (key, own), label in zip(extractors.items(), labels.values(), strict=True)
        ]

    def _label(self, extractor: AnyExtractor) -> str:
        """What the page calls an extractor: its text, the run of its prompts or of its adapter, or its network."""
        if isinstance(extractor, AdaptedExtractor):
            place = self._adapters.place(extractor.adapter)
            return f"adapter {extractor.adapter[:6]}" if place is None else f"adapter of {place}"
        if isinstance(extractor, PixelExtractor):
            return f"{TITLES.get(extractor.family, extractor.family)} {extractor.network.id}, {extractor.size} pixels"
        run = self._run_of(extractor)
        if run is not None:
            return f"prompts of {run}"
        if extractor.prompt.get("kind") == "zeros":
            return "no text"
        return str(extractor.prompt.get("template") or f"{extractor.prompt.get('mode', 'other')} prompts")

    def _run_of(self, extractor: Extractor) -> Path | None:
        """Whose prompts an extractor's are; None of a text, and of runs that are not at hand."""
        if kind_of(extractor) == "text":
            return None
        return next((path for path, own in self._learned if prompts_of(extractor.prompt, [own]) is not None), None)

    def picture(self, name: str, side: int) -> tuple[bytes, str]:
        """An image as a file, and its media type. side: of its longer one in pixels, at most."""
        image = self._image(int(name) if name.isdecimal() else name)
        if isinstance(image, UploadedImage):
            picture = image.photo.picture
        elif self._data is None:
            raise DatasetError(self._no_data)
        else:
            picture = self._data.picture(image.row)
        if max(picture.size) > side:
            picture = picture.copy()
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        file, kind = io.BytesIO(), "PNG" if picture.width * picture.height <= LOSSLESS else "JPEG"
        picture.save(file, kind, **({} if kind == "PNG" else {"quality": 92}))
        return file.getvalue(), f"image/{kind.lower()}"

    def _image(self, name: Name) -> "StoredImage | UploadedImage":
        """Raises `NotThereError` where there is no such image."""
        if isinstance(name, str):
            uploaded = self._uploads.get(name)
            if uploaded is None:
                raise NotThereError("That picture is no longer kept: drop it again.")
            return uploaded
        images = self.maps.store.images
        if not 0 <= name < len(images) or name in images.gone or not images.sizes[name].all():
            raise NotThereError(f"There is no image {name} in the store: load the page again.")
        width, height = images.sizes[name].tolist()
        return StoredImage(self.maps, name, (width, height))

    def match(self, body: Any) -> dict[str, Any]:
        """Find points."""
        begun = perf_counter()
        asked = read(MatchAsked, body)
        source, target = self._image(asked.source), self._image(asked.target)
        done = self.maps.match(source, target, asked.points, asked.setting)
        self._setting = asked.setting
        answer: dict[str, Any] = {
            "points": done.points.tolist(),
            "scores": done.scores.tolist(),
            "margins": done.margins.tolist(),
            "mutual": done.mutual.tolist(),
            "back": done.back.tolist(),
        }
        if asked.keypoints:
            known = self._common(source, target)
            places = [keypoint_at(known, point) for point in asked.points]
            reach = [asked.alpha * own for own in known[0].reach] if known else None
            answer |= {
                "truth": [None if own is None else [*own.target] for own in places],
                "names": [None if own is None else own.name for own in places],
                "alpha_radius": reach,
                "alpha": asked.alpha,
            }
        if asked.heat:
            answer["heat"] = heat_of(done)
        return {**answer, "ms": round(1000 * (perf_counter() - begun), 2)}

    def _common(self, source: Pictured, target: Pictured) -> list[CommonKeypoint]:
        if self._data is None or not (isinstance(source, StoredImage) and isinstance(target, StoredImage)):
            return []
        return self._data.keypoints(source.row, target.row)

    def keypoints(self, source: int, target: int) -> list[dict[str, Any]]:
        """Those that two images show, which are then about to be matched."""
        ends = self._image(source), self._image(target)
        if self._setting is not None:
            self.maps.expect(ends, self._setting)
        return [asdict(own) for own in self._common(*ends)]

    def run(self, path: str, asked: Asked) -> dict[str, Any]:
        """What the page shows of a kept run."""
        listed = next((run for run in self._listed if str(run.path) == path), None)
        if listed is None:
            raise NotThereError("There is no such run: load the page again.")
        images = self.maps.store.images
        rows = {image: row for image, row in images.rows.items() if images.sizes[row].all()}
        if listed.kind in ("train", "adapt"):
            learned = [key for key, own in self.maps.extractors().items() if self._is_of(own.extractor, listed.path)]
            return {"path": path, "kind": listed.kind, "label": listed.label, "extractors": learned}
        opened = self._open(listed)
        found = grid_cells(opened, rows, asked) if isinstance(opened, KeptGrid) else worst_pairs(opened, rows, asked)
        settings = {name: own for name, own in found.items() if name in ("setting", "best_setting")}
        if is_adapted(opened.about.features if isinstance(opened, KeptGrid) else opened.features):
            settings = {name: own if self._is_kept(own) else None for name, own in settings.items()}
        shown = {name: setting_to_json(own) for name, own in settings.items()}
        return {"path": path, "label": listed.label} | found | shown

    def _is_of(self, extractor: AnyExtractor, run: Path) -> bool:
        """Whether an extractor's maps are made with what a run learned."""
        if isinstance(extractor, AdaptedExtractor):
            return self._adapters.fingerprint(run) == extractor.adapter
        return isinstance(extractor, Extractor) and self._run_of(extractor) == run

    def _is_kept(self, setting: LiveSetting | None) -> bool:
        """Whether the store has maps of a setting's extractors; adapted ones it often has not."""
        try:
            return setting is not None and all(self.maps.extractor(own.extractor) for own in setting.layers)
        except StoreError:
            return False

    def _open(self, listed: ListedRun) -> EvaluationRun | KeptGrid:
        """A run, opened once as long as it stays as it is."""
        file = listed.path / ("run.json" if listed.kind == "eval" else "grid.safetensors")
        try:
            written = file.stat().st_mtime_ns
        except OSError as error:
            raise NotThereError(f"{listed.path} is no longer there.") from error
        if listed.path not in self._opened or self._opened[listed.path][0] != written:
            kept = EvaluationRun.open(listed.path) if listed.kind == "eval" else KeptGrid.open(listed.path)
            self._opened = {listed.path: (written, kept)}  # one: of many pairs it is large
        return self._opened[listed.path][1]

    def command(self, body: Any) -> dict[str, str | None]:
        """What could be typed to see the same."""
        asked = read(MatchAsked, body)
        ends = [self._image(name) for name in (asked.source, asked.target)]
        if self._data is None:
            raise DatasetError(self._no_data)
        rows = [end.row for end in ends if isinstance(end, StoredImage)]
        if len(rows) < 2:
            raise InputError("A picture that was dropped has no file that a command could name.")
        told = told_by(
            self.maps, asked.setting, self.maps.store.images.categories[rows[0]], self._run_of, self._adapters
        )
        return spell_match(self._data, self._config.store, (rows[0], rows[1]), asked.points, asked.setting, told)

    def upload(self, data: bytes, category: str) -> dict[str, Any]:
        """Take a picture that was dropped."""
        image = self._uploads.add(data, category)
        width, height = image.size
        return {"row": image.name, "id": image.name, "category": category, "width": width, "height": height}

    def annotations(self) -> dict[str, Any]:
        """The keypoints of all images of a folder data set, by row."""
        own, rows = self._annotations(), self.maps.store.images.rows
        points = own.points()
        names = dict.fromkeys(name for found in points.values() for name in found)
        return {
            "file": str(own.file),
            "names": [*names],
            "images": {str(rows[image]): found for image, found in points.items() if image in rows},
        }

    def annotate(self, body: Any) -> dict[str, Any]:
        """Set or remove a keypoint."""
        asked, own = read(MarkAsked, body), self._annotations()
        image = self._image(asked.image)
        assert self._data is not None
        assert isinstance(image, StoredImage), "it was asked for by number"
        if (asked.x is None) != (asked.y is None):
            raise InputError("A keypoint has both x and y, or neither to be removed.")
        point = None if asked.x is None or asked.y is None else (asked.x, asked.y)
        width, height = image.size
        if point is not None and not (0 <= point[0] <= width and 0 <= point[1] <= height):
            raise InputError(f"The point {point[0]:g},{point[1]:g} lies outside the image, which is {width}x{height}.")
        own.save(self._data.record(image.row), asked.name, point)
        return self.annotations()

    def _annotations(self) -> Any:
        if self._data is None:
            raise DatasetError(self._no_data)
        own = self._data.annotations
        if own is None:
            raise DatasetError("Keypoints are marked in a data set of your own photographs (--dataset folder) only.")
        return own


def _prompts(run: Path) -> LearnedPrompts | None:
    try:
        return load_prompts(run)
    except InputError:  # it has none yet, or damaged ones
        return None
