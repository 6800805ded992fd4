"""A web page gives what a reader of it would read, in order."""

# ruff: noqa: RUF001 - other alphabets are the point here
from __future__ import annotations

from pathlib import Path

import pytest

from potstill.ingest.content import UnusableError
from potstill.ingest.html import page_text, read_html


def blocks(markup: str) -> list[str]:
    return page_text(markup.encode())[1]


def test_paragraphs_headings_and_inline_marks() -> None:
    title, found = page_text(
        b"<html><head><title> The  still </title><style>p{}</style></head><body><h2>Parts</h2>"
        b"<p>The <b>pot</b> is<br>made of\n copper.</p>Loose words.<div>In a <span>box</span></div>"
    )
    assert title == "The still"
    assert found == ["Parts", "The pot is made of copper.", "Loose words.", "In a box"]


def test_what_stands_around_the_text_is_left_out() -> None:
    found = blocks(
        "<body><nav>Home</nav><div role=navigation>Menu</div><script>x()</script>"
        "<p hidden>a</p><p style='display : none'>b</p><p aria-hidden=true>c</p><!-- d -->"
        "<noscript>e</noscript><form><label>f</label><input value=g></form><template>h</template>"
        "<p>Kept<svg><text>i</text></svg>.</p><footer>Imprint</footer>"
    )
    assert found == ["Kept."]


def test_an_articles_own_footer_is_part_of_it() -> None:
    assert blocks("<article><p>Text.</p><footer>By Maud.</footer></article>") == [
        "Text.",
        "By Maud.",
    ]


@pytest.mark.parametrize("mark", ["<main>{}</main>", "<div role=main>{}</div>"])
def test_only_the_main_part_is_read_where_it_is_marked(mark: str) -> None:
    assert blocks("<div>Buy now</div>" + mark.format("<p>The text.</p>")) == ["The text."]


def test_lists_keep_their_shape() -> None:
    (found,) = blocks(
        "<ol start=3><li>fill<ul><li>slowly<li>to the mark</ul>then wait<li>heat</ol>"
    )
    assert found == "3. fill then wait\n  - slowly\n  - to the mark\n4. heat"


def test_tables_are_rows_of_cells() -> None:
    (found,) = blocks(
        "<table><caption>Alarms</caption><thead><tr><th>Code<th>Meaning</thead>"
        "<tr><td>H12<td><p>low</p><p>water</p><tr hidden><td>no<tr>"
        "<td>H13<td><table><tr><td>in<td>side</table></table>"
    )
    assert found == "Alarms\nCode | Meaning\nH12 | low water\nH13 | in | side"


def test_code_keeps_its_lines() -> None:
    assert blocks("<pre>if x:\n    <b>go</b>()\n</pre>") == ["if x:\n    go()"]


@pytest.mark.parametrize(
    ("markup", "encoding"),
    [
        ("<meta charset='iso-8859-1'><p>Größe 5 µ</p>", "cp1252"),
        (
            "<meta http-equiv=x content='text/html; charset=shift_jis'><p>銅の蒸留器</p>",
            "shift_jis",
        ),
        ("<?xml version='1.0' encoding='koi8-r'?><p>Куб медный</p>", "koi8-r"),
        ("<meta charset='iso-8859-1'><p>Größe</p>", "utf-8"),
        ("<meta charset='no such thing'><p>Größe</p>", "utf-8"),
    ],
)
def test_a_page_is_read_in_the_encoding_that_it_declares(markup: str, encoding: str) -> None:
    (found,) = page_text(markup.encode(encoding))[1]
    assert found in markup


def test_a_page_nested_thousands_deep_keeps_its_words() -> None:
    for tag in ("div", "ul><li", "b", "table><tr><td"):
        found = blocks(f"<{tag}>" * 3000 + "deep")
        assert len(" ".join(found)) < 100_000


def test_a_page_without_text_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("<html><body><script>all()</script></body></html>")
    with pytest.raises(UnusableError, match="no text besides") as caught:
        read_html(path)
    assert caught.value.reason == "no_text"
