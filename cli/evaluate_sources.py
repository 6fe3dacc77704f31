"""Where `dualsd eval` takes its maps from: a store, or somebody's file of features."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cli import option_values
from featstore.backbones.dino_name import DINO

if TYPE_CHECKING:
    from cli.prompt_choice import PromptChoice
    from featstore.errors import ImageError
    from featstore.pipeline.compute import Compute
    from featstore.pipeline.dino_maps import AskedDino
    from featstore.pipeline.evaluate import Evaluation, Scoring
    from featstore.store.keys import Stored
    from featstore.store.store import Store


def from_store(
    opened: "Store",
    root: Path | None,
    split: str | None,
    categories: tuple[str, ...],
    scoring: "Scoring",
    choice: "PromptChoice",
    dino: "AskedDino",
    ensemble: int,
    compute: "Compute",
    stored: "Stored",
    skip_bad: bool,
) -> "Evaluation":
    """Match a split from a store's maps; those that lack are made and kept. Of several processes, which meet
    once what was typed is found to be right, each makes its share, and matches its share of the target images."""
    from cli.output import print_bad, print_dino_shape, print_left_out, print_shapes
    from cli.processes import progress_of
    from featstore.datasets.records import canonical_split
    from featstore.pair_list import note_oddities
    from featstore.pipeline.dino_maps import require_dino_maps
    from featstore.pipeline.distributed import join_processes
    from featstore.pipeline.evaluate import (
        choose_pairs,
        default_split,
        describe_dino,
        describe_features,
        images_of,
        in_frame_of_store,
        score,
        unreadable,
        without_images,
    )
    from featstore.pipeline.images import check_unchanged
    from featstore.pipeline.needed import model_of, require_maps
    from featstore.store.source import StoredMaps

    dataset = option_values.dataset_of(opened, root)
    split = canonical_split(split or default_split(dataset))
    pairs = choose_pairs(dataset, split, categories)
    choice.check_categories({pair.category for pair in pairs})
    images = images_of(pairs)
    processes = join_processes()
    processes.check_same(dict(choice.describe()), "prompts")  # the newest run's, which another may be just now
    share = processes.part.of(images)
    rows = [opened.images.row(image) for image in share]
    size = opened.header.image_size
    wanted = tuple((int(layer.layer), layer.timestep) for layer in scoring.layers if layer.timestep is not None)
    with progress_of(processes) as progress:
        check_unchanged(opened, dataset, share, progress)
        framed = in_frame_of_store(opened, dataset, pairs, progress)
        notes = note_oddities(dataset, [split], images, opened.images.known_keys, progress)
        patches = None
        without_patches: tuple[ImageError, ...] = ()
        if any(layer.layer == DINO for layer in scoring.layers):
            patches = require_dino_maps(opened, dataset, rows, dino, compute, progress, stored)
            if patches.images:
                print_dino_shape(patches.extractor, patches.shape)
            without_patches = unreadable(*processes.gather(patches.bad))
            if without_patches and not skip_bad:
                raise without_patches[0]
        about_dino = {} if patches is None else describe_dino(patches.extractor)
        if choice.prompts is None:
            from cli.output import print_pairwise_cost
            from featstore.pipeline.pairwise import open_pair_maps, score_pairwise

            print_pairwise_cost(len(pairs), len(wanted), ensemble)
            assert choice.learned is not None, "only learned prompts belong to pairs"
            pair_maps = open_pair_maps(
                opened, dataset, framed, wanted, choice.learned, dino.name, ensemble, compute, progress, processes
            )
            features = describe_features(opened, None, choice.describe(), ensemble, compute) | about_dino
            beside = None if patches is None else StoredMaps(opened, None, patches.extractor)
            result = score_pairwise(dataset, split, framed, pair_maps, scoring, features, progress, beside, processes)
            return replace(result, notes=notes)
        made = require_maps(opened, dataset, rows, wanted, choice.prompts, ensemble, compute, progress, stored)
        if made.images_times_timesteps:
            model = model_of(opened)
            print_shapes(model.shape(layer, size) for layer, _ in wanted)
        without_maps = unreadable(*processes.gather(made.bad))  # from here on all processes find all maps
        if without_maps and not skip_bad:
            raise without_maps[0]
        bad = unreadable(without_maps, without_patches)
        print_bad(bad)
        readable = without_images(framed, bad)
        print_left_out(len(pairs), len(readable))
        about = describe_features(opened, made.extractor, choice.describe(), ensemble, compute) if wanted else {}
        maps = StoredMaps(opened, made.extractor, None if patches is None else patches.extractor)
        result = score(dataset, split, readable, maps, scoring, about | about_dino, compute.device, progress, processes)
        return replace(result, notes=notes)


def from_file(
    path: Path,
    dataset_name: str,
    root: Path | None,
    split: str | None,
    categories: tuple[str, ...],
    scoring: "Scoring",
    compute: "Compute",
) -> "Evaluation":
    """Match a split from a file of anybody's features; no store and no model is needed."""
    from cli.processes import progress_of
    from featstore.datasets.records import canonical_split
    from featstore.datasets.registry import open_dataset
    from featstore.pair_list import note_oddities
    from featstore.pipeline.distributed import join_processes
    from featstore.pipeline.evaluate import (
        choose_pairs,
        default_split,
        images_of,
        in_resized_frame,
        keys_from_files,
        score,
        sizes_from_files,
    )
    from featstore.store.source import open_features

    maps = open_features(path)
    dataset = open_dataset(dataset_name, root)
    split = canonical_split(split or default_split(dataset))
    pairs = choose_pairs(dataset, split, categories)
    images = images_of(pairs)
    processes = join_processes()
    with progress_of(processes) as progress:
        maps.check(images, scoring.layers)
        sizes = sizes_from_files(dataset, images)
        notes = note_oddities(dataset, [split], images, keys_from_files(dataset, images), progress)
        framed = in_resized_frame(dataset, pairs, sizes.__getitem__, scoring.settings.image_size, progress)
        features = {"features": str(path)}
        result = score(dataset, split, framed, maps, scoring, features, compute.device, progress, processes)
        return replace(result, notes=notes)
