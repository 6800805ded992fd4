"""Build the documentation's site, and llms.txt.

    python tools/make_site.py              build into site/; a warning or a dead link fails
    python tools/make_site.py --llms       write docs/llms.txt
    python tools/make_site.py --check      exit 1 if docs/llms.txt is not what the pages say

In: README.md, other pages of the root, and every Markdown file below docs/. A new page needs no
entry here: it appears in its folder's section under its own title. Out: static pages that load
nothing from elsewhere, formulas as MathML, each page's Markdown beside it. Runs none of the code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "docs"
SITE = ROOT / "site"
SECTIONS = {
    "Start": ["README.md", "docs/overview.md"],
    "Tutorial": ["docs/tutorial.md"],
    "How-to guides": ["docs/guides"],
    "Concepts": ["docs/concepts", "docs/glossary.md"],
    "Recipes": ["docs/recipes"],
    "Reference": ["docs/reference"],
    "Scaling": ["docs/scaling.md"],
    "Security": ["docs/security.md", "SECURITY.md"],
    "Comparison": ["docs/comparison.md"],
    "Decisions": ["docs/decisions"],
    "Experiments": ["docs/measured.md", "docs/experiments.md"],
    "Changelog": ["CHANGELOG.md"],
    "Contributing": ["CONTRIBUTING.md", "CODE_OF_CONDUCT.md"],
}
"""The order of the sections. What is not there is left out; what is not named comes at the end."""
FIRST = [
    "your-own-documents.md", "own-recipe.md", "your-own-rows.md", "studio.md", "serve.md",
    "how-a-run-works.md", "which-method.md", "generation.md", "curation.md", "teachers.md",
    "student.md", "distillation.md", "evaluation.md", "spans.md", "drift.md",
]  # fmt: skip
"""Within a folder these come first, in this order; the others follow by title."""
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^()\s]+)(\))")
FENCE = re.compile(r"^ *(```|~~~)")
OUTSIDE = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)="?((?:https?:)?//[^"\s>]+)""", re.I
)


def pages() -> list[Path]:
    """Every page, relative to the repository: the named ones of the root, and all of docs/."""
    named = [Path(one) for group in SECTIONS.values() for one in group if "/" not in one]
    found = [one.relative_to(ROOT) for one in sorted((ROOT / "docs").rglob("*.md"))]
    return [one for one in named if (ROOT / one).exists()] + found


def sections() -> dict[str, list[Path]]:
    """Section -> its pages in order. Every page is in one section."""
    left, result = pages(), {}
    for title, group in SECTIONS.items():
        chosen = [page for one in group for page in sorted(_below(one, left), key=_place)]
        result[title] = chosen
        left = [page for page in left if page not in chosen]
    for page in left:
        folder = page.parent.name
        title = "More" if folder == "docs" else folder.replace("-", " ").capitalize()
        result.setdefault(title, []).append(page)
    return {title: chosen for title, chosen in result.items() if chosen}


def _below(name: str, among: list[Path]) -> list[Path]:
    return [page for page in among if page == Path(name) or Path(name) in page.parents]


def _place(page: Path) -> tuple[int, str]:
    known = FIRST.index(page.name) if page.name in FIRST else len(FIRST)
    return known, page.name if page.name[:4].isdigit() else title_of(page).lower()


def title_of(page: Path) -> str:
    """The first heading, without marks."""
    for line in prose(read(page)):
        if line.startswith("# "):
            return re.sub(r"[`*]", "", line[2:]).strip()
    raise SystemExit(f"{page} has no heading '# …', which the navigation needs")


def summary_of(page: Path) -> str:
    """The first sentence of the first paragraph, as plain text."""
    paragraph: list[str] = []
    for line in prose(read(page)):
        if re.match(r"[#<|!>]|\s*$", line):
            if paragraph:
                break
        else:
            paragraph.append(line.strip())
    text = LINK.sub(lambda found: found[1][found[1].index("[") + 1 : -2], " ".join(paragraph))
    return re.split(r"(?<=[.:!?]) (?=[A-Z`\[])", text.replace("**", ""), maxsplit=1)[0].rstrip(":")


def read(page: Path) -> str:
    """The text of a page of the repository."""
    return (ROOT / page).read_text("utf-8")


def prose(text: str) -> Iterator[str]:
    """The lines outside of code blocks."""
    inside = False
    for line in text.splitlines():
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            yield line


def place_in_site(page: Path) -> Path:
    """Where a page stands in the site's folder of pages."""
    if page.parts[0] == "docs":
        return page.relative_to("docs")
    names = {"README.md": "index.md", "SECURITY.md": "reporting.md"}
    return Path(names.get(page.name, page.name.lower().replace("_", "-")))


def relinked(page: Path, text: str) -> str:
    """The text with links that hold in the site. A file that is no page is named, not linked."""
    here = place_in_site(page).parent
    known = set(pages())

    def one(found: re.Match[str]) -> str:
        target, _, anchor = found[2].partition("#")
        if not target or re.match(r"[a-z+]+:", target):
            return found[0]
        path = Path(os.path.normpath(page.parent / target))
        if not (ROOT / path).exists() or path.parts[0] == "..":
            raise SystemExit(f"{page}: {found[2]} leads nowhere")
        if (ROOT / path).is_dir():
            path /= "index.md"
        inside = path in known or path.parts[0] == "docs"
        if not inside:
            return f"{found[1][1:-2]} (`{path}`)"
        where = os.path.relpath(place_in_site(path), here)
        return found[1] + where + ("#" + anchor if anchor else "") + found[3]

    lines, inside = [], False
    for line in text.splitlines():
        if FENCE.match(line):
            inside = not inside
        lines.append(line if inside else LINK.sub(one, line))
    return "\n".join(lines) + "\n"


def stage() -> None:
    """Lay the pages, the lists of folders, the pictures and the configuration out."""
    shutil.rmtree(WORK, ignore_errors=True)
    target = WORK / "pages"
    for page in pages():
        place = target / place_in_site(page)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(relinked(page, read(page)), "utf-8")
    for other in sorted((ROOT / "docs").rglob("*")):
        if other.is_file() and other.suffix != ".md":
            place = target / other.relative_to(ROOT / "docs")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(other, place)
    shutil.copyfile(ROOT / "tools" / "site" / "site.css", target / "site.css")
    (target / "llms-full.txt").write_text(llms_full(), "utf-8")
    base = (ROOT / "tools" / "site" / "zensical.toml").read_text("utf-8")
    (WORK / "zensical.toml").write_text(base.replace("#NAVIGATION", _navigation(target)), "utf-8")


def _navigation(target: Path) -> str:
    """TOML of the navigation. A folder's section begins with a list of its pages."""
    entries = []
    for title, chosen in sections().items():
        if len(chosen) == 1:
            entries.append(f"  {{ {json.dumps(title)} = {json.dumps(_name(chosen[0]))} }},")
            continue
        inner = [f"{{ {json.dumps(title_of(one))} = {json.dumps(_name(one))} }}" for one in chosen]
        folder = place_in_site(chosen[0]).parent
        if folder != Path() and Path("docs") / folder / "index.md" not in chosen:
            lines = [f"# {title}", ""]
            for one in chosen:
                link = os.path.relpath(place_in_site(one), folder)
                lines.append(f"- [{title_of(one)}]({link}): {summary_of(one)}")
            (target / folder / "index.md").write_text("\n".join(lines) + "\n", "utf-8")
            inner.insert(0, json.dumps(f"{folder.as_posix()}/index.md"))
        entries.append(f"  {{ {json.dumps(title)} = [{', '.join(inner)}] }},")
    return "nav = [\n" + "\n".join(entries) + "\n]"


def _name(page: Path) -> str:
    return place_in_site(page).as_posix()


def llms() -> str:
    """llms.txt (llmstxt.org): what this is, and one line for each page."""
    lines = ["# Potstill", "", f"> {summary_of(Path('README.md'))}", ""]
    lines += ["Written by tools/make_site.py; links lead to the pages' Markdown.", ""]
    for title, chosen in sections().items():
        lines += [f"## {title}", ""]
        for one in chosen:
            lines.append(f"- [{title_of(one)}]({_name(one)}): {summary_of(one)}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def llms_full() -> str:
    """Every page in one text, in the navigation's order."""
    ordered = [page for chosen in sections().values() for page in chosen]
    return "\n\n".join(f"<!-- {_name(one)} -->\n\n{read(one).strip()}" for one in ordered) + "\n"


def formulas(html: str) -> str:
    """Formulas marked by arithmatex as MathML, which browsers draw by themselves."""
    from html import unescape

    from latex2mathml.converter import convert

    def one(found: re.Match[str]) -> str:
        text = unescape(found[2]).strip()
        display = "block" if text.startswith("\\[") else "inline"
        return convert(text[2:-2], display=display)

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', one, html, flags=re.S)


def build() -> None:
    """The whole site into SITE, replaced only once it is whole."""
    stage()
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=WORK, check=False)
    if done.returncode:
        raise SystemExit("The site was not built: see above.")
    outside = []
    for page in sorted((WORK / "site").rglob("*.html")):
        html = formulas(page.read_text("utf-8"))
        page.write_text(html, "utf-8")
        outside += [f"{page.name}: {found}" for found in OUTSIDE.findall(html)]
    if outside:
        raise SystemExit("Pages load from elsewhere: " + "; ".join(sorted(set(outside))))
    for page in sorted((WORK / "pages").rglob("*.md")):
        place = WORK / "site" / page.relative_to(WORK / "pages")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, place)
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(WORK / "site", SITE)
    print(f"{len(pages())} pages: {SITE / 'index.html'}", file=sys.stderr)


def main() -> int:
    """Build, write or check."""
    path = ROOT / "docs" / "llms.txt"
    if "--check" in sys.argv[1:]:
        if not path.exists() or path.read_text("utf-8") != llms():
            print(f"{path} is not what the pages say: run `make format`.", file=sys.stderr)
            return 1
    elif "--llms" in sys.argv[1:]:
        path.write_text(llms(), "utf-8")
    else:
        build()
    return 0


if __name__ == "__main__":
    sys.exit(main())
