"""Palettes: differences, the network, people's palettes, and the files that are written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from benchmarks.colour_names import TERMS, named
from benchmarks.palettes import palette_error, pixel_error
from cnn_research.cli.run import run
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.ranges import check_ranges
from cnn_research.data.dataset import PALETTE
from cnn_research.data.images import decode
from cnn_research.data.sources.clusters import Clustered
from cnn_research.data.sources.folder import Photos
from cnn_research.data.sources.palettes import Palettes
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.inference.export import _code
from cnn_research.models.palette_net import PaletteHead, PaletteNet
from cnn_research.models.pretrained import Pretrained
from cnn_research.models.ss_cnn import SSCNN
from cnn_research.ops import colours, palettes
from cnn_research.tasks.decode import palette_of
from cnn_research.tasks.histogram import Histogram
from cnn_research.tasks.palette import Palette, _named, nearest_names, with_strip
from cnn_research.tasks.task import PIXELS
from cnn_research.train.config import Evaluation, Selection, Training
from cnn_research.train.optimizers import Optimizer
from cnn_research.train.trained import TrainedModel, weights_of_run
from cnn_research.train.transfer import Transfer
from cnn_research.workflows.two_stage import TwoStage
from tests.test_images import ADOBE, in_srgb, rgb_profile

SMALL = PaletteNet(features=(4, 8, 8), num_classes=8, hidden=(16,), colours=3)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))


def lab(*rgb):
    return np.asarray(colours.srgb_to_lab(jnp.array(rgb, jnp.float32) / 255))


RED, GREEN, BLUE, GREY = (250, 10, 10), (10, 240, 20), (20, 30, 250), (128, 128, 128)


# Differences -------------------------------------------------------------------------------------


def test_pixels_are_compared_with_their_nearest_colour():
    random = np.random.default_rng(0)
    pixels = lab(*random.integers(0, 256, (50, 3)))
    palette = lab(*random.integers(0, 256, (7, 3)))
    expected = []
    for pixel in pixels:
        nearest = palette[np.argmin(((palette - pixel) ** 2).sum(-1))]
        expected.append(float(colours.ciede2000(jnp.array(pixel), jnp.array(nearest))))
    found = palettes.to_nearest(pixels[None], palette[None])
    np.testing.assert_allclose(found, [np.mean(expected)], rtol=1e-5)
    euclid = [np.sqrt(((palette - pixel) ** 2).sum(-1)).min() for pixel in pixels]
    np.testing.assert_allclose(
        palettes.to_nearest(pixels[None], palette[None], "lab"), [np.mean(euclid)], rtol=1e-5
    )
    fourth = palettes.to_nearest(pixels[None], palette[None], "lab", 4.0)
    np.testing.assert_allclose(fourth, [np.mean(np.power(euclid, 4)) ** 0.25], rtol=1e-5)


def test_palettes_are_compared_in_both_directions_whatever_their_order():
    first, second = lab(RED, GREEN, GREY), lab(BLUE, RED)
    there = [0.0, min(_apart(GREEN, BLUE), _apart(GREEN, RED)),
             min(_apart(GREY, BLUE), _apart(GREY, RED))]  # fmt: skip
    back = [min(_apart(BLUE, RED), _apart(BLUE, GREEN), _apart(BLUE, GREY)), 0.0]
    expected = (np.mean(there) + np.mean(back)) / 2
    padded = np.concatenate([second, lab(GREEN)])  # not there: it must not count
    known = np.array([True, True, False])
    found = palettes.between(first[None, ::-1], padded[None], known[None])
    np.testing.assert_allclose(found, [expected], atol=2e-3)


def _apart(first, second):
    return float(colours.ciede2000(*map(jnp.asarray, lab(first, second))))


def test_transport_matches_every_colour_with_another():
    first, second = lab(RED, GREEN), lab(GREEN, RED, BLUE)
    known = np.array([[True, True, False]])
    same = palettes.transported(first[None], second[None], known, "lab")
    assert float(same[0]) < 0.1
    # Nearest: all greens; transport has to move half of the palette to red.
    greens = lab(GREEN, GREEN)
    moved = palettes.transported(greens[None], second[None], known, "lab")
    distance = np.linalg.norm(lab(GREEN)[0] - lab(RED)[0])
    np.testing.assert_allclose(moved, [distance / 2], rtol=1e-2)


def test_kmeans_finds_a_palette_for_each_image():
    pixels = np.stack([np.tile(lab(RED, GREEN), (20, 1)), np.tile(lab(BLUE, GREY), (20, 1))])
    found = np.asarray(palettes.found_by_kmeans(jnp.asarray(pixels), 2))
    for image, colours_there in zip(found, ((RED, GREEN), (BLUE, GREY)), strict=True):
        assert sorted(image.round(2).tolist()) == sorted(lab(*colours_there).round(2).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("name", palettes.DIFFERENCES)
def test_differences_can_be_learnt_from_where_colours_are_equal(name):
    def loss(palette):
        known = jnp.ones((1, 2), bool)
        both = palettes.between(palette, lab(GREY, (0, 0, 0))[None], known, name)
        moved = palettes.transported(palette, lab(GREY, (0, 0, 0))[None], known, name)
        near = [palettes.to_nearest(palette, palette, name, power) for power in (1.0, 4.0)]
        return (both + moved + sum(near)).sum()

    slope = jax.grad(loss)(jnp.asarray(lab(GREY, (0, 0, 0))[None]))
    assert np.isfinite(slope).all()


# The network -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_crop_has_the_histogram_of_the_self_supervised_network():
    images = np.random.default_rng(0).random((2, 37, 37, 3), np.float32)
    variables = SMALL.init(jax.random.key(0), images)
    _, state = SMALL.apply(variables, images, capture_intermediates=True, mutable=["intermediates"])
    logits = state["intermediates"]["fc"]["__call__"][0]
    ss_cnn = SSCNN(features=SMALL.features, num_classes=8)
    params = {name: values for name, values in variables["params"].items() if name != "head"}
    np.testing.assert_allclose(
        logits[:, 0, 0], ss_cnn.apply({"params": params}, images), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [(37, 37), (50, 130)])
def test_colours_come_with_the_share_that_each_covers(size):
    image = np.zeros((1, *size, 3), np.float32)
    image[:, : size[0] // 2] = np.array(RED) / 255
    variables = SMALL.init(jax.random.key(1), image)
    rows = SMALL.apply(variables, image).reshape(3, 4)
    np.testing.assert_allclose(rows[:, 3].sum(), 1, rtol=1e-5)
    pixels = colours.srgb_to_lab(image.reshape(-1, 3))
    nearest = ((pixels[:, None] - rows[None, :, :3]) ** 2).sum(-1).argmin(1)
    np.testing.assert_allclose(rows[:, 3], np.bincount(nearest, minlength=3) / len(pixels))


def test_a_reading_that_reaches_finds_the_middle_of_the_far_ones():
    """The least mean of squared distances is at the mean; of cubes it is nearer to the far one."""
    pixels = jnp.array([[[50.0, 0, 0]] * 9 + [[50.0, 30.0, 0]]])
    head = PaletteHead(
        colours=1, hidden=(), refinement_steps=40, pixel_features=0, residual_refiner=0
    )
    params = head.init(jax.random.key(0), jnp.ones((1, 4)), pixels)["params"]
    for power, least in ((2, 3.0), (3, 7.5)):
        params["reaches"] = jnp.full(40, power / 2 - 1)
        _, colours = head.apply({"params": params}, jnp.ones((1, 4)), pixels)
        np.testing.assert_allclose(colours[0, 0], [50, least, 0], atol=0.1)


@pytest.mark.slow
def test_an_image_of_one_colour_has_a_palette_of_that_colour():
    image = np.broadcast_to(np.array(BLUE, np.float32) / 255, (1, 64, 64, 3))
    variables = SMALL.init(jax.random.key(1), image)
    palette = palette_of(np.asarray(SMALL.apply(variables, image)[0]))
    assert len(palette.rgb) == 1 and palette.shares.sum() == pytest.approx(1)
    assert np.abs(palette.rgb[0].astype(int) - BLUE).max() <= 1


# Training ----------------------------------------------------------------------------------------


def trained(task=None, data=None):
    return Training(
        data=data or Synthetic(train=16, validation=4, test=4, image_shape=(40, 40, 3), heads=(),
                               classes=(), palette=4),
        model=SMALL,
        task=task or Palette(colours=3),
        transfer=Transfer(freeze=("conv*", "fc")),
        optimizer=Optimizer(name="adam", learning_rate=1e-2),
        selection=Selection(metric="loss"),
        evaluation=Evaluation(batch_size=4),
        epochs=8,
        batch_size=8,
        eval_every_epochs=8,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [
        Palette(colours=3),
        Palette(colours=3, target="people", matching="transport", difference="oklab"),
        Palette(colours=3, target="kmeans", difference="lab"),
    ],
)
def test_a_head_learns_and_the_rest_stays(tmp_path, monkeypatch, task):
    few = dataclasses.replace(trained(task), epochs=0.5, log_every_steps=1)
    result = run(few, tmp_path / "run")
    # As configs name it: relative to where one is.
    monkeypatch.chdir(tmp_path)
    before = weights_of_run(Path("run")).arrays
    result = run(dataclasses.replace(few, epochs=8), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = [row.get("objective", row["loss"]) for row in rows if row["split"] == "train"]
    assert len(losses) == 16 and sum(losses[-4:]) < sum(losses[:4])
    for (layer, weight), values in weights_of_run(tmp_path / "run").arrays.items():
        same = np.array_equal(values, before[layer, weight])
        assert same != layer.startswith("head"), (layer, weight)
    assert result.metrics["test"]["count"] == 4 and result.metrics["test"]["loss"] > 0
    assert (tmp_path / "run" / "report" / "palettes.png").exists()
    found = TrainedModel.load(tmp_path / "run")
    assert found.experiment.model.colours == 3


def test_the_loss_of_the_pixels_is_that_of_the_images_that_were_changed():
    task = Palette(colours=1).fitted(Synthetic(heads=(), classes=()).load())
    outputs = jnp.concatenate([lab(GREY)[0], jnp.ones(1)])[None]
    grey = np.full((1, 8, 8, 3), 128, np.uint8)
    total, count = task.sums(outputs, {PIXELS: jnp.asarray(grey)}, jnp.ones(1))["loss"]
    assert count == 1 and total < 0.01
    total, _ = task.sums(outputs, {PIXELS: jnp.asarray(grey) // 2}, jnp.ones(1))["loss"]
    assert total > 10


def test_what_cannot_be_trained_says_so(tmp_path):
    with pytest.raises(UsageError, match=r"needs --task\.target=kmeans"):
        Palette(matching="transport").check()
    with pytest.raises(UsageError, match="must be 1 or more"):
        check_ranges(Palette(power=0.5))
    with pytest.raises(UsageError, match=r"needs --task\.target=pixels"):
        Palette(power=2.0, target="people").check()
    with pytest.raises(UserError, match="no palettes made by people"):
        Palette(target="people").check_data(Synthetic(heads=(), classes=()).load())
    with pytest.raises(UserError, match="1 channels"):
        grey = Synthetic(image_shape=(40, 40, 1), heads=(), classes=())
        Palette().check_data(grey.load())
    with pytest.raises(UsageError, match="SSCNN does not predict colours"):
        Palette().bind(SSCNN(), Synthetic().load())
    cached = dataclasses.replace(trained(), transfer=Transfer(cache_after="fc"))
    with pytest.raises(UsageError, match="replaces images"):
        run(cached, tmp_path / "run")


# People's palettes -------------------------------------------------------------------------------


def folder_of_palettes(folder, count=11):
    (folder / "images").mkdir(parents=True)
    rows = ["image,source,colours"]
    for number in range(count):
        pixels = np.full((20, 30, 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        rows.append(f"{number}.png,made up,#0000{number:02x} #ffffff" + " #102030" * (number % 2))
    (folder / "palettes.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_every_image_is_in_the_test_of_one_fold(tmp_path):
    source = Palettes(str(folder_of_palettes(tmp_path / "made")), (40, 40), folds=3)
    tested = []
    for fold in range(3):
        data = dataclasses.replace(source, fold=fold).load()
        names = {name: set(map(str, split.names)) for name, split in data.splits.items()}
        assert sum(map(len, names.values())) == 11 == len(set.union(*names.values()))
        tested += sorted(names["test"])
        split = data.splits["test"]
        for image, palette in zip(split.images, split.labels[PALETTE], strict=True):
            number = image[0, 0, 0]
            assert palette.shape == (3, 3)
            np.testing.assert_allclose(palette[0], [0, 0, number / 255], atol=1e-6)
            assert np.isnan(palette[2]).all() == (number % 2 == 0)
    assert len(tested) == 11 == len(set(tested))


def test_tables_of_palettes_that_cannot_be_used(tmp_path):
    folder = folder_of_palettes(tmp_path / "made")
    with pytest.raises(UsageError, match=r"--data\.fold is 5: must be below --data\.folds=5"):
        Palettes(str(folder), fold=5).load()
    with pytest.raises(UsageError, match=r"--data\.path is empty"):
        Palettes().load()
    table = folder / "palettes.csv"
    text = table.read_text()
    table.write_text(text.replace("#000003", "navy"))
    with pytest.raises(UserError, match=r"3\.png are 'navy #ffffff #102030'"):
        Palettes(str(folder)).load()
    table.write_text(text.replace("4.png", "44.png"))
    with pytest.raises(UserError, match=r"no palette for 4\.png"):
        Palettes(str(folder)).load()
    table.write_text(text + "3.png,again,#000000\n")
    with pytest.raises(UserError, match=r"two rows for 3\.png"):
        Palettes(str(folder)).load()
    table.write_text(text.replace("colours", "colors"))
    with pytest.raises(UserError, match="no column 'colours'"):
        Palettes(str(folder)).load()


# Two trainings -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_second_training_starts_from_the_first_and_neither_runs_again(
    tmp_path, monkeypatch, capsys
):
    noise = Synthetic(train=4, validation=2, test=2, image_shape=(40, 40, 3), heads=(), classes=())
    first = Training(
        data=Clustered(source=noise, clusters=8, window=(37, 37)),
        model=SSCNN(features=SMALL.features),
        task=Histogram(),
        selection=Selection(metric="loss"),
        epochs=1,
        batch_size=4,
    )
    experiment = TwoStage(pretraining=first, training=trained(), fresh=("head",))
    with pytest.raises(UserError, match="has no training yet"):
        run(experiment, tmp_path / "run", "evaluate")
    result = run(experiment, tmp_path / "run")
    start = weights_of_run(tmp_path / "run" / "pretraining").arrays
    end = weights_of_run(tmp_path / "run" / "training").arrays
    assert start.keys() < end.keys()
    for leaf, values in start.items():
        np.testing.assert_array_equal(end[leaf], values)
    evaluated = run(experiment, tmp_path / "run", "evaluate")
    assert evaluated.metrics["test"] == pytest.approx(result.metrics["test"], rel=1e-6)
    Image.new("RGB", (9, 9), RED).save(tmp_path / "red.png")
    run(experiment, tmp_path / "run", "predict", str(tmp_path / "red.png"))
    assert (tmp_path / "run" / "training" / "predictions" / "red.png.gpl").exists()

    monkeypatch.setattr("cnn_research.train.loop.train", lambda *_: pytest.fail("trained again"))
    assert run(experiment, tmp_path / "run").metrics == result.metrics
    named = dataclasses.replace(trained(), pretrained=Pretrained(str(tmp_path / "run/training")))
    stages = dataclasses.replace(experiment, training=named).stages()
    assert [name for name, _ in stages] == ["training"]
    assert stages[0][1].pretrained == named.pretrained


# Use ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_any_image_gets_a_palette_or_one_clear_line(tmp_path, capsys):
    photos = Photos(image_size=(100, 100))
    training = dataclasses.replace(trained(data=photos), epochs=1)
    run(training, tmp_path / "run")
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (30, 20, 3), np.uint8))
    noise.save(folder / "noise.jpg")
    noise.convert("CMYK").save(folder / "cmyk.jpg")
    noise.convert("L").save(folder / "grey.png")
    noise.convert("RGBA").save(folder / "clear.png")
    Image.fromarray(np.full((5, 5), 40000, np.uint16)).save(folder / "deep.png")
    Image.new("RGB", (1, 1), RED).save(folder / "one.png")
    noise.save(folder / "moving.gif", save_all=True, append_images=[noise.rotate(90)])
    (folder / "broken.jpg").write_bytes(b"no image")
    Image.new("RGBA", (40, 40)).save(folder / "nothing.png")
    logo = Image.new("RGBA", (40, 40))
    logo.paste((*RED, 255), (10, 10, 20, 20))
    logo.save(folder / "logo.png")
    wide = Image.new("RGB", (40, 40), (150, 90, 60))
    wide.save(folder / "wide.png", icc_profile=rgb_profile(ADOBE))
    narrow = in_srgb(np.asarray(wide), ADOBE).round().astype(np.uint8)
    Image.fromarray(narrow).save(folder / "srgb.png")
    (folder / "deep").mkdir()
    noise.rotate(180).save(folder / "deep" / "noise.jpg")
    capsys.readouterr()
    run(training, tmp_path / "run", "predict", str(folder))
    said = capsys.readouterr().err
    assert "skipped" in said and "broken.jpg" in said
    assert "nothing.png is fully transparent, so it has no colours" in said
    written = tmp_path / "run" / "predictions"
    rows = [json.loads(line) for line in (written / "predictions.jsonl").open()]
    assert len(rows) == 11 and (written / "noise.jpg-2.gpl").exists()
    for row in rows:
        found = row[PALETTE]["colours"]
        shares = [colour["share"] for colour in found]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-3)
        assert all(bytes.fromhex(c["hex"][1:]) == bytes(c["rgb"]) and c["name"] for c in found)
    palette = {Path(row["file"]).name: row[PALETTE]["colours"] for row in rows}
    for name in ("one.png", "logo.png"):
        assert [colour["share"] for colour in palette[name]] == [1]
    assert palette["one.png"] == palette["logo.png"]
    for ours, theirs in zip(palette["srgb.png"], palette["wide.png"], strict=True):
        np.testing.assert_allclose(ours["rgb"], theirs["rgb"], atol=3)
    gimp = (written / "noise.jpg.gpl").read_text().splitlines()
    assert gimp[0] == "GIMP Palette" and len(gimp) == 4 + 3
    assert (written / "noise.jpg.css").read_text().count("--colour-") == 3
    assert Image.open(written / "noise.jpg.png").size[0] == 20
    assert "#" in (written / "predictions.csv").read_text()


@pytest.mark.parametrize("size", [8, 32])
def test_images_without_two_rows_of_maps_are_refused(size):
    with pytest.raises(UsageError, match="33"):
        SMALL.init(jax.random.key(0), np.zeros((1, size, 64, 3), np.float32))


@pytest.mark.slow
def test_neighbours_of_images_without_labels_have_no_label(tmp_path):
    config = dataclasses.replace(trained(), epochs=0.5, evaluation=Evaluation(batch_size=4))
    run(config, tmp_path / "run")
    Image.new("RGB", (9, 9), RED).save(tmp_path / "red.png")
    run(config, tmp_path / "run", "predict", str(tmp_path / "red.png"), neighbours=2)
    lines = (tmp_path / "run" / "predictions" / "predictions.jsonl").read_text()
    assert len(json.loads(lines)["nearest"]) == 2


def test_files_are_in_the_same_split_at_every_size(tmp_path):
    random = np.random.default_rng(0)
    for number in range(30):
        pixels = random.integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    large, small = (
        Photos(str(tmp_path), size).load().splits for size in ((24, 32), (10, 10))
    )  # fmt: skip
    for name in ("train", "validation", "test"):
        assert sorted(large[name].names) == sorted(small[name].names)


def test_the_benchmarks_measure_what_they_say():
    image = np.array([[RED, RED], [GREEN, BLUE]], np.uint8)
    error = pixel_error(image, np.array([RED, GREEN], np.uint8))
    assert error == pytest.approx(min(_apart(BLUE, RED), _apart(BLUE, GREEN)) / 4, abs=2e-3)
    assert palette_error(np.array([RED], np.uint8), np.array([RED], np.uint8)) < 0.01
    assert named(["# a comment", "pale blue\t#d0fefe", "dusk #4e5481", "Navy Blue #001146"]) == (
        [TERMS.index("blue")], ["001146"],
    )  # fmt: skip


def test_a_strip_stands_below_the_image():
    image = np.zeros((100, 60, 3), np.uint8)
    assert with_strip(image[:, :3], np.array([RED, GREEN], np.uint8)).shape[1] == 8
    picture = with_strip(image, np.array([RED, GREEN], np.uint8))
    assert picture.shape == (100 + 1 + 20, 60, 3)
    assert (picture[-1, 0] == RED).all() and (picture[-1, -1] == GREEN).all()


def test_names_are_fit_to_print():
    names, _ = _named()
    assert len(names) == len(set(names)) == 920
    assert nearest_names(np.array([[111, 124, 0]], np.uint8)) == ["murky green"]


def test_the_card_s_code_leaves_out_what_is_transparent(tmp_path):
    image = Image.new("RGBA", (60, 40))
    image.paste((*RED, 255), (10, 10, 30, 30))
    image.paste((*BLUE, 130), (30, 10, 40, 30))
    image.save(tmp_path / "IMAGE", "PNG")
    head = {"kind": "palette"}
    code = _code({"channels": "RGB", "fit": "stretch"}, [head])
    code = code.replace("IMAGE", str(tmp_path / "IMAGE"))
    part = code[code.index("size, bilinear") : code.index("outputs =")]
    names = {"Image": Image, "ImageOps": ImageOps, "np": np}
    exec(part, names | {"height": 20, "width": 30, "channels": 3}, found := {})
    expected = decode(tmp_path / "IMAGE", (20, 30), opaque=True)
    np.testing.assert_array_equal(found["images"], expected[None])


def test_colours_have_the_name_that_is_nearest():
    assert nearest_names(np.array([[0, 0, 0], [255, 255, 255], [3, 67, 223]], np.uint8)) == [
        *("black", "white", "blue"),
    ]
