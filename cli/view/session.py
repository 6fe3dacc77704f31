"""What the workbench answers: requests as the page sends them to the engine, and results as JSON has them."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, TypeVar

import numpy as np
from PIL import Image
from pydantic import Field

from cli.options import command_of
from featstore.backbones.layers import weights_for
from featstore.backbones.registry import TITLES, profile_of
from featstore.config import MatchConfig, ViewConfig
from featstore.datasets.pictures import exif_orientation, image_key
from featstore.errors import DatasetError, PromptError
from featstore.parsing import parse, to_json
from featstore.pipeline.defaults import dataset_of
from featstore.pipeline.grid_results import KeptGrid
from featstore.pipeline.live import KeptExtractor, LiveLayer, LiveMaps, LiveMatch, LiveSetting, Pictured, StoredImage
from featstore.pipeline.live_data import CommonKeypoint, LiveData
from featstore.pipeline.live_runs import Asked, ListedRun, grid_cells, list_runs, worst_pairs
from featstore.pipeline.live_uploads import UploadedImage, Uploads
from featstore.pipeline.results import EvaluationRun
from featstore.prompts.base import LearnedPrompts
from featstore.prompts.saved import load_prompts, prompts_of
from featstore.prompts.text import TextPrompt
from featstore.store.keys import AnyExtractor, Extractor, absolute
from featstore.store.store import open_store
from matcher.configuration import MODULES, Frame, Geometry, frame_of
from matcher.errors import InputError

LARGEST_SIDE = 2048
"""Pixels of a picture's longer side that the page gets at most; points count in those of the whole picture."""

LOSSLESS = 1 << 18
"""Pixels up to which a picture is sent as it is."""

ALPHA = 0.1
"""Share of theta within which a match is right, where the page does not say."""

NEAR = 0.51
"""Pixels within which a point that the page asks for is a keypoint."""


OTHER_NOISE = (
    "The store's noise belongs to the pixels of these pictures, and the command's to their files, so figures differ by "
    "as much as the noise moves them."
)


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
        self._uploads = Uploads(self.maps, lambda: [own for _, own in self._learned])
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
        defaults = _defaults(extractors, store.header.model_id)
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
                    **_size(images.sizes[row]),
                    "maps": sum(int(own[row : row + 1].sum()) for own in present),
                }
                for row in here
            ],
            "extractors": self._describe(extractors),
            "defaults": _json(defaults),
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
                "label": label + (f" ({_details(own.extractor)})" if label in several else ""),
                "kind": _kind(own.extractor),
                "layers": own.timesteps,
            }
            for (key, own), label in zip(extractors.items(), labels.values(), strict=True)
        ]

    def _label(self, extractor: AnyExtractor) -> str:
        """What the page calls an extractor: its text, the run of its prompts, or its network."""
        if not isinstance(extractor, Extractor):
            return f"{TITLES.get(extractor.family, extractor.family)} {extractor.network.id}, {extractor.size} pixels"
        run = self._run_of(extractor)
        if run is not None:
            return f"prompts of {run}"
        return str(extractor.prompt.get("template") or f"{extractor.prompt.get('mode', 'other')} prompts")

    def _run_of(self, extractor: Extractor) -> Path | None:
        """Whose prompts an extractor's are; None of a text, and of runs that are not at hand."""
        if _kind(extractor) == "text":
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
            places = [_at(known, point) for point in asked.points]
            reach = [asked.alpha * own for own in known[0].reach] if known else None
            answer |= {
                "truth": [None if own is None else [*own.target] for own in places],
                "names": [None if own is None else own.name for own in places],
                "alpha_radius": reach,
                "alpha": asked.alpha,
            }
        if asked.heat:
            answer["heat"] = _heat(done)
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
        if listed.kind == "train":
            extractors = [
                key
                for key, own in self.maps.extractors().items()
                if isinstance(own.extractor, Extractor) and self._run_of(own.extractor) == listed.path
            ]
            return {"path": path, "kind": "train", "label": listed.label, "extractors": extractors}
        opened = self._open(listed)
        found = grid_cells(opened, rows, asked) if isinstance(opened, KeptGrid) else worst_pairs(opened, rows, asked)
        settings = {name: _json(own) for name, own in found.items() if name in ("setting", "best_setting")}
        return {"path": path, "label": listed.label} | found | settings

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
        files = [self._data.file(row) for row in rows]
        records = [self._data.record(row) for row in rows]
        contents = [file.read_bytes() for file in files]
        if any(exif_orientation(*own) != 1 for own in zip(records, contents, strict=True)):
            raise InputError("`dualsd match` turns one of these pictures as its EXIF data ask, and the store does not.")
        setting, category = asked.setting, self.maps.store.images.categories[rows[0]]
        config = MatchConfig(
            source=files[0],
            target=files[1],
            points=tuple((round(x, 2), round(y, 2)) for x, y in asked.points),
            store=self._config.store,
            layers=tuple(own.layer for own in setting.layers),
            timesteps=tuple(own.t for own in setting.layers if own.t is not None) or None,
            weights=setting.weights,
            readout=setting.readout,
            geometry=setting.geometry,
            upsample=setting.upsample,
            upsample_align=setting.upsample_align if setting.upsample_align != setting.geometry else None,
            **{**setting.parameters, **self._told(setting, category)},
        )
        typed = command_of(config, "match", always=("source", "target", "points", "layers", "weights"))
        is_same = [*map(image_key, records, contents)] == [self.maps.store.images.keys[row] for row in rows]
        return {"command": typed, "note": None if is_same else OTHER_NOISE}

    def _told(self, setting: LiveSetting, category: str) -> dict[str, Any]:
        """What makes the maps of a setting's extractors. Raises `InputError` where one command cannot."""
        found = [self.maps.extractor(own) for own in dict.fromkeys(own.extractor for own in setting.layers)]
        unet = [own for own in found if isinstance(own, Extractor)]
        others = [own for own in found if not isinstance(own, Extractor)]
        if len(unet) > 1 or len(others) > 1 or len({own.dtype for own in found}) > 1:
            raise InputError("`dualsd match` takes one prompt for all layers: choose the same for each.")
        said: dict[str, Any] = {"dtype": found[0].dtype}
        for other in others:
            said |= {"dino": other.network.id, "dino_size": other.size, "dino_debias": other.debias or None}
        for own in unet:
            said |= {"ensemble": own.ensemble, "category": category}
            prompts, run = prompts_of(own.prompt, []), self._run_of(own)
            if isinstance(prompts, TextPrompt):
                said["prompt"] = prompts.template
            elif run is not None:
                said["prompts"] = run
            else:
                raise PromptError("The prompts of these maps are in no run that is at hand: name it with --runs.")
        return said

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


def _size(size: Sequence[int]) -> dict[str, int]:
    return {"width": int(size[0]), "height": int(size[1])}


def _kind(extractor: AnyExtractor) -> str:
    if not isinstance(extractor, Extractor):
        return "pixels"
    return "text" if extractor.prompt.get("kind") == "text" else "learned"


def _details(extractor: AnyExtractor) -> str:
    ensemble = [f"ensemble {extractor.ensemble}"] if isinstance(extractor, Extractor) else []
    return ", ".join([*ensemble, extractor.dtype, extractor.encoding, extractor.key[:6]])


def _defaults(extractors: Mapping[str, KeptExtractor], model: str) -> LiveSetting | None:
    """What the page begins with: the model's recommended layers and timesteps, where they are cached, by the extractor
    that has most of them; None of a store without maps."""
    profile = profile_of(model)

    def images_of(own: KeptExtractor, layer: str, step: int | None) -> int:
        return int(own.layers[layer][step].sum())

    def best(own: KeptExtractor) -> list[tuple[str, int | None]]:
        """Of the recommended layers, or any two, the recommended timesteps, or those of most images."""
        names = [layer for layer in profile.layers if layer in own.layers] or [*own.layers][:2]
        usual = profile.text_timesteps
        return [
            (
                layer,
                usual.get(layer)
                if usual.get(layer) in own.layers[layer]
                else max(own.layers[layer], key=lambda step: images_of(own, layer, step)),
            )
            for layer in names
        ]

    def rank(own: KeptExtractor) -> tuple[int, int, bool]:
        chosen = best(own)
        recommended = sum(layer in profile.layers for layer, _ in chosen)
        return recommended, min(images_of(own, *one) for one in chosen), _kind(own.extractor) == "text"

    for key, own in sorted(extractors.items(), key=lambda one: rank(one[1]), reverse=True)[:1]:
        chosen = best(own)
        names = [layer for layer, _ in chosen]
        weights = weights_for(names, None, profile) if {*names} <= {*profile.layers} else (1.0,) * len(names)
        return LiveSetting(tuple(LiveLayer(layer, step, key) for layer, step in chosen), weights)
    return None


def _json(setting: LiveSetting | None) -> dict[str, Any] | None:
    return None if setting is None else to_json(setting)


def _at(known: Sequence[CommonKeypoint], point: Sequence[float]) -> CommonKeypoint | None:
    """The keypoint that a point of the source is."""
    away = [(max(abs(own.source[0] - point[0]), abs(own.source[1] - point[1])), own) for own in known]
    nearest = min(away, key=lambda one: one[0], default=None)
    return None if nearest is None or nearest[0] > NEAR else nearest[1]


def _heat(done: LiveMatch) -> dict[str, Any]:
    """Correlations as bytes, each point's from its lowest to its highest."""
    low, high = (own(axis=(1, 2), keepdims=True) for own in (done.correlations.min, done.correlations.max))
    shares = (done.correlations - low) / np.maximum(high - low, 1e-9)
    return {
        "width": done.correlations.shape[2],
        "height": done.correlations.shape[1],
        "box": [*done.box],
        "low": low.ravel().tolist(),
        "high": high.ravel().tolist(),
        "data": [base64.b64encode(own.tobytes()).decode() for own in np.rint(255 * shares).astype(np.uint8)],
    }
