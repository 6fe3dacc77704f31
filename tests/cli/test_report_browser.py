"""Every kind of report in a browser: it fetches nothing, complains of nothing, and fits a telephone. The pictures that
are taken lie in ./artefacts for people to look at."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.reports.evaluation import report_evaluation
from cli.reproduction.tables import report_reproduction
from featstore.pipeline.results import save_evaluation
from tests.cli.browser import Browser, find_browser, open_browser
from tests.cli.reproductions import write_reproduction
from tests.featstore.evaluations import guessed, many_pairs, result_of
from tests.featstore.trainable import write_trainable

ARTEFACTS = Path(__file__).parents[2] / "artefacts"
PHONE, DESKTOP = 390, 1200
KINDS = ("evaluation", "grid", "training", "reproduction")

pytestmark = [
    pytest.mark.skipif(find_browser() is None, reason="there is no Chromium to open reports with"),
    pytest.mark.usefixtures("everything_drawn"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    assert path is not None
    with open_browser(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> dict[str, Path]:
    """A report of each kind, as the commands leave them."""
    folder = tmp_path_factory.mktemp("reports")
    write_trainable(folder / "spair")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)

        def run(*arguments: str) -> None:
            result = CliRunner().invoke(app, list(arguments))
            assert result.exit_code == 0, result.output

        batch = ("--batch-size", "4")
        run(
            "cache",
            "build",
            "--dataset",
            "spair",
            "--root",
            "spair",
            "--model",
            str(small_model),
            "--size",
            "64",
            *batch,
        )
        run("eval", "--ensemble", "1", *batch)
        run("grid", "--t", "50,261", "--ensemble", "1", *batch)
        run(
            "train",
            "--mode",
            "single",
            "--steps",
            "6",
            "--length",
            "4",
            "--batch",
            "2",
            "--draws",
            "2",
            "--val-every",
            "2",
            *batch,
        )
    write_reproduction(folder / "reproduce")
    return {
        "evaluation": folder / "runs/eval-2+3-001/report.html",
        "grid": folder / "grid/report.html",
        "training": folder / "runs/single-2+3-001/report.html",
        "reproduction": report_reproduction(folder / "reproduce"),
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("kind", KINDS)
def test_a_report_in_a_browser(browser: Browser, reports: dict[str, Path], kind: str, width: int, dark: bool) -> None:
    file = reports[kind]
    ARTEFACTS.mkdir(exist_ok=True)
    picture = ARTEFACTS / f"report-{kind}-{width}-{'dark' if dark else 'light'}.png"
    visit = browser.visit(file, width, dark=dark, picture=picture)
    assert visit.said == []
    assert [address for address in visit.requests if not address.startswith("data:")] == [file.as_uri()]
    assert visit.width <= width
    assert visit.ground == ((20, 22, 26) if dark else (251, 251, 250))
    assert picture.stat().st_size > 10_000


def test_the_browser_would_notice(browser: Browser, tmp_path: Path) -> None:
    """A page that does all that a report must not."""
    page = "<img src='other.png'><p style='width: 900px'>wide</p><script>console.error('no')</script>"
    (tmp_path / "bad.html").write_text(f"<meta name='viewport' content='width=device-width'>{page}")
    visit = browser.visit(tmp_path / "bad.html", PHONE, dark=False)
    assert visit.width > PHONE
    assert any("no" in said for said in visit.said)
    assert (tmp_path / "other.png").as_uri() in visit.requests


def test_names_that_are_markup_do_not_run(browser: Browser, tmp_path: Path) -> None:
    name = "</svg><script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
    pairs = many_pairs(4, ("cat", name))
    path = save_evaluation(result_of(pairs, {"nn": guessed(pairs, 0.1, 0)}), tmp_path / "run")
    file = report_evaluation(path)
    visit = browser.visit(file, PHONE, dark=False)
    assert visit.said == []
    assert [address for address in visit.requests if not address.startswith("data:")] == [file.as_uri()]
    assert visit.title == "Evaluation: Layers 2 and 3 on demo test"
    assert visit.width <= PHONE
