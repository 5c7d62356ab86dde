"""The page of `python -m cnn_research serve`, in a browser."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from tests.serving import Server, encoded, noise  # noqa: E402
from tests.test_serve import (  # noqa: E402
    CLASSES,
    HEADS,
    SHAPE,
    expected_of,
    forward,
    write_export,
)

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with Server(write_export(folder / "linear", forward, SHAPE, HEADS)) as running:
        yield running


@pytest.fixture
def page():
    """A page, on which nothing may go wrong unseen, and which asks this machine only."""
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        found = browser.new_page(viewport={"width": 375, "height": 800})
        wrong: list[str] = []
        found.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        found.on("pageerror", lambda error: wrong.append(str(error)))
        found.on("requestfailed", lambda asked: wrong.append(asked.url))
        yield found
        browser.close()
        assert not wrong


def drop(page, name: str, content: bytes) -> None:
    """Drops a file on the page, as a hand would."""
    transfer = page.evaluate_handle(
        """([name, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
            return transfer;
        }""",
        [name, list(content)],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("#drop", event, {"dataTransfer": transfer})


def test_a_dropped_image_is_answered(server, page):
    picture = encoded(noise((30, 20, 3), 5))
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_function("document.title === 'linear: predictions'")
    drop(page, "one.png", picture)
    card = page.locator("#answers > li:not([aria-busy])")
    card.wait_for()
    expected = expected_of(picture)
    labels = card.locator(".bars .label").all_inner_texts()
    assert labels == [name for name, _ in expected["kind"]]
    assert set(labels) < set(CLASSES)
    shares = [
        float(text.split()[0]) / 100 for text in card.locator(".bars .share").all_inner_texts()
    ]
    assert shares == [share for _, share in expected["kind"]] or shares == pytest.approx(
        [share.expected for _, share in expected["kind"]], abs=1e-3
    )
    assert float(card.locator(".number").inner_text()) == pytest.approx(
        expected["year"].expected, abs=0.01
    )
    widths = card.locator(".bar i").evaluate_all("bars => bars.map(bar => bar.offsetWidth)")
    assert widths == sorted(widths, reverse=True) and widths[0] > 20
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_every_label_that_an_image_has_is_shown(page, tmp_path):
    names = [f"label {index}" for index in range(8)]
    head = {"name": "tags", "kind": "labels", "classes": names, "start": 0, "stop": 8}
    heads = [{**head, "thresholds": [0.0] * 6 + [1.0] * 2}]
    with Server(write_export(tmp_path / "labelled", forward, SHAPE, heads)) as running:
        page.goto(f"http://127.0.0.1:{running.port}/")
        page.wait_for_function("document.title === 'labelled: predictions'")
        drop(page, "one.png", encoded(noise((30, 20, 3), 5)))
        card = page.locator("#answers > li:not([aria-busy])")
        card.wait_for()
        assert set(card.locator(".present .label").all_inner_texts()) == set(names[:6])
        assert "(from 0.00" in card.locator(".present .share").first.inner_text()
        said = page.locator("#status").inner_text()
        assert all(name in said for name in names[:6]) and "label 7" not in said
        assert "tags: 8 labels" in page.locator("#facts").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_files_are_chosen_by_keyboard(server, page, tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(2)]
    for number, file in enumerate(files):
        Path(file).write_bytes(encoded(noise((9, 9, 3), number)))
    # Only who listens is told of choosers, and it takes a while until the browser knows.
    page.on("filechooser", lambda chooser: None)
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_function("document.title === 'linear: predictions'")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(files)
    page.locator("#answers > li:not([aria-busy])").nth(1).wait_for()
    assert page.locator("figcaption").all_inner_texts() == ["1.png", "0.png"]
    assert "kind: class" in page.locator("#status").inner_text()


def test_the_documentation_is_shown_without_a_network(server, page):
    strange = []
    page.on("request", lambda asked: strange.append(asked.url))
    page.goto(f"http://127.0.0.1:{server.port}/docs")
    page.get_by_text("/predict").first.wait_for()
    assert {address.split("/")[2] for address in strange if "://" in address} == {
        f"127.0.0.1:{server.port}"
    }
