"""Only this machine's own browser gets in, and only its own pages change anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient
from studio_runs import HOME, browser, make_run

from potstill.studio.app import application
from potstill.studio.guard import LONGEST_FORM
from potstill.studio.session import Studio


@pytest.fixture
def outside(tmp_path: Path) -> tuple[TestClient, Studio]:
    studio = Studio(tmp_path)
    return TestClient(application(studio), base_url=HOME), studio


def test_the_token_is_exchanged_for_a_cookie_that_scripts_and_other_sites_cannot_use(
    outside: tuple[TestClient, Studio],
) -> None:
    client, studio = outside
    assert client.get("/").status_code == 403
    assert client.get("/?token=wrong").status_code == 403
    answer = client.get(f"/new?token={studio.token}&from=quickstart", follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/new?from=quickstart"  # the token leaves the address
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert studio.token not in cookie
    assert client.get("/").status_code == 200


def test_a_second_browser_gets_in_with_the_same_address(tmp_path: Path) -> None:
    _, studio = browser(tmp_path)
    other = TestClient(application(studio), base_url=HOME)
    assert other.get(f"/?token={studio.token}").status_code == 200


def test_an_address_never_redirects_elsewhere(outside: tuple[TestClient, Studio]) -> None:
    client, studio = outside
    answer = client.get(f"{HOME}//evil.test/?token={studio.token}", follow_redirects=False)
    assert answer.headers["location"].startswith("/evil.test")


def test_a_cookie_of_an_earlier_studio_is_refused_in_words(tmp_path: Path) -> None:
    client, _ = browser(tmp_path)
    later = TestClient(application(Studio(tmp_path)), base_url=HOME, cookies=client.cookies)
    refused = later.get("/")
    assert refused.status_code == 403
    assert "was started again" in refused.text


def test_a_browser_that_was_not_let_in_and_a_wrong_token_are_told_apart(
    outside: tuple[TestClient, Studio],
) -> None:
    client, _ = outside
    for path, words in (("/", "does not know this browser"), ("/?token=old", "has expired")):
        refused = client.get(path)
        assert refused.status_code == 403
        assert words in refused.text
        assert "potstill studio" in refused.text


@pytest.mark.parametrize("host", ["evil.test", "evil.test:8600", "127.0.0.1.evil.test", ""])
def test_a_foreign_name_that_leads_here_is_refused(tmp_path: Path, host: str) -> None:
    client, studio = browser(tmp_path)
    assert client.get("/", headers={"Host": host}).status_code == 403
    assert client.get(f"/?token={studio.token}", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},  # another program of this machine
        {"X-Form": ""},
        {"X-Form": "guessed"},
    ],
)
def test_no_change_without_our_own_page(tmp_path: Path, headers: dict[str, str]) -> None:
    make_run(tmp_path)
    client, _ = browser(tmp_path)
    changes = [("/new/set", {"yaml": "", "field": "name", "text": "x"}), ("/runs/made/stop", {})]
    for path, body in changes:
        assert client.post(path, json=body, headers=headers).status_code == 403


def test_a_form_needs_its_secret_and_no_origin_needs_the_browsers_word(tmp_path: Path) -> None:
    make_run(tmp_path)
    client, studio = browser(tmp_path)
    del client.headers["X-Form"]
    stop = "/runs/made/stop"
    assert client.post(stop, data={"form": "no"}).status_code == 403
    assert client.post(stop, data={}).status_code == 403
    done = client.post(stop, data={"form": studio.form}, follow_redirects=False)
    assert done.status_code == 303
    del client.headers["Origin"]
    assert client.post(stop, data={"form": studio.form}).status_code == 403
    fetched = {"Sec-Fetch-Site": "same-origin"}
    said = client.post(stop, data={"form": studio.form}, headers=fetched, follow_redirects=False)
    assert said.status_code == 303


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
def test_a_body_larger_than_a_form_is_not_read(tmp_path: Path, kind: str) -> None:
    client, _ = browser(tmp_path)
    answer = client.post(
        "/new/read", content=b"x" * (LONGEST_FORM + 1), headers={"Content-Type": kind}
    )
    assert answer.status_code == 413


def test_every_page_keeps_scripts_and_frames_of_others_out(tmp_path: Path) -> None:
    make_run(tmp_path)
    client, _ = browser(tmp_path)
    for path in ("/", "/new", "/runs/made", "/runs/nobody", "/static/common.js"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
    folder = tmp_path / "runs" / "made"
    (folder / "report.html").write_text("<style>p{}</style><script>alert(1)</script>")
    own = client.get("/runs/made/report").headers["content-security-policy"]
    assert "sandbox" in own
    assert "script-src" not in own  # default-src 'none' forbids it
