"""The studio as somebody uses it, in headless Chromium: a PDF dropped, a run started and watched
through a restart of the studio, a row edited and the run gone on with it, results, a chat, a blind
vote, downloads; a run that fails, mended to its end. Every page is read by axe, the checker of
accessibility."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from studio_runs import make_span_run

from potstill.core.claims import holder
from potstill.sample import sample_path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PATIENCE = 3_000_000  # milliseconds: a whole run, on a machine that does other things too
NOTES = sample_path("handbook.md").read_text("utf-8")[:6000]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore"),  # of the browser's driver
    pytest.mark.skipif(not CHROMIUM, reason="a machine with Debian's chromium runs it, as CI is"),
]


class Opened:
    """`potstill studio` as a process, which can be started again at the same port."""

    def __init__(self, project: Path) -> None:
        self.project, self.port = project, "0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "potstill", "studio", "--no-browser"]
        command += ["--port", self.port, "--project", str(self.project)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        found = re.search(r"http://\S+", self.process.stderr.readline())
        assert found
        self.address = found[0]
        self.base = self.address.partition("/?")[0]
        self.port = self.base.rpartition(":")[2]

    def kill(self) -> None:
        self.process.kill()
        self._ended()

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self._ended()

    def _ended(self) -> None:
        self.process.wait(20)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="an environment with the extra dev runs it, as CI's is"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    project = tmp_path / "project"
    project.mkdir()
    studio = Opened(project)
    yield studio
    studio.close()
    for folder in (project / "runs").glob("*"):
        process = holder(folder)
        if process is not None:
            os.kill(process, signal.SIGKILL)


def page_of(chromium: Any, studio: Opened, size: dict[str, int] = WIDE) -> tuple[Any, list[str]]:
    """A new browser's page that was let in, and what its console complains of."""
    page = chromium.new_context(viewport=size, accept_downloads=True).new_page()
    complaints: list[str] = []
    page.on("console", lambda one: complaints.append(one.text) if one.type == "error" else None)
    page.on("pageerror", lambda one: complaints.append(str(one)))
    page.set_default_timeout(60_000)
    page.goto(studio.address)
    return page, complaints


def write_recipe(page: Any, recipe: dict[str, Any]) -> None:
    """Type a recipe as text; the form follows it."""
    page.locator("#as-text").evaluate("one => one.open = true")
    page.fill("#yaml", yaml.safe_dump(recipe, sort_keys=False))
    name = recipe["name"]
    page.locator(f'#f-name[value="{name}"]').wait_for()


def small_of(recipe: dict[str, Any], source: str) -> dict[str, Any]:
    """The small recipe about other files; of so small a model 4 bits leave too little."""
    export = recipe["export"] | {"max_examples": 2, "quantisations": ["q8_0"]}
    return recipe | {"ingest": recipe["ingest"] | {"sources": [source]}, "export": export}


def drop(page: Any, place: str, file: Path) -> None:
    """Drop a file onto a part of the page."""
    held = page.evaluate_handle(
        """([name, text]) => {
            const held = new DataTransfer();
            const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
            held.items.add(new File([bytes], name));
            return held;
        }""",
        [file.name, base64.b64encode(file.read_bytes()).decode()],
    )
    page.dispatch_event(place, "drop", {"dataTransfer": held})


def test_from_a_dropped_file_to_a_chat(
    chromium: Any, opened: Opened, small_recipe: dict[str, Any]
) -> None:
    page, complaints = page_of(chromium, opened)
    page.get_by_role("link", name="Use my own files").click()
    page.get_by_text("Put files into the box above.").wait_for()
    assert page.locator("#go").is_disabled()

    drop(page, "#drop", sample_path("handbook.pdf"))
    page.locator("#files").get_by_text("documents/handbook.pdf").wait_for()
    page.locator("#go:not([disabled])").wait_for()
    assert page.input_value("#f-ingest-sources") == "documents/handbook.pdf"
    page.locator("#plan").get_by_text("in all").wait_for()

    # The form changes the text, the text the form, and a mistake is said at its field.
    page.fill("#f-distill-epochs", "many")
    page.locator("#f-distill-epochs").press("Tab")
    page.locator('[data-mistake="distill.epochs"]').get_by_text("valid number").wait_for()
    page.fill("#f-distill-epochs", "2")
    page.locator("#f-distill-epochs").press("Tab")
    page.locator("#go:not([disabled])").wait_for()
    assert yaml.safe_load(page.input_value("#yaml"))["distill"]["epochs"] == 2

    small = small_of(small_recipe, "documents")
    write_recipe(page, small)
    page.locator("#go:not([disabled])").wait_for()
    page.locator("#go").click()
    page.wait_for_url("**/runs/small")

    page.locator("p.state.running").first.wait_for()
    other, _ = page_of(chromium, opened, NARROW)  # a second browser watches too
    other.goto(f"{opened.base}/runs/small")
    other.get_by_role("button", name="Stop").wait_for()
    opened.kill()  # the studio is gone; the run is not
    other.get_by_text("The studio does not answer.").wait_for()
    assert other.locator('[data-live="actions"]').evaluate("one => one.inert")
    opened.start()
    page, complaints = page_of(chromium, opened)
    page.goto(f"{opened.base}/runs/small")
    page.locator("p.state.finished").first.wait_for(timeout=PATIENCE)
    assert page.locator("svg.plot").count() >= 3

    look_through(page, opened.base, "small", "documents/handbook.pdf")
    # The browser notes by itself that a change of a row was refused; nothing else went wrong.
    assert [one for one in complaints if "404 (Not Found)" not in one] == []
    assert len(complaints) == 1


def look_through(page: Any, base: str, name: str, source: str) -> None:
    """All pages of a finished run: rows, a download, a chat; none is wider than a small screen."""
    page.get_by_role("link", name="Data", exact=True).click()
    edit_a_row(page)
    page.get_by_role("link", name="Results", exact=True).first.click()
    with page.expect_download() as waiting:
        page.get_by_role("link", name="report.json").click()
    assert json.loads(Path(waiting.value.path()).read_text())["run"] == name
    with page.expect_download() as waiting:
        page.get_by_role("link", name="student-q8_0.gguf").click()
    assert Path(waiting.value.path()).read_bytes()[:4] == b"GGUF"

    page.get_by_role("link", name="Chat", exact=True).click()
    page.wait_for_load_state("load")
    page.fill("#question", "Who is the station warden?")
    page.locator("#question").press("Enter")
    page.locator(".exchange .said").first.wait_for()
    page.locator("#ask:not([disabled])").wait_for(timeout=PATIENCE)
    assert "tokens" in page.locator(".exchange").inner_text()
    assert f"From {source}" in page.locator(".exchange").inner_text()

    vote_blindly(page)
    for path in ("/", "/new", f"/runs/{name}", f"/runs/{name}/data", f"/runs/{name}/results",
                 f"/runs/{name}/chat", f"/runs/{name}/service", "/compare", "/search"):  # fmt: skip
        page.goto(base + path)
        page.locator("#plan .busy, #plan.busy").wait_for(state="detached")
        check_access(page, path)
        page.set_viewport_size(NARROW)
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"], path
        page.keyboard.press("Tab")  # whoever has no mouse gets past the navigation first
        assert page.evaluate("document.activeElement.className") in ("skip", ""), path


def edit_a_row(page: Any) -> None:
    """A row opens with its passage, says in place what is wrong with a change, and takes it; the
    run goes on with it, from where it matters."""
    open_first_row(page)
    page.get_by_text("Set aside or change it").first.click()
    form = page.locator(".row-detail form[data-decide]").first
    form.get_by_label("Question").fill("")
    form.get_by_label("Answer").fill("")
    form.get_by_role("button", name="Save the change").click()
    form.locator(".problem").get_by_text("needs a question or an answer").wait_for()
    form.get_by_label("Answer").fill("the keeper")
    form.get_by_role("button", name="Save the change").click()
    page.get_by_text("changed by hand").first.wait_for()
    page.get_by_role("button", name="Run again with 1 decision").click()
    page.locator("p.state.running").first.wait_for()
    page.locator("p.state.finished").first.wait_for(timeout=PATIENCE)
    assert page.get_by_text("Nothing changed.").count() == 2  # ingest and generate are reused
    page.get_by_role("link", name="Data", exact=True).click()
    open_first_row(page)
    page.locator(".row-detail").get_by_text("the keeper").first.wait_for()


def open_first_row(page: Any) -> None:
    """Scripts listen once the page is loaded; a click before that would be lost."""
    page.wait_for_load_state("load")
    page.locator(".rows li > button").first.click()
    page.locator(".row-detail .passage").first.wait_for()


def vote_blindly(page: Any) -> None:
    """Two files of the student answer as A and B, are voted on and named; then the colours."""
    page.wait_for_load_state("load")
    page.locator("form.talk summary").click()
    boxes = page.locator('[name="model"]')
    assert boxes.count() >= 2
    for place in range(boxes.count()):
        boxes.nth(place).set_checked(place < 2)
    page.locator("#blind").check()
    page.fill("#question", "Where is the key?")
    page.locator("#question").press("Enter")
    page.get_by_role("button", name="A is better").wait_for(timeout=PATIENCE)
    shown = page.locator(".exchange").first
    assert ".gguf" not in shown.inner_text()
    page.get_by_role("button", name="A is better").click()
    shown.get_by_text("Your vote is kept.").wait_for()
    assert shown.inner_text().count(".gguf") == 2
    shown.get_by_role("button", name="Where it parts from its teacher").first.click()
    shown.locator(".legend, .problem").first.wait_for(timeout=PATIENCE)
    assert shown.locator(".problem").count() == 0, shown.inner_text()


def check_access(page: Any, path: str) -> None:
    """Nothing serious that axe finds. It is put into the page past the policy that keeps scripts
    out, in a world of its own."""
    axe = pytest.importorskip(
        "axe_playwright_python", reason="an environment with the extra dev runs it, as CI's is"
    )
    source = (Path(axe.__file__).parent / "axe.min.js").read_text("utf-8")
    page.evaluate(source)
    found = page.evaluate("axe.run()")["violations"]
    serious = [
        (one["id"], one["nodes"][0]["html"])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == [], path


COUNT = """addEventListener("click", (event) => {
    if (event.isTrusted) sessionStorage.clicks = 1 + Number(sessionStorage.clicks || 0);
}, true)"""
"""Counts a user's clicks; those of a script are none."""


def test_the_first_chat_is_one_drop_and_few_clicks_away(
    chromium: Any, opened: Opened, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    page, complaints = page_of(chromium, opened)
    page.add_init_script(COUNT)
    page.reload()
    notes = tmp_path / "notes.md"
    notes.write_text(NOTES, "utf-8")
    drop(page, "main", notes)
    page.wait_for_url("**/new?own=1")
    # What a newcomer is offered takes minutes; the same of a tiny teacher takes seconds.
    write_recipe(page, small_of(small_recipe, "documents"))
    page.locator("#go:not([disabled])").wait_for()
    page.get_by_role("button", name="Start").click()
    page.locator("p.state.finished").first.wait_for(timeout=PATIENCE)
    page.get_by_role("link", name="Chat with the student").click()
    page.wait_for_load_state("load")
    page.locator("#question").press_sequentially("Who is the station warden?")
    page.get_by_role("button", name="Ask").click()
    page.locator("#ask:not([disabled])").wait_for(timeout=PATIENCE)
    assert "tokens" in page.locator(".exchange").inner_text()
    assert int(page.evaluate("sessionStorage.clicks")) == 3
    assert complaints == []


def test_a_student_that_marks_answers_is_asked_on_its_page(chromium: Any, opened: Opened) -> None:
    make_span_run(opened.project)
    page, complaints = page_of(chromium, opened)
    page.goto(f"{opened.base}/runs/made/chat")
    page.wait_for_load_state("load")
    page.locator("#question").press("Enter")
    page.get_by_text("Write a question first.").wait_for()
    page.fill("#question", "who graded the kelp?")
    page.locator("#question").press("Enter")
    page.locator(".exchange .said").wait_for(timeout=PATIENCE)
    check_access(page, "a student that marks answers")
    page.set_viewport_size(NARROW)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    assert complaints == []


def test_a_run_that_cannot_begin_is_seen_and_mended(
    chromium: Any, opened: Opened, small_recipe: dict[str, Any]
) -> None:
    from playwright.sync_api import expect

    page, _ = page_of(chromium, opened)
    page.goto(f"{opened.base}/new")
    write_recipe(page, small_of(small_recipe, "nowhere.md"))
    page.locator("#plan").get_by_text("does not exist").wait_for()  # said before it is started
    expect(page.locator("#go")).to_be_disabled()
    expect(page.locator("#why")).to_have_text("The plan says what to mend first")
    source = opened.project / "nowhere.md"
    source.write_text(NOTES, "utf-8")
    page.get_by_role("button", name="Look again").click()
    expect(page.locator("#go")).to_be_enabled()
    source.unlink()  # after it was planned
    page.locator("#go").click()
    page.wait_for_url("**/runs/small")
    page.locator("p.state.failed").first.wait_for()
    page.locator(".problem").get_by_text("nowhere.md").first.wait_for()
    page.get_by_role("link", name="Duplicate with changes").click()
    page.locator('#f-name[value="small-2"]').wait_for()
    source.write_text(NOTES, "utf-8")
    page.locator("#f-distill-epochs").fill("3")
    page.locator("#f-distill-epochs").press("Tab")
    page.locator("#plan").get_by_text("in all").wait_for()
    expect(page.locator("#plan .problem")).to_have_count(0)
    page.locator("#go").click()
    page.wait_for_url("**/runs/small-2")
    page.locator("p.state.finished").first.wait_for(timeout=PATIENCE)


def test_what_is_done_before_the_script_has_come_is_not_lost(
    chromium: Any, opened: Opened, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    page, _ = page_of(chromium, opened)
    held: list[Any] = []
    page.route("**/static/recipe.js*", lambda route: held.append(route))
    page.goto(f"{opened.base}/new?from=quickstart&own=1", wait_until="commit")
    notes = tmp_path / "notes.md"
    notes.write_text("# Kelp\n\nThe kelp dries for nine hours.\n", "utf-8")
    page.set_input_files("#choose", notes)
    page.locator("#f-distill-epochs").fill("3")
    held[0].continue_()
    page.locator("#files").get_by_text("documents/notes.md").wait_for()
    for words in ("epochs: 3", "documents/notes.md"):  # in whichever order they are taken
        expect(page.locator("#yaml")).to_have_value(re.compile(re.escape(words)), timeout=60_000)


def test_a_file_dropped_on_the_first_page_begins_a_run_and_a_project_opens_beside(
    chromium: Any, opened: Opened, tmp_path: Path
) -> None:
    page, complaints = page_of(chromium, opened)
    page.get_by_text("None was opened yet").wait_for()
    notes = tmp_path / "Kelp notes.md"
    notes.write_text("# Kelp\n\nThe kelp dries for nine hours.\n", "utf-8")
    drop(page, "main", notes)
    page.wait_for_url("**/new?own=1")
    page.locator('#f-name[value="kelp-notes"]').wait_for()
    assert (opened.project / "documents" / "Kelp notes.md").is_file()
    page.locator("#plan").get_by_text("in all").wait_for()

    page.goto(opened.base)
    page.wait_for_load_state("load")
    page.get_by_text("New project").click()
    page.fill("#project-name", "tide tables")
    page.get_by_role("button", name="Make it").click()
    page.get_by_text("cannot be the name of a project").wait_for()
    page.fill("#project-name", "tide-tables")
    page.get_by_role("button", name="Make it").click()
    page.locator('#f-name[value="tide-tables"]').wait_for()
    assert page.url.partition("/new")[0] != opened.base  # a studio of its own
    page.get_by_role("link", name="Potstill tide-tables").click()
    page.wait_for_url(re.compile(r"/$"))
    page.wait_for_load_state("load")
    page.get_by_role("button", name="Open project").click()  # the one that it came from
    page.wait_for_url(f"{opened.base}/**")
    assert len(complaints) == 1  # the browser notes by itself that a name was refused


def test_a_closed_studio_and_an_old_address_are_said_in_words(
    chromium: Any, opened: Opened
) -> None:
    page, _ = page_of(chromium, opened)
    page.goto(f"{opened.base}/new")
    opened.kill()
    page.locator("#f-distill-epochs").fill("3")
    page.locator("#f-distill-epochs").press("Tab")
    page.get_by_text("The studio does not answer.").first.wait_for()
    opened.start()
    page.goto(opened.base)
    page.get_by_role("heading", name="The studio was started again").wait_for()
