"""Take the pictures of docs/pictures/: the studio over a project with a finished run, its report.

    python tools/make_pictures.py PROJECT [RUN] [--beside RUN] [--into FOLDER] [--only NAME …]

In: a project folder whose run (quickstart, unless named) is finished, and perhaps another one to
set beside it. Out: one PNG a page, light at 1280 pixels, dark at 1280, and light at 390; without
`--beside`, none of a comparison. The tests take them of a small run (tests/e2e). Needs Debian's
chromium and the package playwright. Starts no run; the chat's picture asks the student one
question, and where it parts from its teacher. The service's picture shows what `potstill serve`
kept beside the run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
QUESTION = "Who is the station warden?"
SIZES = {"wide": (1280, 860), "narrow": (390, 844)}
ELSEWHERE = """folder => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode())
        texts.currentNode.data = texts.currentNode.data
            .replaceAll(folder, "/home/you/my-handbook");
    document.querySelector(".brand span").textContent = "my-handbook";
}"""
"""Whose machine the pictures were taken on is no part of them."""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


PAGES = {
    "first": "/", "runs": "/", "new": "/new?from=quickstart", "run": "/runs/{run}",
    "data": "/runs/{run}/data", "edit": "/runs/{run}/data", "results": "/runs/{run}/results",
    "chat": "/runs/{run}/chat", "service": "/runs/{run}/service",
    "search": "/search?from=quickstart", "run-dark": "/runs/{run}",
    "new-narrow": "/new?from=quickstart",
    "compare": "/compare/page?run={beside}&run={run}",
}  # fmt: skip
"""Picture -> the page that it is of."""
OF_NOTHING = ("first", "new", "new-narrow")
"""Pictures of an empty project: in one with a run its plan would be to reuse all."""
REPORT = "report"


def main() -> None:
    """The pictures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", type=Path)
    parser.add_argument("run", nargs="?", default="quickstart")
    parser.add_argument("--beside", default="")
    parser.add_argument("--into", type=Path, default=FOLDER)
    parser.add_argument("--only", nargs="+", choices=(REPORT, *PAGES), default=(REPORT, *PAGES))
    options = parser.parse_args()
    project: Path = options.project
    into: Path = options.into
    into.mkdir(parents=True, exist_ok=True)
    if REPORT in options.only:
        take_report(project / "runs" / options.run / "report.html", into)
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as scratch:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        empty = Path(scratch) / "my-handbook"
        empty.mkdir()
        for name in (one for one in PAGES if one in options.only):
            if name == "compare" and not options.beside:
                continue
            own = empty if name in OF_NOTHING else project
            with Studio(own, Path(scratch) / "state") as studio:
                path = PAGES[name].format(run=options.run, beside=options.beside)
                scheme = "dark" if name.endswith("-dark") else "light"
                size = "narrow" if name.endswith("-narrow") else "wide"
                picture = into / f"studio-{name}.png"
                take(browser, studio, picture, name, path, scheme, size)
            shutil.rmtree(Path(scratch) / "state", ignore_errors=True)  # each has no other project
        browser.close()


class Studio:
    """`potstill studio` over a project, while the block runs."""

    def __init__(self, project: Path, state: Path) -> None:
        self.project = project.resolve()
        command = [sys.executable, "-m", "potstill", "studio", "--no-browser", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--project", str(project)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"XDG_STATE_HOME": str(state)},  # no projects of whoever takes them
        )

    def __enter__(self) -> Studio:
        assert self.process.stderr is not None
        found = re.search(r"http://\S+", self.process.stderr.readline())
        assert found
        self.address = found[0]
        return self

    def __exit__(self, *problem: object) -> None:
        self.process.terminate()
        self.process.wait()


def take_report(page_of_run: Path, into: Path) -> None:
    """The top of a run's report, which is a file and needs no studio."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        context = browser.new_context(viewport={"width": 740, "height": 840}, color_scheme="light")
        page = context.new_page()
        page.goto(page_of_run.resolve().as_uri())
        page.screenshot(path=into / "report.png")
        browser.close()


def take(
    browser: Any, studio: Studio, picture: Path, name: str, path: str, scheme: str, size: str
) -> None:
    """One picture of the page `name`, once it has settled."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(studio.address)
    page.goto(studio.address.partition("/?")[0] + path)
    if name.startswith("new"):
        page.locator("#plan").get_by_text("in all").wait_for(timeout=120_000)
    if name in ("data", "edit"):
        page.locator(".rows button").nth(1).click()
        page.locator(".row-detail .passage").first.wait_for()
        sheet = page.locator("img.sheet").first  # of a PDF; other documents have no pages
        if sheet.count():
            sheet.scroll_into_view_if_needed()
            sheet.evaluate("one => one.complete || new Promise(done => { one.onload = done; })")
            sheet.scroll_into_view_if_needed()
    if name == "edit":
        page.get_by_text("Set aside or change it").first.click()
        page.get_by_role("button", name="Save the change").scroll_into_view_if_needed()
    if name == "chat":
        page.fill("#question", QUESTION)
        page.locator("#ask").click()
        page.locator("#ask[disabled]").wait_for()
        page.locator("#ask:not([disabled])").wait_for(timeout=600_000)
        page.get_by_role("button", name="Where it parts from its teacher").click()
        page.locator(".legend").wait_for(timeout=600_000)
        page.locator(".legend").scroll_into_view_if_needed()
    if name != "compare":  # a page of its own, without the studio's head
        page.evaluate(ELSEWHERE, str(studio.project))
    page.screenshot(path=picture)
    context.close()


if __name__ == "__main__":
    main()
