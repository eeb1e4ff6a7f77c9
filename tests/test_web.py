"""The network in a browser: mnist/web/ in a real Chromium, against Python."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Page, expect
from torch import nn

from handwriting import traced
from mnist.evaluate import predict, saliency
from mnist.export import export
from mnist.html import html_file, network_of, script, text
from mnist.networks import NETWORKS
from mnist.picture import CROWDED, crop_drawing
from mnist.predict import BLANK, LOW_CONFIDENCE, OUT_OF_DISTRIBUTION, SEVERAL, WIDE, MNISTPredictor
from mnist.weights import load_weights
from mnist_utils import load_split
from visitor import PHONE, answer, draw

pytest_plugins = ["browser"]

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "MNIST-MODEL.pth"
IMAGES, LABELS = load_split("test", ROOT / "dataset")
DRAWINGS = 2000

# what a test gives to the browser, and gets back
READ = """(drawings) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
    return drawings.map((strokes) => {
        const { digit, probabilities, reason, picture } = reader.readStrokes(strokes);
        paintStrokes(canvas.getContext("2d"), strokes, SIDE, "#000");
        return { digit, reason, probabilities: Array.from(probabilities), picture: picture && Array.from(picture),
                 png: canvas.toDataURL("image/png").split(",")[1] };
    });
}"""
LOGITS = """(pictures) => pictures.map((picture) => Array.from(reader.logits(picture)))"""


@pytest.fixture
def page(browser) -> Iterator[Page]:
    """An empty page with the reader."""
    page = browser.new_page()
    page.add_script_tag(content=text("reader.js"))
    yield page
    page.close()


def take(page: Page, model: nn.Sequential, metadata: dict) -> None:
    page.evaluate("(network) => { window.reader = new DigitReader(network); }", network_of(model, metadata))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_computes_what_pytorch_computes(page, name):
    """With random weights, and batch norm that has seen something."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    model(torch.randn(100, 1, 28, 28))
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, -1, 1)
    take(page, model.eval(), {"architecture": name, "mean": 0.13, "std": 0.31})
    expected = predict(model, IMAGES[:5], mean=0.13, std=0.31).numpy()
    found = page.evaluate(LOGITS, IMAGES[:5].reshape(5, -1).tolist())
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    page.evaluate(LOGITS, IMAGES[:1].reshape(1, -1).tolist())
    gradient = np.array(page.evaluate("Array.from(reader.gradient(7))")).reshape(28, 28)
    assert np.abs(np.abs(gradient) - saliency(model, IMAGES[0], 7, mean=0.13, std=0.31)).max() < 1e-4


@pytest.mark.usefixtures("browser")  # skipped without one
def test_sixconv_reads_all_test_images_as_in_python(tmp_path):
    """For MNIST_CNN see test_export.py."""
    report = export(ROOT / "study" / "SixConv-0.pth", tmp_path / "page.html", "html", ROOT / "dataset")
    assert (report.images, report.different) == (10_000, 0) and report.deviation < 1e-4


@pytest.mark.parametrize("weights", ["MNIST-MODEL.pth", "study/SixConv-0.pth"])
def test_the_gradient_is_the_notebook_s(page, weights):
    model, metadata = load_weights(ROOT / weights)
    take(page, model, metadata)
    for image, label in zip(IMAGES[:5], LABELS[:5]):
        page.evaluate(LOGITS, image.reshape(1, -1).tolist())
        gradient = np.array(page.evaluate("(digit) => Array.from(reader.gradient(digit))", int(label)))
        expected = saliency(model, image, int(label), mean=metadata["mean"], std=metadata["std"])
        assert np.abs(np.abs(gradient) - expected.ravel()).max() < 1e-4


def in_python(predictor: MNISTPredictor, png: str) -> object:
    return predictor.predict(crop_drawing(Image.open(io.BytesIO(base64.b64decode(png)))), "dark")


def test_drawings_are_prepared_and_read_as_in_python(page):
    """Two thousand, because one in two hundred may differ; half a minute."""
    predictor = MNISTPredictor(WEIGHTS)
    take(page, predictor.model, predictor.metadata)
    same = right = right_in_python = alike = compared = 0
    for start in range(0, DRAWINGS, 100):
        drawings = [traced(image, 3) for image in IMAGES[start:start + 100]]
        for found, label in zip(page.evaluate(READ, drawings), LABELS[start:]):
            expected = in_python(predictor, found["png"])
            same += found["digit"] == expected.digit and found["reason"] == expected.reason
            right += found["digit"] == label
            right_in_python += expected.digit == label
            if found["digit"] is not None and expected.digit is not None:
                compared += 1
                alike += np.abs(np.reshape(found["picture"], (28, 28)) - expected.picture.astype(int)).max() <= 1
    print(f"of {DRAWINGS:,} drawings {same:,} with the same answer, {alike:,} of {compared:,} with the same picture; "
          f"right {right:,}, in Python {right_in_python:,}")
    assert same >= 0.995 * DRAWINGS and alike >= 0.995 * compared > 0.9 * DRAWINGS
    assert right >= right_in_python


def test_what_is_no_digit_gets_python_s_reasons(page):
    predictor = MNISTPredictor(WEIGHTS)
    take(page, predictor.model, predictor.metadata)
    rng = np.random.default_rng(0)
    one = [(0.3, 0.2), (0.3, 0.8)]
    drawings = {
        SEVERAL.format(2): [one, [(0.7, 0.2), (0.7, 0.8)]],
        WIDE: [[(0.1, 0.5), (0.9, 0.5)]],
        OUT_OF_DISTRIBUTION: [[(0.2, 0.2), (0.8, 0.8)], [(0.8, 0.2), (0.2, 0.8)], [(0.2, 0.5), (0.8, 0.5)],
                              [(0.5, 0.2), (0.5, 0.8)]],
        CROWDED.format(121): [[(x / 12, y / 12), (x / 12, y / 12)] for x in range(1, 12) for y in range(1, 12)],
    }
    scribbles = [[list(map(tuple, rng.uniform(0.1, 0.9, (rng.integers(2, 9), 2)).round(3).tolist()))
                  for _ in range(rng.integers(1, 4))] for _ in range(200)]
    found = page.evaluate(READ, [*drawings.values(), *scribbles])
    assert [one["reason"] for one in found[:4]] == list(drawings)
    same = [(one["digit"], one["reason"]) == (expected.digit, expected.reason)
            for one in found[4:] for expected in [in_python(predictor, one["png"])]]
    assert np.mean(same) >= 0.995
    assert page.evaluate("reader.read(new Uint8Array(SIDE * SIDE), SIDE, SIDE).reason") == BLANK
    low = LOW_CONFIDENCE.split("{")[0]
    assert any(one["reason"].startswith(low) for one in found[4:])


def test_a_layer_that_a_browser_cannot_compute_is_refused(page):
    model = nn.Sequential(nn.Conv2d(1, 2, 3, dilation=2), nn.Flatten(), nn.Linear(1152, 10))
    with pytest.raises(ValueError, match="a browser cannot compute Conv2d"):
        network_of(model, {"architecture": "own", "mean": 0, "std": 1})
    network = network_of(*load_weights(WEIGHTS))
    network["layers"][1]["kind"] = "Softsign"
    with pytest.raises(Exception, match="this page cannot compute a layer of the kind Softsign"):
        take_raw(page, network)
    network = network_of(*load_weights(WEIGHTS))
    network["values"] = network["values"][:-16]
    with pytest.raises(Exception, match="the network in this page is incomplete"):
        take_raw(page, network)


def take_raw(page: Page, network: dict) -> None:
    page.evaluate("(network) => { new DigitReader(network); }", network)


def test_text_in_a_network_cannot_leave_its_script():
    evil = "</script><!--<script>{{script}}alert(1)</script>"
    network = network_of(*load_weights(WEIGHTS)) | {"words": evil}
    whole = html_file(network, {"model": evil}, "")
    assert evil[:12] not in whole.replace(text("file.html")[-100:], "") and "<!--<" not in whole + script(network)
    assert whole.count("class DigitReader") == 1 and whole.count("</script>") == 2


# the page of one file

@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("file") / "MNIST-MODEL.html"
    path.write_text(html_file(network_of(*load_weights(WEIGHTS)), {"model": "a test"}, "seal"), "utf-8")
    return path


@pytest.fixture
def opened_file(browser, file) -> Iterator[Page]:
    with browser.new_context(offline=True, viewport={"width": 1280, "height": 800}) as context:
        page, faults, asked = context.new_page(), [], []
        page.on("pageerror", lambda error: faults.append(str(error)))
        context.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        yield page
        assert faults == [] and asked == [file.as_uri()]


def test_the_file_reads_drawings_without_a_network_or_a_server(opened_file, file):
    assert file.stat().st_size <= 200_000
    for label in range(10):
        assert draw(opened_file, traced(IMAGES[LABELS == label][1])) == label
        opened_file.keyboard.press("Escape")
    for part in opened_file.locator(".with-labels, .notice").all():
        expect(part).to_be_hidden()
    assert answer(opened_file) is None
    opened_file.keyboard.press("Control+z")
    assert answer(opened_file) == 9
    assert json.loads(opened_file.locator("#about").text_content()) == {"model": "a test"}


def pixels(page: Page, canvas: str) -> np.ndarray:
    """The pixels of a canvas, (H, W, 4)."""
    data = page.locator(canvas).evaluate("one => one.toDataURL()").split(",")[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))


def coloured(page: Page, canvas: str) -> np.ndarray:
    """Which pixels of a canvas are not transparent."""
    return pixels(page, canvas)[..., 3] > 0


def test_the_inside_of_the_network_is_shown(opened_file):
    stages = opened_file.locator(".stage")
    assert stages.all_inner_texts() == ["28 × 28 pixels", "10 filters, 24 × 24", "pooled to 12 × 12",
                                        "20 filters, 8 × 8", "pooled to 4 × 4", "50 numbers", "10 probabilities"]
    draw(opened_file, traced(IMAGES[LABELS == 3][1]))
    assert not coloured(opened_file, ".overlay").any()
    ink = coloured(opened_file, "canvas.ink")
    about = opened_file.locator(".about")
    for number, words, drawn in ((1, "Filter 0.", True), (4, "Filter 0.", True), (5, "Number 0 of 50", False),
                                 (6, "speaks for 0", True)):
        stages.nth(number).locator("canvas").hover(position={"x": 9, "y": 9})
        expect(about).to_contain_text(words)
        overlay = coloured(opened_file, ".overlay")
        assert overlay.any() == drawn
    assert (overlay & ink).sum() > 0.9 * ink.sum()  # the gradient lies on the ink
    opened_file.mouse.move(5, 5)
    expect(about).to_contain_text("Point at")


def test_blue_ink_speaks_for_a_digit(opened_file):
    """Ink times gradient, summed over blue and over orange pixels, has the sign that the colours say."""
    draw(opened_file, traced(IMAGES[LABELS == 3][1]))
    probabilities = opened_file.locator(".stage canvas").last
    for label in (3, 8):
        box = probabilities.bounding_box()
        probabilities.hover(position={"x": 40, "y": (label + 0.5) / 10 * box["height"]})
        expect(opened_file.locator(".about")).to_contain_text(f"speaks for {label}")
        red, _, blue_band, opacity = np.moveaxis(pixels(opened_file, ".overlay").astype(int), 2, 0)
        blue, orange = opacity[blue_band > red].sum(), opacity[blue_band < red].sum()
        assert blue > orange if label == 3 else blue > 0 < orange


def test_the_arrow_keys_point_as_well(opened_file):
    draw(opened_file, traced(IMAGES[LABELS == 3][1]))
    opened_file.locator(".stages").focus()
    about = opened_file.locator(".about")
    opened_file.keyboard.press("ArrowDown")
    expect(about).to_contain_text("Filter 0.")
    opened_file.keyboard.press("ArrowDown")
    expect(about).to_contain_text("Filter 1.")
    for _ in range(40):
        opened_file.keyboard.press("ArrowRight")
    expect(about).to_contain_text("speaks for")
    opened_file.keyboard.press("Escape")
    expect(about).to_contain_text("Point at")


def test_undo_never_brings_a_stroke_back_that_it_has_taken(opened_file):
    draw(opened_file, [[(0.5, 0.2), (0.5, 0.8)]])
    for _ in range(4):
        opened_file.keyboard.press("Backspace")
    assert answer(opened_file) is None
    expect(opened_file.locator(".undo")).to_be_disabled()


def test_a_damaged_file_says_so(browser, file, tmp_path):
    damaged = tmp_path / "damaged.html"
    damaged.write_text(file.read_text("utf-8").replace('"kind": "ReLU"', '"kind": "RaLU"'), "utf-8")
    page = browser.new_page()
    page.goto(damaged.as_uri())
    expect(page.locator(".notice")).to_have_text("This page is damaged and cannot read digits: export it again.")
    page.close()


def test_a_phone_shows_the_inside_only_when_asked(browser, file):
    with browser.new_context(**PHONE) as context:
        page = context.new_page()
        page.goto(file.as_uri())
        expect(page.locator(".stages")).to_be_hidden()
        page.locator("summary").tap()
        expect(page.locator(".stages")).to_be_visible()
        page.locator(".stage canvas").nth(1).tap(position={"x": 9, "y": 9})
        expect(page.locator(".about")).to_contain_text("Filter 0.")
        assert page.evaluate("document.scrollingElement.scrollWidth") == 390


def test_dark_and_light_follow_the_system(browser, file):
    with browser.new_context(color_scheme="dark") as context:
        page = context.new_page()
        page.goto(file.as_uri())
        paper = page.locator(".sheet")
        assert paper.evaluate("one => getComputedStyle(one).backgroundColor") == "rgb(16, 20, 24)"
        page.emulate_media(color_scheme="light")
        expect(paper).to_have_css("background-color", "rgb(255, 255, 255)")
