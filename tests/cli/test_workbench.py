"""The workbench in a browser: what a user does with it, at the width of a telephone, a laptop and a desk. No page says
anything on the console, and none asks anybody but its server. Pictures lie in ./artefacts for people to look at."""

import contextlib
import csv
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse
from urllib.request import Request, urlopen
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from featstore.datasets.demo import FOLDER
from tests.cli.browser import find_browser

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make install` does it")

ROOT = Path(__file__).parents[2]
ARTEFACTS = ROOT / "artefacts"
PHONE, LAPTOP, DESK = (390, 844), (1200, 844), (1920, 1080)
WIDTHS = pytest.mark.parametrize("size", [PHONE, LAPTOP, DESK], ids=["390", "1200", "1920"])
STEPS = "100,200,400"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="there is no Chromium to open the workbench with"),
]

Page = Any
"""Of playwright's, which has no types for what is looked up."""


def dualsd(folder: Path, *arguments: str) -> None:
    """Run a command in a folder."""
    done = subprocess.run([sys.executable, "-m", "dualsd", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[str]:
    """The address of a workbench on the store in a folder; Ctrl-C ends it."""
    command = [sys.executable, "-m", "dualsd", "view", "--no-open", *arguments]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = next((found[0] for line in process.stdout if (found := re.search(r"http://\S+", line))), None)
        assert address is not None, "it ended without an address"
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of the demo, maps of its val split at three timesteps, an evaluation and a grid."""
    folder = tmp_path_factory.mktemp("workbench")
    dualsd(folder, "cache", "build")
    dualsd(folder, "grid", "--layers", "2,3", "--t", STEPS, "--ensemble", "1")
    dualsd(folder, "eval", "--split", "val", "--layers", "2,3", "--t", "400,100", "--ensemble", "1")
    return folder


@pytest.fixture(scope="module")
def address(demo: Path) -> Iterator[str]:
    with serving(demo) as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@dataclass
class Watch:
    """What pages said and asked for. expected: parts of messages that a test brings about itself."""

    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()

    def check(self) -> None:
        """Nothing was said that was not to be expected, nobody else was asked."""
        assert [text for text in self.said if not any(part in text for part in self.expected)] == []
        hosts = {urlparse(own).hostname for own in self.asked if urlparse(own).scheme not in ("data", "blob")}
        assert hosts <= {"127.0.0.1"}


@pytest.fixture
def opened(chromium: Any) -> Iterator[Callable[..., Page]]:
    """Opens pages, and checks in the end what they said and asked for."""
    watch, contexts = Watch(), []

    def open_page(
        address: str, size: tuple[int, int] = LAPTOP, *, expected: tuple[str, ...] = (), **options: Any
    ) -> Page:
        watch.expected += expected
        is_phone = size == PHONE
        context = chromium.new_context(
            viewport={"width": size[0], "height": size[1]}, has_touch=is_phone, is_mobile=is_phone, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: watch.said.append(message.text))
        page.on("pageerror", lambda error: watch.said.append(str(error)))
        page.on("request", lambda request: watch.asked.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    watch.check()


def settled(page: Page) -> None:
    """Wait until matches of all points are there, and the address says what is seen."""
    page.wait_for_function(
        """() => {
            const points = document.querySelectorAll('.source .pin').length;
            const panels = [...document.querySelectorAll('.panel')];
            return points > 0 && panels.length > 0 && panels.every((panel) =>
                !panel.classList.contains('waiting') && panel.querySelectorAll('tbody tr').length === points);
        }"""
    )
    page.wait_for_timeout(300)


def figures(page: Page, panel: int = 0) -> list[str]:
    """The rows of a panel's table."""
    rows = page.locator(".panel").nth(panel).locator("tbody tr")
    cells = rows.evaluate_all("(all) => all.map((row) => [...row.cells].map((cell) => cell.textContent).join(' '))")
    return [" ".join(text.split()) for text in cells]


def seen(page: Page) -> dict[str, list[str]]:
    """What the address says."""
    return parse_qs(urlparse(page.url).fragment)


def points(page: Page) -> list[tuple[float, float]]:
    """Those in A, as the address has them."""
    return [(float(x), float(y)) for x, y in (text.split(",") for text in seen(page)["p"][0].split())]


def ask(page: Page, path: str, question: dict[str, Any] | None = None) -> Any:
    """What the server answers to somebody with the page's token."""
    place = urlparse(page.url)
    headers = {"X-Dualsd-Token": parse_qs(place.query)["token"][0], "Content-Type": "application/json"}
    body = None if question is None else json.dumps(question).encode()
    with urlopen(Request(f"http://{place.netloc}/api/{path}", body, headers)) as answer:
        return json.load(answer)


def expected_figures(page: Page, panel: int = 0) -> list[str]:
    """The beginnings of a table's rows by what the server says of the view in the address."""
    said = seen(page)
    rows = {image["id"]: image["row"] for image in ask(page, "state")["images"]}
    question = {"source": rows[said["a"][0]], "target": rows[said["b"][0]], "points": points(page)}
    found = ask(page, "match", {**question, "setting": json.loads(said["s"][panel])})
    columns = zip(found["points"], found["scores"], found["margins"], strict=True)
    return [f"{i + 1} {x:.0f}, {y:.0f} {score:.3f} {margin:.3f}" for i, ((x, y), score, margin) in enumerate(columns)]


def alike(shown: list[str], expected: list[str]) -> bool:
    """Whether rows begin as expected, but for how halves are rounded."""
    numbers = [[list(map(float, re.findall(r"-?\d+\.?\d*", row)[:5])) for row in rows] for rows in (shown, expected)]
    apart = np.abs(np.subtract(*numbers))
    return bool((apart[:, :3] <= 1).all() and (apart[:, 3:] <= 0.0011).all())


def press(page: Page, x: float, y: float) -> None:
    """Click at a share of A."""
    box = page.locator(".source .frame").bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def choose_run(page: Page, words: str) -> None:
    """Look through the newest kept run whose label has these words."""
    page.locator("#mode-runs").click()
    runs = page.get_by_label("Run", exact=True)
    runs.wait_for()
    labels = runs.locator("option").all_text_contents()
    runs.select_option(index=next(place for place, label in enumerate(labels) if words in label))


def picture(page: Page, name: str, size: tuple[int, int]) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"workbench-{name}-{size[0]}.png", full_page=size == PHONE)


@WIDTHS
def test_choose_click_drag_slide_compare_reload(
    opened: Callable[..., Page], address: str, size: tuple[int, int]
) -> None:
    page = opened(address, size, color_scheme="dark" if size == DESK else "light")
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    colour = "rgb(20, 22, 26)" if size == DESK else "rgb(251, 251, 250)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == colour
    picture(page, "first", size)

    for letter, image in (("a", "car/val0001"), ("b", "car/val0003")):
        page.locator(f"#pick-{letter} .name").click()
        page.locator("#picker-category").select_option("car")
        page.locator("#picker-search").fill(image.split("/")[1])
        page.locator(".choice").click()
    settled(page)
    assert (seen(page)["a"], seen(page)["b"]) == (["car/val0001"], ["car/val0003"])
    assert len(points(page)) > 1, "it begins with keypoints of the pair"
    assert all("α" in row for row in figures(page)), "whose truth is known"

    press(page, 0.4, 0.55)
    settled(page)
    assert np.allclose(points(page)[0], (0.4 * 128 - 0.5, 0.55 * 128 - 0.5), atol=0.5)
    assert alike(figures(page), expected_figures(page))

    box = page.locator(".source .frame").bounding_box()
    place = [(box["x"] + 0.4 * box["width"], box["y"] + 0.55 * box["height"])]
    page.mouse.move(*place[0])
    page.mouse.down()
    matched = set()
    for step in range(1, 13):
        page.mouse.move(place[0][0] + step * box["width"] / 40, place[0][1] - step * box["height"] / 60)
        page.wait_for_timeout(60)
        matched.add(figures(page)[0])
    page.mouse.up()
    settled(page)
    assert len(matched) > 4, "matches follow while the point is dragged"
    assert np.allclose(points(page)[0], (0.7 * 128 - 0.5, 0.35 * 128 - 0.5), atol=0.5)
    assert alike(figures(page), expected_figures(page))

    slider = page.locator(".panel").first.locator("input[name=t-3]")
    before = figures(page)
    slider.focus()
    slider.press("Home")
    slider.press("ArrowRight")
    settled(page)
    assert slider.get_attribute("aria-valuetext") == "t 200"
    assert [layer["t"] for layer in json.loads(seen(page)["s"][0])["layers"]] == [400, 200]
    assert figures(page) != before
    assert alike(figures(page), expected_figures(page))
    angle = page.locator(".panel").first.locator("input[name=angle]")
    angle.focus()
    angle.press("Home")
    settled(page)
    assert json.loads(seen(page)["s"][0])["weights"] == [1, 0]
    assert alike(figures(page), expected_figures(page))

    page.locator("#compare").click()
    settled(page)
    assert figures(page, 1) == figures(page, 0)
    second = page.locator(".panel").nth(1)
    second.locator("select[name=readout]").select_option("softmax")
    second.locator("input[name=beta]").focus()
    second.locator("input[name=beta]").press("End")
    second.locator("select[name=geometry]").select_option("half-pixel")
    second.locator("select[name=upsample]").select_option("2")
    settled(page)
    assert figures(page, 1) != figures(page, 0)
    for panel in (0, 1):
        assert alike(figures(page, panel), expected_figures(page, panel))
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    picture(page, "compare", size)

    shown, url = [figures(page, panel) for panel in (0, 1)], page.url
    page.reload()
    settled(page)
    assert [figures(page, panel) for panel in (0, 1)] == shown
    assert page.url == url


def test_keyboard(opened: Callable[..., Page], address: str) -> None:
    page = opened(address)
    settled(page)
    count = len(points(page))
    pin = page.locator(".source .pin[tabindex='0']")
    pin.focus()
    x, y = points(page)[0]
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowDown"):
        page.keyboard.press(key)
    settled(page)
    assert np.allclose(points(page)[0], (min(x + 2, 127), min(max(y - 1, 0) + 10, 127)), atol=0.02)
    assert page.evaluate("document.activeElement.getAttribute('data-name')") == "point 0"
    page.keyboard.press("2")
    page.keyboard.press("Delete")
    settled(page)
    assert len(points(page)) == count - 1
    page.keyboard.press("n")
    settled(page)
    assert points(page)[-1] == (64, 64)
    assert seen(page)["n"] == [str(count)]
    ends = seen(page)["a"][0], seen(page)["b"][0]
    page.keyboard.press("x")
    settled(page)
    assert (seen(page)["b"][0], seen(page)["a"][0]) == ends
    page.keyboard.press("b")
    settled(page)
    assert seen(page)["b"][0] not in ends[:1]
    page.keyboard.press("c")
    settled(page)
    assert page.locator(".panel").count() == 2
    page.keyboard.press("c")
    page.keyboard.press("h")
    settled(page)
    assert page.locator(".panel .frame.heated").count() == 0
    page.keyboard.press("?")
    assert page.locator("#keys-dialog").is_visible()
    page.keyboard.press("Escape")
    focused = "document.activeElement.id || document.activeElement.name || document.activeElement.dataset.name"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(focused))
    assert reached >= {"swap", "compare", "command", "t-2", "t-3", "angle", "readout", "theme", "keys"}
    assert any(str(name).startswith("point") for name in reached), "one of the points: digits and arrows do the rest"


def test_everything_has_a_name_for_screen_readers(opened: Callable[..., Page], address: str) -> None:
    page = opened(address)
    settled(page)
    page.locator("#compare").click()
    choose_run(page, "evaluation on")
    page.locator(".pair").first.wait_for()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, canvas, img, [role=button], svg, dialog')]
            .filter((one) => !one.closest('[aria-hidden=true], [hidden]'))
            .filter((one) => !(one.getAttribute('aria-label') || one.getAttribute('aria-labelledby') ||
                one.textContent.trim() || one.getAttribute('alt') !== null || one.closest('label')))
            .map((one) => one.outerHTML)"""
    )
    assert nameless == []
    page.wait_for_function("() => document.getElementById('spoken').textContent.startsWith('Point 1: match at')")
    assert page.locator("#status").get_attribute("role") == "status"


def test_light_and_dark_by_a_switch(opened: Callable[..., Page], address: str) -> None:
    page = opened(address, color_scheme="light")
    page.wait_for_function("() => document.documentElement.dataset.theme === 'auto'")
    grounds = []
    for _ in range(3):
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.locator("#theme").click()
    assert grounds == ["rgb(251, 251, 250)", "rgb(251, 251, 250)", "rgb(20, 22, 26)"]
    page.locator("#theme").click()
    page.locator("#theme").click()
    page.reload()
    page.wait_for_function("() => document.documentElement.dataset.theme === 'dark'")


def test_save_pictures_and_copy_the_command(opened: Callable[..., Page], address: str, tmp_path: Path) -> None:
    page = opened(address, permissions=["clipboard-read", "clipboard-write"])
    settled(page)
    page.locator("#compare").click()
    settled(page)
    for form in ("svg", "png"):
        with page.expect_download() as download:
            page.locator(f"#save-{form}").click()
        download.value.save_as(tmp_path / f"saved.{form}")
    tree = ElementTree.parse(tmp_path / "saved.svg")
    links = [value for one in tree.iter() for name, value in one.attrib.items() if name.endswith("href")]
    assert len(links) == 5, "three images, two maps"
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "car" in "".join(tree.getroot().itertext()) or "bird" in "".join(tree.getroot().itertext())
    with Image.open(tmp_path / "saved.png") as saved:
        assert saved.width == 3 * 640 + 4 * 24
        colours = np.asarray(saved.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours[::97], axis=0)) > 500, "photographs, not an empty page"
    ARTEFACTS.mkdir(exist_ok=True)
    for form in ("svg", "png"):
        (ARTEFACTS / f"workbench-saved.{form}").write_bytes((tmp_path / f"saved.{form}").read_bytes())
    page.locator("#command").click()
    page.locator("#command-dialog").wait_for()
    line = page.locator("#command-line").text_content()
    assert line.startswith("dualsd match ")
    page.wait_for_function("() => document.getElementById('command-copied').textContent.includes('clipboard')")
    assert page.evaluate("navigator.clipboard.readText()") == line


@WIDTHS
def test_runs_worst_pairs_first(opened: Callable[..., Page], address: str, size: tuple[int, int]) -> None:
    page = opened(address, size)
    settled(page)
    choose_run(page, "evaluation on")
    page.locator(".pair").first.wait_for()
    shares = [int(text.split()[0]) for text in page.locator(".pair .figure").all_text_contents()]
    assert len(shares) > 20
    assert shares == sorted(shares)
    page.locator(".runs select[name=category]").select_option("fish")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.pair .names')].every((one) => one.textContent.startsWith('fish'))"
    )
    page.locator(".runs select[name=kind]").select_option("mirrored")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.pair .why')].every((one) => one.textContent.includes('mirrored'))"
    )
    page.locator(".runs select[name=kind]").select_option("elsewhere")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.pair .why')].every((one) => one.textContent.includes('elsewhere'))"
    )
    page.locator(".pair").nth(1).click()
    settled(page)
    listed = page.locator(".pair").nth(1).get_attribute("title").split(" → ")
    assert [seen(page)["a"][0], seen(page)["b"][0]] == listed
    assert page.locator(".pair[aria-current=true]").count() == 1
    judged = page.locator(".pair").nth(1).locator(".why").text_content()
    page.get_by_role("button", name="Use its setting").click()
    settled(page)
    right, of = map(int, re.findall(r"(\d+) of (\d+) right", judged)[0])
    rows = figures(page)
    assert len(rows) == of
    assert sum(row.rsplit(" ", 3)[-3] == "✓" for row in rows) == right, "the page judges as the evaluation did"
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    picture(page, "runs", size)


@WIDTHS
def test_cells_of_a_grid(opened: Callable[..., Page], address: str, size: tuple[int, int]) -> None:
    page = opened(address, size)
    settled(page)
    choose_run(page, "grid on")
    page.locator(".cells button").first.wait_for()
    assert page.locator(".cells button").count() == 9
    values = [int(text) for text in page.locator(".cells button").all_text_contents()]
    assert page.locator(".cells button[aria-pressed=true]").text_content() == str(max(values))
    page.locator(".cells button").nth(int(np.argmin(values))).click()
    page.locator(".runs h3").first.wait_for()
    assert [text.split()[0] for text in page.locator(".runs h3").all_text_contents()] == ["Wins", "Loses"]
    leads = page.locator(".pair .figure").all_text_contents()
    assert leads[0].startswith("+")
    assert leads[-1].startswith("−")
    page.locator(".pair").first.click()
    settled(page)
    page.wait_for_function("() => document.querySelectorAll('.panel').length === 2")
    settled(page)
    rights = [sum(row.rsplit(" ", 3)[-3] == "✓" for row in figures(page, panel)) for panel in (0, 1)]
    assert rights[0] > rights[1], "the cell wins this pair"
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    picture(page, "grid", size)


def test_a_file_is_matched(opened: Callable[..., Page], address: str, tmp_path: Path) -> None:
    with Image.open(FOLDER / "car" / "test0002.webp") as own:
        own.convert("RGB").resize((300, 200)).save(tmp_path / "mine.png")
    page = opened(address, expected=("400",))
    settled(page)
    page.locator("#pick-b .name").click()
    page.locator("#picker-file").set_input_files(tmp_path / "mine.png")
    page.wait_for_function("() => document.querySelector('#pick-b .name').textContent.startsWith('upload')")
    page.wait_for_function("() => document.querySelectorAll('.panel tbody tr').length > 0", timeout=120_000)
    assert page.locator(".panel .frame").evaluate("(one) => one.clientWidth / one.clientHeight") == pytest.approx(
        1.5, abs=0.01
    )
    (tmp_path / "no.png").write_bytes(b"no picture")
    page.locator("#pick-b .name").click()
    page.locator("#picker-file").set_input_files(tmp_path / "no.png")
    page.locator("#status.error").wait_for()


def own_photographs(folder: Path, names: tuple[str, ...]) -> Path:
    """A store of one's own photographs, of a category of a name each, with maps, without a keypoint."""
    for category in names:
        (folder / "photographs" / category).mkdir(parents=True)
        for number in range(3):
            with Image.open(FOLDER / "fish" / f"test{number:04d}.webp") as own:
                own.convert("RGB").resize((256, 192)).save(folder / "photographs" / category / f"{number}.png")
    dualsd(folder, "cache", "build", "--dataset", "folder", "--root", "photographs", "--model", "demo")
    dualsd(folder, "cache", "maps", "--layers", "2,3", "--t", "400,100", "--ensemble", "1")
    return folder


def keypoints_of(folder: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """What a folder's keypoints.csv says."""
    with (folder / "photographs" / "keypoints.csv").open(newline="", encoding="utf-8") as file:
        return {(row["image"], row["name"]): (float(row["x"]), float(row["y"])) for row in csv.DictReader(file)}


def test_annotate_and_save(opened: Callable[..., Page], tmp_path: Path) -> None:
    folder = own_photographs(tmp_path, ("fish",))
    with serving(folder) as address:
        page = opened(address)
        page.locator("#mode-annotate").click()
        for name, (x, y) in {"eye, left": (0.25, 0.5), "tail": (0.75, 0.25)}.items():
            page.get_by_label("Name of a new keypoint").fill(name)
            page.get_by_role("button", name="Add a name").click()
            box = page.locator("#annotate .frame.touched").bounding_box()
            page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
            page.wait_for_function("() => document.getElementById('status').textContent.startsWith('Saved')")
            page.evaluate("document.getElementById('status').textContent = ''")
        found = keypoints_of(folder)
        assert {name for _, name in found} == {"eye, left", "tail"}
        assert {image for image, _ in found} <= {"fish/0", "fish/0.png"}
        assert np.allclose(sorted(found.values()), [(63.5, 95.5), (191.5, 47.5)], atol=0.6)
        picture(page, "annotate", LAPTOP)

        page.get_by_role("button", name="Next image", exact=True).last.click()
        page.wait_for_function("() => document.querySelectorAll('#annotate .frame.touched .pin').length === 2")
        assert len(keypoints_of(folder)) == 2, "proposals are not kept by themselves"
        tail = page.locator("#annotate .pin[data-name='tail']")
        shown = tail.get_attribute("aria-label")
        assert "proposed" in shown
        picture(page, "proposals", LAPTOP)
        start = tail.locator("path").last.bounding_box()
        begin = start["x"] + start["width"] / 2, start["y"] + start["height"] / 3
        page.mouse.move(*begin)
        page.mouse.down()
        page.mouse.move(begin[0] - 30, begin[1] + 12, steps=4)
        page.mouse.up()
        page.wait_for_function("() => document.getElementById('status').textContent.startsWith('Saved')")
        assert len(keypoints_of(folder)) == 3
        page.evaluate("document.getElementById('status').textContent = ''; document.activeElement.blur()")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.getElementById('status').textContent.startsWith('Saved')")
        found = keypoints_of(folder)
        assert len(found) == 4

        page.reload()
        page.locator("#mode-annotate").click()
        page.locator("#annotate .pin").first.wait_for()
        page.keyboard.press("2")
        page.keyboard.press("Delete")
        page.wait_for_function("() => document.getElementById('status').textContent.startsWith('Saved')")
        assert len(keypoints_of(folder)) == 3

        page.locator("#mode-match").click()
        page.locator(".source .dot").first.wait_for(state="attached")
        page.keyboard.press("k")
        settled(page)
        assert any("α" in row for row in figures(page)), "what was marked is the truth of the pair"


def test_names_that_are_markup_do_not_run(opened: Callable[..., Page], tmp_path: Path) -> None:
    name = "<img src=x onerror='document.title=1'><script>document.title=2<|script>"
    folder = own_photographs(tmp_path, (name,))
    with serving(folder) as address:
        page = opened(address)
        settled(page)
        assert page.locator("#pick-a .name").text_content() == f"{name}/0"
        page.locator("#pick-a .name").click()
        assert page.locator(".choice").count() == 3
        page.keyboard.press("Escape")
        page.locator("#mode-annotate").click()
        page.get_by_label("Name of a new keypoint").fill(name)
        page.get_by_role("button", name="Add a name").click()
        assert page.locator(".which").text_content() == name
        assert page.title() == "dualsd view"
        assert page.locator("main img").count() == page.locator("main .frame img").count()


def test_what_goes_wrong_is_said(opened: Callable[..., Page], demo: Path) -> None:
    expected = ("403", "Failed to load resource", "ERR_CONNECTION_REFUSED")
    with serving(demo) as address:
        page = opened(address, expected=expected)
        settled(page)
        other = opened(address.split("?")[0], expected=expected)
        assert "token" in other.content()
        strange = json.dumps({"layers": [{"layer": "7", "t": 3, "extractor": "x"}], "weights": ["y"], "readout": "<b>"})
        broken = opened(f"{address}#a=car/val0001&b=car/val0002&p=1,2&s={strange}", expected=(*expected, "400"))
        broken.locator("#status.error").wait_for()
        broken.locator(".panel select[name=readout]").first.select_option("nn")
        settled(broken)
        assert broken.locator("#status").text_content() == ""
    press(page, 0.5, 0.5)
    page.locator("#status.error").wait_for()
    assert "does not answer" in page.locator("#status").text_content()
