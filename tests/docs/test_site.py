"""`make docs`: the site is built without a warning, and nothing in it is fetched from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT

FETCHED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"'](?:https?:)?//[^>]*>")


def test_the_site(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site is built with the extra docs")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in DOCS.glob("*.md"):
        made = (site / f"{page.stem}.html").read_text(encoding="utf-8")
        assert not FETCHED.findall(made.replace('<link rel="canonical"', "")), page.name
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles
    assert not [found for style in styles for found in re.findall(r"url\((?!data:)[\"']?(?:https?:)?//[^)]*\)", style)]
    method = (site / "method.html").read_text(encoding="utf-8")
    assert method.count('<math display="block"') == (DOCS / "method.md").read_text(encoding="utf-8").count("$$") // 2
    assert "$" not in re.sub(r"<(script|style)\b.*?</\1>", "", method, flags=re.DOTALL)
    api = (site / "api.html").read_text(encoding="utf-8")
    for name in ("matcher.match.match_points", "featstore.store.store.open_store", "featstore.tuning.loss.gaussian"):
        assert f'id="{name}"' in api
