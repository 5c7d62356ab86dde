"""What Chromium shows of a tiny run: its report, and TensorBoard.

Skipped where Playwright or Chromium is not installed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from cnn_research.cli.run import run
from cnn_research.data.augmentation.config import Augmentation
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models.convnet import ConvNet
from cnn_research.report.writers import MetricsWriter
from cnn_research.train.config import Training

pytestmark = [pytest.mark.slow, pytest.mark.pictures]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

TINY = Training(
    name="tiny",
    data=Synthetic(train=48, validation=12, test=20, image_shape=(6, 6, 3), classes=(3,)),
    model=ConvNet(features=(4,), padding=(1,), dense=(8,), dense_activation="relu"),
    augmentation=Augmentation(mirror=True),
    epochs=2,
    batch_size=16,
    log_every_steps=1,
)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)})")
    with playwright.sync_playwright() as started:
        # The projector draws with WebGL, which the processor does where there is no GPU.
        words = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        opened = started.chromium.launch(executable_path=program, args=words)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def tiny(browser, tmp_path_factory):
    """The folder of a run."""
    workdir = tmp_path_factory.mktemp("pages") / "tiny"
    run(TINY, workdir)
    return workdir


@pytest.fixture
def page(browser):
    """A page; the test fails if it has an error, or asks anything of another machine."""
    opened = browser.new_page()
    errors, hosts = [], set()
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    opened.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    yield opened
    opened.close()
    assert not errors
    assert hosts <= {None, "", "localhost", "127.0.0.1"}


# The report --------------------------------------------------------------------------------------


def test_the_report_shows_its_pictures_and_figures(tiny, page):
    page.goto((tiny / "report" / "report.html").as_uri())
    assert page.title() == page.locator("h1").inner_text() == "tiny"
    headings = page.locator("h2").all_inner_texts()
    assert headings == ["Result on the test split", "Training", "Parameters", "Config"]
    assert [link.inner_text() for link in page.locator("nav a").all()] == headings

    sizes = page.eval_on_selector_all("img", "all => all.map(i => [i.naturalWidth, i.alt])")
    pictures = re.findall(r"!\[(.+)\]\(", (tiny / "report" / "report.md").read_text())
    assert [alt for _, alt in sizes] == pictures
    assert "Curves of loss, accuracy by epoch" in pictures and len(pictures) >= 3
    # Thumbnails of mistakes are as small as the images.
    assert all(width > (0 if alt.isdigit() else 200) for width, alt in sizes)

    rows = [row.split("\t") for row in page.locator("table tr").all_inner_texts()]
    evaluation = json.loads((tiny / "evaluation.json").read_text())["test"]
    for name, value in evaluation.items():
        assert [name, str(value) if isinstance(value, int) else f"{value:.4f}"] in rows
    assert "macro avg" in page.locator("pre").first.inner_text()

    config = page.locator("details pre")
    assert not config.is_visible()
    page.locator("summary").click()
    assert json.loads(config.inner_text())["batch_size"] == 16


def test_a_click_enlarges_a_picture_and_a_second_one_restores_it(tiny, page):
    page.goto((tiny / "report" / "report.html").as_uri())
    picture = page.get_by_alt_text("Curves of loss, accuracy by epoch")
    before = picture.bounding_box()
    picture.click()
    assert picture.bounding_box()["width"] > before["width"]
    assert picture.evaluate("i => i.parentElement.clientHeight") == page.viewport_size["height"]
    picture.click()
    assert picture.bounding_box()["width"] == before["width"]


def test_the_report_on_a_phone_in_the_dark_and_on_paper(tiny, page):
    page.goto((tiny / "report" / "report.html").as_uri())
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(colour) != light

    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360  # boxes scroll, it does not
    table = page.locator(".box", has=page.get_by_text("training accuracy"))
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")

    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert len(page.pdf()) > 10_000


# TensorBoard -------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(folder):
    """The address of a TensorBoard of the runs in a folder."""
    words = ["-m", "tensorboard.main", f"--logdir={folder}", "--port=0", "--load_fast=false"]
    server = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            if found := re.search(r"at (http://\S+)", line):
                yield found[1].rstrip("/")
                break
        else:
            pytest.fail("TensorBoard did not start")
    finally:
        server.kill()
        server.communicate()


@pytest.fixture(scope="module")
def tensorboard(tiny):
    with served(tiny) as address:
        yield address


def test_tensorboard_reads_what_was_written(tiny, tensorboard, page):
    def asked(path, **how):
        answer = page.request.fetch(f"{tensorboard}/data/{path}", **how)
        assert answer.ok, path
        return answer.json()

    rows = [json.loads(line) for line in (tiny / "metrics.jsonl").read_text().splitlines()]
    expected = [(row["step"], row["accuracy"]) for row in rows if row["split"] == "validation"]
    params = {"run": "events", "tag": "accuracy/validation"}
    points = asked("plugin/scalars/scalars", params=params)
    assert [(step, pytest.approx(value)) for _, step, value in points] == expected

    images = asked("plugin/images/tags")
    assert set(images["events"]) == {"training_images"}
    assert {"report/confusion_matrix", "report/curves"} <= set(images["events/report"])
    curves = asked("plugin/pr_curves/tags")["events/report"]
    assert set(curves) == {f"test/class {number}" for number in range(3)}
    histograms = set(asked("plugin/histograms/tags")["events"])
    assert {"parameters/Conv_0/kernel", "changes/Dense_1/bias"} <= histograms

    query = {"allowedStatuses": ["STATUS_SUCCESS"], "colParams": [], "sliceSize": 9}
    (found,) = asked("plugin/hparams/session_groups", method="POST", data=query)["sessionGroups"]
    assert found["hparams"]["optimizer.learning_rate"] == TINY.optimizer.learning_rate
    figures = {value["name"]["tag"]: value["value"] for value in found["metricValues"]}
    evaluation = json.loads((tiny / "evaluation.json").read_text())
    assert figures["test/accuracy"] == pytest.approx(evaluation["test"]["accuracy"])


def test_tensorboard_shows_it(tensorboard, page):
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    page.set_default_timeout(60_000)
    # It looks for points in space once it is asked what there is.
    for _ in range(100):
        listing = page.request.get(f"{tensorboard}/data/plugins_listing").json()
        if listing["projector"]["enabled"]:
            break
        page.wait_for_timeout(100)
    page.set_viewport_size({"width": 1400, "height": 1200})
    page.goto(f"{tensorboard}/#timeseries")
    expect(page.locator("card-view").filter(has_text="accuracy").first).to_be_visible()
    expect(page.get_by_text("events/report").first).to_be_visible()

    page.get_by_role("tab", name="Images").click()
    expect(page.get_by_text("report/confusion_matrix").first).to_be_visible()
    pictures = page.locator("tf-image-loader img")
    pictures.first.wait_for()
    assert min(pictures.evaluate_all("all => all.map(i => i.naturalWidth)")) > 100

    page.get_by_role("tab", name="PR Curves").click()
    expect(page.get_by_text("tag: test/class 1").first).to_be_visible()
    page.get_by_role("tab", name="HParams").click()
    expect(page.get_by_text("test/accuracy").first).to_be_visible()

    page.get_by_role("tab", name="Projector").click()
    inside = page.frame_locator("iframe").frame_locator("iframe")
    expect(inside.get_by_text("Points: 20")).to_be_visible()
    expect(inside.get_by_text("1 tensor found")).to_be_visible()


def test_the_curves_of_fifty_runs_are_there_at_once(page, tmp_path):
    from playwright.sync_api import expect

    for number in range(50):
        training = dataclasses.replace(TINY, seed=number % 5, batch_size=8 + number)
        workdir = tmp_path / f"run-{number:02}"
        with MetricsWriter(workdir, restored_step=None, config=training) as writer:
            for step in range(1, 4):
                values = {"loss": 1 / (step + number)}
                writer.write(step, "train", values, epoch=step, count=8)
                writer.write(step, "validation", values, epoch=step)
            writer.report(workdir / "report.html", {"test/accuracy": number / 50})
    with served(tmp_path) as address:
        for _ in range(300):
            if len(page.request.get(f"{address}/data/runs").json()) == 100:
                break
            page.wait_for_timeout(200)
        page.set_default_timeout(60_000)
        page.goto(address)
        card = page.locator("scalar-card").filter(has_text="loss/validation")
        card.locator("line-chart").wait_for()
        expect(card).to_contain_text("run-49/events", timeout=60_000)
        ticked = page.locator("runs-data-table input[type=checkbox]:checked")
        assert ticked.count() >= 100
        page.get_by_role("tab", name="HParams").click()
        columns = page.locator("tf-hparams-table-view vaadin-grid-cell-content")
        columns.filter(has_text="test/accuracy").first.wait_for()
        names = [text.strip() for text in columns.all_inner_texts()[:9]]
        assert names.index("batch_size") < names.index("seed") < names.index("accumulate")
        page.goto("about:blank")  # no request outlives the server
