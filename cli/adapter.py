"""`dualsd adapter export | import`."""

from typing import TYPE_CHECKING

import typer

from cli.help import Command, Group
from cli.options import examples, taking
from cli.output import check_writable, say
from featstore.kept_config import AdapterExportConfig, AdapterImportConfig

if TYPE_CHECKING:
    from featstore.adapters.base import Adapter

app = typer.Typer(
    cls=Group, no_args_is_help=True, help="Adapters: as one file to give away, and from GeoAware-SC's and DIY-SC's."
)

EXPORT_EXAMPLES = examples(
    "dualsd adapter export runs/adapt-2+3-001 --out cats.safetensors",
    "dualsd eval --store spair.zarr --adapter cats.safetensors",
)
IMPORT_EXAMPLES = examples(
    "dualsd adapter import geoaware.pth --layers 3,2,1,dino --t 50,50,50 --out geoaware.safetensors",
    "dualsd adapter import diy-sc.pth --layers dino --out diy.safetensors",
    "dualsd eval --store spair.zarr --adapter geoaware.safetensors",
)


@app.command("export", cls=Command, epilog=EXPORT_EXAMPLES)
@taking(AdapterExportConfig)
def export(config: AdapterExportConfig) -> None:
    """Write an adapter as one safetensors file, whose card says what it takes and how it was trained."""
    check_writable(config.out)
    from featstore.adapters.base import load_adapter, save_adapter

    adapter = load_adapter(config.adapter)
    save_adapter(config.out, adapter)
    say(f"{config.out}: {_describe(adapter)}")


@app.command("import", cls=Command, epilog=IMPORT_EXAMPLES)
@taking(AdapterImportConfig)
def import_published(config: AdapterImportConfig) -> None:
    """Read an adapter that GeoAware-SC or DIY-SC published into a file that --adapter takes. Nothing in the pickle is
    executed.

    The file does not say which maps it takes: say so with --layers, a layer per part, in the file's order. Neither does
    it say of which model, prompt and size; figures mean nothing where these are others than it was trained on.
    """
    check_writable(config.out)
    from featstore.adapters.base import save_adapter
    from featstore.adapters.published import import_adapter

    adapter = import_adapter(config.file, config.layers or (), config.timesteps, config.groups, config.cells)
    save_adapter(config.out, adapter)
    say(f"{config.out}: {_describe(adapter)}", f"  dualsd eval --adapter {config.out}")


def _describe(adapter: "Adapter") -> str:
    from featstore.adapters.applied import fingerprint
    from featstore.adapters.base import spell_keys

    spec = adapter.spec
    count = sum(own.numel() for own in adapter.parameters())
    channels = ", ".join(map(str, spec.channels))
    what = f"{spec.kind} adapter of {count:,} parameters, fingerprint {fingerprint(adapter)}"
    return f"{what}; takes {spell_keys(spec.inputs)}, channels {channels}"
