"""Latency of the workbench in a browser: from a click, or a step of a slider, to the picture that shows its match.

Run: `python -m benchmarks.view_page [--store demo.zarr] [--steps 50]`. Needs Chromium. Without `--store` a store of
synthetic maps of SD 2-1's shapes is written first. The page itself takes the time, from the event to the frame behind
the one that it is drawn in (`performance.measure`), with the heat map on and five points or one.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from playwright.sync_api import sync_playwright

from benchmarks.view import write_synthetic
from tests.cli.browser import find_browser

TIMES = "() => performance.getEntriesByType('measure').map((one) => one.duration)"
IS_IDLE = "(count) => performance.getEntriesByType('measure').length >= count"


def measure(address: str, steps: int) -> dict[str, list[float]]:
    """Milliseconds of each kind of step."""
    random = np.random.default_rng(0)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 844})
        page.goto(address)
        page.wait_for_selector(".panel tbody tr")
        page.wait_for_timeout(1000)
        area = page.locator(".source .frame").bounding_box()
        assert area is not None

        def times(act: Any) -> list[float]:
            page.evaluate("() => performance.clearMeasures()")
            for step in range(steps):
                act(step)
                page.wait_for_function(IS_IDLE, arg=step + 1, polling=5)
            found: list[float] = page.evaluate(TIMES)
            return found

        def click(_: int) -> None:
            x, y = random.uniform(0.05, 0.95, 2)
            page.mouse.click(area["x"] + x * area["width"], area["y"] + y * area["height"])

        def slide(name: str) -> Any:
            slider = page.locator(f".panel input[name='{name}']")
            places = int(slider.get_attribute("max") or 0)

            def step(at: int) -> None:
                slider.focus()
                is_up = at // places % 2 == 0
                slider.press("ArrowRight" if is_up else "ArrowLeft")

            slider.press("Home")
            page.wait_for_timeout(500)
            return step

        found = {"click": times(click)}
        layers = page.eval_on_selector_all(".panel input[name^='t-']", "(all) => all.map((one) => one.name)")
        for name in (*layers, "angle"):
            found[name] = times(slide(name))
        browser.close()
    return found


def main(
    store: Annotated[Path | None, typer.Option(help="A store with maps.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of each kind.")] = 50,
) -> None:
    """Measure, and print a row per kind of step."""
    with tempfile.TemporaryDirectory() as folder:
        if store is None:
            store = Path(folder) / "synthetic.zarr"
            write_synthetic(store, 6)
        command = [sys.executable, "-m", "dualsd", "view", "--no-open", "--store", str(store)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            address = next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line)))
            for name, values in measure(address, steps).items():
                median, most = np.median(values), np.quantile(values, 0.95)
                typer.echo(f"{name:12} median {median:6.1f} ms   p95 {most:6.1f} ms   of {len(values)}")
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    typer.run(main)
