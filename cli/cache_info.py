"""`dualsd cache info`: what a store holds."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from cli import options
from cli.options import JsonOption, StoreOption
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.store.schema import StoreHeader


def info(store: StoreOption = options.DEFAULT_STORE, json: JsonOption = None) -> None:
    """What a store holds: made from what, which arrays, how complete, how large."""
    from cli.output import human_bytes, print_table, say, write_json
    from featstore.store.store import open_store, summarise

    opened = open_store(store)
    header = opened.header
    arrays = summarise(opened)
    root = f" in {header.dataset_root}" if header.dataset_root else ""
    say(f"{store}: {len(opened.images)} images of {header.dataset}{root}, {header.image_size} pixels a side")
    say(
        f"model {header.model_id}{f' at {header.model_revision}' if header.model_revision else ''}, fingerprint "
        f"{header.model_fingerprint[:8]}; latents {header.latents.value}, seed {header.seed}; made by dualsd "
        f"{header.creator}"
    )
    shifted = f"; latents shifted by {header.latent_shift:g}" if header.latent_shift else ""
    say(f"noise: {_noise(header)}{shifted}")
    print_table(
        "arrays",
        ["array", "a row", "rows", "complete", "size", "what"],
        [
            [
                array.path,
                "x".join(map(str, array.row_shape)),
                f"{array.present}/{array.rows}",
                f"{100 * array.present // max(array.rows, 1)} %",  # 100 % is all of them
                human_bytes(array.bytes),
                array.what,
            ]
            for array in arrays
        ],
    )
    total = sum(array.bytes for array in arrays)
    say(f"{human_bytes(total)} in {sum(array.present for array in arrays)} rows")
    write_json(
        json,
        {
            **header.to_attributes(),
            "images": len(opened.images),
            "arrays": [{name: value for name, value in asdict(array).items() if name != "what"} for array in arrays],
        },
    )


def _noise(header: "StoreHeader") -> str:
    """What noise is added by; for a store that can only be looked at, why."""
    try:
        return header.schedule.spell()
    except InputError as error:
        return str(error)
