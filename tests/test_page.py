"""The page as people use it: a real server, a real browser, and digits drawn stroke by stroke."""

import base64
import contextlib
import csv
import hashlib
import io
import os
import re
import sqlite3
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image, ImageDraw
from playwright.sync_api import Locator, Page, expect

from handwriting import traced
from mnist.files import DETECTOR
from mnist.networks import MNISTNet
from mnist.predict import MNISTPredictor
from mnist.weights import save_weights
from mnist_utils import FILES, load_split, read_idx
from visitor import PHONE, Site, Strokes, answer, draw, name, on_paper, opened, serving, show

pytest_plugins = ["browser"]

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")
ONE = [[(0.5, 0.2), (0.5, 0.8)]]
CONTROLS = {"button", "checkbox", "combobox", "listbox", "slider", "spinbutton", "tab", "textbox"}
DASH = [[(0.2, 0.5), (0.8, 0.5)]]

# the contrast of each visible text in an element with what is behind it, as WCAG 2 defines it
CONTRASTS = """async (element) => {
  await Promise.all(element.getAnimations({ subtree: true }).map((fading) => fading.finished));
  const parts = (colour) => [...colour.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const over = (top, below) => below.map((value, index) => top[3] * top[index] + (1 - top[3]) * value);
  const luminance = (colour) => colour.map((value) => value / 255)
    .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const found = [];
  for (const one of element.querySelectorAll("*")) {
    const text = [...one.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    if (!text || !one.checkVisibility() || one.closest(":disabled") || one.matches("option")) continue;
    const lineage = [];
    for (let at = one; at; at = at.parentElement) lineage.unshift(getComputedStyle(at));
    const behind = lineage.reduce((below, style) => over(parts(style.backgroundColor), below), [255, 255, 255]);
    const opacity = lineage.reduce((product, style) => product * Number(style.opacity), 1);
    const ink = parts(lineage.at(-1).color);
    const levels = [over([...ink.slice(0, 3), ink[3] * opacity], behind), behind].map(luminance);
    found.push([text, (Math.max(...levels) + 0.05) / (Math.min(...levels) + 0.05)]);
  }
  return found;
}"""


def digit(label: int) -> Strokes:
    return traced(IMAGES[LABELS == label][1])


def empty(site: Site) -> None:
    """Forget all drawings: the next one is number 1 again."""
    with contextlib.closing(sqlite3.connect(site.database)) as connection, connection:
        connection.execute("DELETE FROM predictions")
        connection.execute("DELETE FROM sqlite_sequence")


@pytest.fixture
def page(browser, site) -> Iterator[Page]:
    """The page in a new window, with nothing kept yet."""
    empty(site)
    with opened(browser, site) as page:
        yield page


@pytest.fixture
def phone(browser, site) -> Iterator[Page]:
    """The same on a phone."""
    empty(site)
    with opened(browser, site, **PHONE) as page:
        yield page


def rows(page: Page) -> Locator:
    return page.locator("#history .card")


def row(page: Page, number: int) -> Locator:
    return page.locator(f"#history .card[data-id='{number}']")


def numbers(page: Page) -> list[int]:
    return [int(text) for text in rows(page).locator(".number").all_inner_texts()]


def ink(page: Page) -> str:
    return page.evaluate("document.querySelector('canvas').toDataURL()")


# drawing

def test_a_hundred_digits_are_drawn_recognised_labelled_and_counted(page):
    rng = np.random.default_rng(2)
    chosen = rng.permutation([index for label in range(10)
                              for index in rng.choice(np.flatnonzero(LABELS == label), 10, replace=False)])
    confusion = np.zeros((10, 10), int)
    for turn, index in enumerate(chosen):
        label, read = int(LABELS[index]), draw(page, traced(IMAGES[index]))
        if read is None:
            page.keyboard.press("Escape")
            continue
        confusion[label, read] += 1
        if turn % 2:
            page.keyboard.press(str(label))
        else:
            page.get_by_role("button", name=f"It was a {label}").click()
        verdict = "right" if read == label else f"read as {read}"
        expect(page.locator(".kept")).to_have_text(re.compile(rf"^Kept as no. \d+, labelled {label}: {verdict}\. Draw"))
    right, labelled = confusion.trace(), confusion.sum()
    assert right >= 95
    share = f"{100 * right / labelled:.1f} %"
    expect(page.locator(".score")).to_have_text(
        re.compile(rf"{right} of {labelled} right \({re.escape(share)}\)$"))

    show(page, "Statistics")
    expect(page.locator("#statistics .summary")).to_contain_text(f"{share} of {labelled} labelled drawings read right")
    cells = page.locator("#statistics .confusion td:not(:empty), #statistics .confusion td[style]").all_inner_texts()
    assert np.array([int(cell or 0) for cell in cells]).reshape(10, 10).tolist() == confusion.tolist()
    per_digit = page.locator("#statistics .bars").first.locator("td:last-child").all_inner_texts()
    assert per_digit == [f"{row[label]} of {row.sum()}" for label, row in enumerate(confusion)]

    page.reload()
    show(page, "History")
    expect(page.locator("#count")).to_have_text(f"{labelled} drawings; page 1 of 5")
    expect(rows(page)).to_have_count(24)
    assert numbers(page) == sorted(numbers(page), reverse=True)
    oldest = numbers(page)[-1]
    page.get_by_role("button", name="Older").click()
    expect(page.locator("#count")).to_contain_text("page 2 of 5")
    expect(rows(page).last.locator(".number")).not_to_have_text(str(oldest))
    assert numbers(page)[0] < oldest


def test_an_unlabelled_drawing_is_kept_after_a_pause_and_can_be_labelled_then(page):
    assert draw(page, digit(4)) == 4
    expect(page.locator(".kept")).to_have_text("Kept as no. 1.")
    expect(page.locator(".words")).to_contain_text(re.compile(r"^4, \d+(\.\d)? % sure"))
    name(page, 9)
    expect(page.locator(".kept")).to_have_text("Kept as no. 1, labelled 9: read as 4. Draw the next one.")
    assert draw(page, digit(2)) == 2
    expect(page.locator(".kept")).to_contain_text("Kept as no.")
    expect(page.locator(".kept")).to_have_text("Kept as no. 2.")
    expect(page.locator(".score")).to_have_text("0 of 1 right (0.0 %)")


def test_a_drawing_is_discarded_there_and_then(page):
    draw(page, ONE)
    expect(page.locator(".kept")).to_have_text("Kept in a moment.")
    page.get_by_role("button", name="Discard").click()
    expect(page.locator(".kept")).to_have_text("Discarded.")
    draw(page, digit(3))
    expect(page.locator(".kept")).to_contain_text("Kept as no.")
    page.get_by_role("button", name="Discard").click()
    assert answer(page) is None
    draw(page, digit(5))
    expect(page.locator(".kept")).to_contain_text("Kept as no.")
    show(page, "History")
    expect(page.locator("#count")).to_have_text("1 drawing; page 1 of 1")


def test_what_is_no_digit_any_more_is_not_kept_any_more(page):
    draw(page, [[(0.3, 0.2), (0.3, 0.8)]])
    expect(page.locator(".kept")).to_contain_text("Kept as no.")
    draw(page, [[(0.7, 0.2), (0.7, 0.8)]])
    expect(page.locator(".kept")).to_have_text("Not kept: not one digit, but 2.")
    show(page, "History")
    expect(page.locator("#count")).to_have_text("0 drawings; page 1 of 1")


def test_what_was_cleared_comes_back_with_its_label(page):
    draw(page, digit(7))
    name(page, 7)
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Undo").click()
    assert answer(page) == 7
    expect(page.get_by_role("button", name="It was a 7")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".kept")).to_have_text(re.compile(r"^Kept as no. 1, labelled 7"))
    show(page, "History")
    expect(page.locator("#count")).to_have_text("1 drawing; page 1 of 1")


def test_a_network_too_large_for_a_browser_is_read_by_the_server(browser, tmp_path_factory):
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("large") / "large.pth"
    save_weights(weights, MNISTNet().eval(), mean=0.13, std=0.31)
    with serving(weights) as site, opened(browser, site) as page:
        expect(page.locator(".inside")).to_be_hidden()
        assert draw(page, digit(3)) in range(10)
        expect(page.locator(".words")).to_contain_text(" % sure")
        expect(page.locator(".kept")).to_contain_text("Kept as no. 1")
        site.stop()
        draw(page, ONE)
        expect(page.locator(".words")).to_contain_text("The server does not answer")
        site.start("--port", str(urlsplit(site.address).port))
        expect(page.locator(".notice")).to_be_hidden()
        expect(page.locator(".words")).not_to_contain_text("The server does not answer")


def test_what_is_cleared_at_once_is_not_kept_and_a_label_belongs_to_all_strokes(page):
    draw(page, ONE)
    page.keyboard.press("Escape")
    page.wait_for_timeout(1500)
    draw(page, ONE)
    draw(page, DASH)
    name(page, 4)
    expect(page.locator(".kept")).to_contain_text("Kept as no. 1, labelled 4")
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    before = ink(page)
    page.keyboard.press("Backspace")
    assert ink(page) == before
    show(page, "History")
    expect(page.locator("#count")).to_have_text("1 drawing; page 1 of 1")


def test_a_dot_leaves_ink(page):
    blank, place = ink(page), on_paper(page, ONE)[0][0]
    page.mouse.move(*place)
    page.mouse.down()
    page.mouse.move(*place)
    page.mouse.up()
    assert ink(page) != blank


@pytest.mark.parametrize("undo, clear", [("button", "button"), ("Control+z", "Escape"), ("Backspace", "Escape")])
def test_undo_and_clear(page, undo, clear):
    def act(way: str, button: str) -> None:
        if way == "button":
            page.get_by_role("button", name=button).click()
        else:
            page.keyboard.press(way)

    blank = ink(page)
    draw(page, ONE)
    before = ink(page)
    draw(page, DASH)
    assert before not in (blank, ink(page))
    act(undo, "Undo")
    assert answer(page) == 1 and ink(page) == before
    act(clear, "Clear")
    assert ink(page) == blank and answer(page) is None
    expect(page.get_by_text("draw a digit", exact=True)).to_be_visible()
    for button in page.locator(".clear, .labels button").all():
        expect(button).to_be_disabled()
    act(undo, "Undo")
    assert answer(page) == 1 and ink(page) == before


def test_clear_and_undo_wait_for_the_end_of_a_stroke(page):
    (first, *rest), = on_paper(page, ONE)
    page.mouse.move(*first)
    page.mouse.down()
    for key in ("Escape", "Backspace"):
        page.keyboard.press(key)
    page.mouse.move(*rest[0])
    page.mouse.up()
    assert answer(page) == 1


def test_examples_are_written_and_read_and_not_kept(page):
    button, read = page.get_by_role("button", name="Example"), []
    for _ in range(10):
        assert button.evaluate("""(button) => {
          button.click();
          return document.querySelector(".verdict").getAttribute("aria-busy");
        }""") == "true"
        expect(page.locator(".kept")).to_have_text("An example: it is not kept.")
        read.append(answer(page))
        assert page.locator(".labels button").first.is_disabled()
    assert sorted(read) == list(range(10))
    page.wait_for_timeout(1000)  # longer than the pause after which a drawing is kept
    assert draw(page, ONE) == 1  # on an empty paper
    expect(page.locator(".kept")).to_contain_text("Kept as no. 1")


def test_an_example_is_there_at_once_where_motion_is_unwelcome(browser, site):
    with opened(browser, site, reduced_motion="reduce") as page:
        page.get_by_role("button", name="Example").click()
        assert page.locator(".digit").inner_text() == "3"
        assert page.locator(".bars .bar").first.evaluate("one => getComputedStyle(one).transitionDuration") == "0s"


# teaching

FLAG = [[(0.39, 0.33), (0.53, 0.18), (0.52, 0.5), (0.5, 0.83)]]  # a 1, nearly a 7


def test_the_network_learns_from_drawings_and_forgets_again(browser, output, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes((output / "MNIST-MODEL.pth").read_bytes())
    with serving(weights) as site, opened(browser, site) as page:
        show(page, "Teach")
        expect(page.get_by_role("button", name="Teach it")).to_be_disabled()
        expect(page.get_by_role("button", name="Go back")).to_be_disabled()
        show(page, "Draw")
        for _ in range(6):
            draw(page, FLAG)
            name(page, 7)
        before = [row.inner_text() for row in page.locator(".share").all()]
        show(page, "Teach")
        page.get_by_role("button", name="Teach it my 6 drawings").click()
        expect(page.locator("#lesson")).to_contain_text("epoch 1 of 3", timeout=90_000)
        expect(page.locator("#lesson")).to_contain_text("MNIST's test images (10,000)", timeout=90_000)
        show(page, "Draw")
        expect(page.locator(".words")).to_contain_text("7, ")
        assert answer(page) == MNISTPredictor(weights).predict(_drawn(page)).digit == 7
        assert weights.read_bytes() != (output / "MNIST-MODEL.pth").read_bytes()
        with opened(browser, site) as other:  # it began with the network from before, and asks for this one
            draw(other, FLAG)
            expect(other.locator(".digit")).to_have_text("7")
        show(page, "Teach")
        page.get_by_role("button", name="Go back").click()
        expect(page.locator("#lesson")).to_contain_text("The page reads with the former weights again.")
        show(page, "Draw")
        expect(page.locator(".share").nth(1)).to_have_text(before[1])
        assert [row.inner_text() for row in page.locator(".share").all()] == before
        assert weights.read_bytes() == (output / "MNIST-MODEL.pth").read_bytes()


def _drawn(page: Page) -> bytes:
    """What is on the paper, as a PNG file."""
    return page.locator("canvas.ink").screenshot()


# pictures

def upload(page: Page, path: Path) -> None:
    show(page, "Upload")
    page.locator("#upload input[type=file]").set_input_files(path)
    page.locator(f"#upload a[href$='{path.name}']").wait_for()


def test_the_digits_of_a_photo_are_read_and_kept(page):
    upload(page, ROOT / "figures" / "samples" / "number.jpg")
    expect(page.locator("#seen")).to_contain_text("Read: 0316, 52948.")
    assert page.locator("#seen img").count() == 9
    expect(page.locator("#seen")).to_contain_text("9 kept: label them")
    show(page, "History")
    expect(page.locator("#count")).to_have_text("9 drawings; page 1 of 1")
    assert rows(page).locator(".read").all_inner_texts() == list("031652948"[::-1])


def test_a_doubtful_number_is_kept_while_it_is_ticked(page, tmp_path):
    """A number with a stroke through it."""
    picture = Image.open(ROOT / "figures" / "samples" / "number.jpg").convert("RGB")
    ImageDraw.Draw(picture).line([18, 20, 106, 122], (20, 20, 60), 5)
    picture.save(tmp_path / "crossed.png")
    upload(page, tmp_path / "crossed.png")
    expect(page.locator("#seen")).to_contain_text("5 kept, 4 of doubtful numbers not kept")
    tick = page.locator("#doubtful input")
    for _ in range(2):
        tick.check()
        expect(page.locator("#seen")).to_contain_text("9 kept: label them")
        tick.uncheck()
        expect(page.locator("#seen")).to_contain_text("5 kept, 4 of doubtful numbers not kept")
    show(page, "History")
    expect(page.locator("#count")).to_have_text("5 drawings; page 1 of 1")


def test_what_is_doubtful_is_not_kept_without_leave(page, tmp_path):
    """A 0 through which a pen has gone."""
    picture = Image.fromarray(np.kron(255 - IMAGES[3], np.ones((8, 8), np.uint8)))
    ImageDraw.Draw(picture).line([(10, 200), (214, 20)], 0, 12)
    picture.save(tmp_path / "crossed.png")
    upload(page, tmp_path / "crossed.png")
    expect(page.locator("#seen")).to_contain_text(re.compile("not kept|no digit was found"))
    show(page, "History")
    expect(page.locator("#count")).to_have_text("0 drawings; page 1 of 1")


def test_a_photo_is_not_kept_without_leave(page):
    show(page, "Upload")
    page.get_by_label("Keep what was read").uncheck()
    upload(page, ROOT / "figures" / "samples" / "seven.jpg")
    expect(page.locator("#seen")).to_contain_text("Read: 7.")
    show(page, "History")
    expect(page.locator("#count")).to_have_text("0 drawings; page 1 of 1")


def test_a_kept_digit_names_the_weights_that_read_it(page, site, tmp_path):
    """The network reads a picture in MNIST's form, and the digit detector all others."""
    Image.fromarray(IMAGES[0]).save(tmp_path / "mnist.png")
    for path in (ROOT / "figures" / "samples" / "seven.jpg", tmp_path / "mnist.png"):
        upload(page, path)
        expect(page.locator("#seen")).to_contain_text("1 kept")
        page.get_by_role("button", name="Clear").locator("visible=true").click()
    with contextlib.closing(sqlite3.connect(site.database)) as connection:
        kept = [digest for digest, in connection.execute("SELECT model_digest FROM predictions ORDER BY id")]
    assert kept == [hashlib.sha256(path.read_bytes()).hexdigest()
                    for path in (DETECTOR, Path(site.surroundings["MODEL_PATH"]))]


def test_a_pasted_picture_is_read(page):
    show(page, "Upload")
    for sample, expected in (("seven.jpg", "Read: 7."), ("number.jpg", "52948")):
        data = base64.b64encode((ROOT / "figures" / "samples" / sample).read_bytes()).decode()
        page.evaluate("""([data, name]) => {
          const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
          const clipboardData = new DataTransfer();
          clipboardData.items.add(new File([bytes], name, { type: "image/jpeg" }));
          document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
        }""", [data, sample])
        expect(page.locator("#seen")).to_contain_text(expected)


def test_an_example_is_read_at_a_click_and_not_kept(page):
    show(page, "Upload")
    for what, expected in (("A page on a table", "48942"), ("A single digit", "Read: 7.")):
        page.get_by_role("button", name=what).click()
        expect(page.locator("#seen")).to_contain_text(expected)
        expect(page.locator("#seen img").first).to_be_visible()
    show(page, "History")
    expect(page.locator("#count")).to_have_text("0 drawings; page 1 of 1")


def test_a_file_that_is_no_picture_is_refused_in_a_sentence(page, tmp_path):
    upload(page, ROOT / "figures" / "samples" / "seven.jpg")
    expect(page.locator("#seen")).to_contain_text("Read: 7.")
    (tmp_path / "x.png").write_text("not a picture")
    page.get_by_role("button", name="Clear").locator("visible=true").click()
    expect(page.locator("#upload")).to_contain_text("Click to Upload")
    upload(page, tmp_path / "x.png")
    expect(page.get_by_text("the file is not a supported image file: PNG, JPEG, ")).to_be_visible()
    expect(page.locator("#seen")).not_to_contain_text("Read:")


# history and exports

def keep(page: Page, *labelled: tuple[int, int | None]) -> None:
    """Draw these digits, say what they were, or nothing, and go to the history."""
    for drawn, label in labelled:
        assert draw(page, digit(drawn)) == drawn
        if label is None:
            expect(page.locator(".kept")).to_contain_text("Kept as no.")
            page.keyboard.press("Escape")
        else:
            name(page, label)
    show(page, "History")
    expect(rows(page)).to_have_count(len(labelled))


def test_a_label_is_corrected_and_a_drawing_deleted_in_the_history(page):
    keep(page, (3, 3), (7, 1), (5, None))
    expect(row(page, 2)).to_contain_text("wrong")
    row(page, 2).get_by_role("combobox").select_option("7")
    expect(row(page, 2)).to_contain_text("right")
    row(page, 3).get_by_role("button").click()
    expect(row(page, 3).get_by_role("button")).to_have_text("Sure?")
    expect(rows(page)).to_have_count(3)
    row(page, 3).get_by_role("button").click()
    expect(rows(page)).to_have_count(2)
    row(page, 1).get_by_role("combobox").select_option("no label")
    expect(row(page, 1)).not_to_contain_text("right")

    page.reload()
    expect(page.locator(".score")).to_have_text("1 of 1 right (100.0 %)")
    show(page, "History")
    expect(page.locator("#count")).to_have_text("2 drawings; page 1 of 1")
    assert [one.input_value() for one in rows(page).get_by_role("combobox").all()] == ["7", ""]


def test_several_drawings_are_labelled_and_deleted_at_once(page):
    keep(page, (3, None), (7, 1), (5, None))
    for number in (1, 3):
        row(page, number).get_by_role("checkbox").check()
    expect(page.locator("#history .chosen")).to_have_text("2 selected")
    page.get_by_label("What the selected drawings really were").select_option("5")
    expect(row(page, 1)).to_contain_text("wrong")
    expect(row(page, 3)).to_contain_text("right")
    expect(page.locator("#history .chosen")).to_have_text("none selected")
    page.get_by_label("Select all").check()
    delete = page.get_by_role("button", name="Delete selected")
    delete.click()
    page.get_by_role("button", name="Sure?").click()
    expect(rows(page)).to_have_count(0)
    expect(page.locator("#history .none")).to_be_visible()


def test_a_damaged_drawing_is_shown_as_damaged_and_not_counted(page, site):
    for number in (1, 2):
        draw(page, digit(number))
        name(page, number)
    with sqlite3.connect(site.database) as database:
        database.execute("UPDATE predictions SET confidence = confidence / 2 WHERE id = 1")
    database.close()
    show(page, "History")
    damaged = rows(page).last
    expect(damaged).to_contain_text("damaged")
    expect(damaged.locator("img, select")).to_have_count(2)
    for part in damaged.locator("img, select").all():
        expect(part).to_be_hidden()
    show(page, "Statistics")
    expect(page.locator("#statistics")).to_contain_text("Left out because they are damaged: 1.")
    expect(page.locator("#statistics .summary")).to_contain_text("1 labelled drawings read right")
    show(page, "History")
    damaged.get_by_role("button").click()
    damaged.get_by_role("button").click()
    expect(rows(page)).to_have_count(1)


def test_the_history_is_filtered(page):
    def choose(filter: str, value: str, expected: list[str]) -> None:
        page.get_by_label(filter).click()
        page.get_by_role("listbox").get_by_role("option", name=value, exact=True).click()
        expect(rows(page).locator(".number")).to_have_text(expected)

    keep(page, (3, 3), (7, 1), (5, None), (6, 6))
    page.get_by_role("button", name="Filter").click()
    choose("Answer", "wrong", ["2"])
    choose("Answer", "right", ["4", "1"])
    choose("Read as", "6", ["4"])
    choose("Answer", "unlabelled", [])
    choose("Read as", "any", ["3"])


def export(page: Page, button: str) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return Path(download.value.path()).read_bytes()


def test_the_exports_hold_what_the_history_shows(page, tmp_path):
    keep(page, (8, 8), (1, 1), (3, None), (0, 0), (2, 2), (9, 9))
    lines = list(csv.DictReader(io.StringIO(export(page, "Export these as CSV").decode("utf-8"))))
    assert [line["true_label"] for line in lines] == ["8", "1", "", "0", "2", "9"]
    assert [line["predicted_digit"] for line in lines] == ["8", "1", "3", "0", "2", "9"]
    assert zipfile.is_zipfile(io.BytesIO(export(page, "Export all labelled ones")))  # not the first export again
    page.reload()
    show(page, "History")
    expect(rows(page)).to_have_count(6)
    zipfile.ZipFile(io.BytesIO(export(page, "Export all labelled ones"))).extractall(tmp_path)
    for split, expected in (("train", [8, 1, 0, 9]), ("test", [2])):  # each fifth drawing, labelled or not
        images, kept = (read_idx(tmp_path / part) for part in FILES[split])
        assert images.shape == (len(expected), 28, 28) and images.max() == 255 and (images[:, 0] == 0).all()
        assert kept.tolist() == expected
        assert np.array_equal(load_split(split, tmp_path)[0], images)


# other surroundings

def touch(page: Page, *strokes: list[tuple[float, float]]) -> None:
    """Draw with a quick finger on the glass."""
    glass = page.context.new_cdp_session(page)
    for stroke in strokes:
        begin = time.time()
        for turn, (x, y) in enumerate(stroke):
            glass.send("Input.dispatchTouchEvent", {"type": "touchMove" if turn else "touchStart",
                                                    "touchPoints": [{"x": x, "y": y}], "timestamp": begin + turn / 100})
        glass.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": [],
                                                "timestamp": begin + len(stroke) / 100})


def test_a_finger_draws_on_the_paper_and_scrolls_beside_it(phone):
    touch(phone, *on_paper(phone, digit(7)))
    assert answer(phone) == 7
    assert phone.evaluate("scrollY") == 0
    phone.get_by_role("button", name="It was a 7").tap()
    expect(phone.locator(".kept")).to_contain_text("Kept as no. 1, labelled 7: right.")

    phone.evaluate("scrollTo(0, 0)")
    words = phone.locator(".words").bounding_box()
    touch(phone, [(words["x"] + 10, words["y"] + 10 - 20 * step) for step in range(15)])
    phone.wait_for_function("scrollY > 100")


def test_all_fits_on_a_phone(phone):
    draw(phone, digit(3))
    name(phone, 3)
    for button in phone.locator(".labels button, .tools button").all():
        box = button.bounding_box()
        assert box["width"] >= 40 and box["height"] >= 40
    for tab, element in (("Draw", "#pad .bars"), ("Upload", "#upload"), ("Statistics", "#statistics img"),
                         ("History", "#history img"), ("Teach", "#lesson")):
        show(phone, tab)
        phone.locator(element).first.wait_for()
        assert phone.evaluate("document.scrollingElement.scrollWidth") == 390
        edges = phone.locator("#pad, #pad *, #statistics *, #history *, button").locator("visible=true").evaluate_all(
            "all => all.map((one) => one.getBoundingClientRect().right)")
        assert max(edges) <= 390


@pytest.mark.parametrize("width", [320, 390, 640, 768, 928, 1024, 1280, 1920])
def test_nothing_leaves_the_window_at_any_width(browser, site, width):
    empty(site)
    with opened(browser, site, viewport={"width": width, "height": 800}) as page:
        draw(page, digit(3))
        name(page, 3)
        for tab in ("Draw", "Upload", "Statistics", "History", "Teach"):
            show(page, tab)
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        show(page, "Draw")
        edges = page.locator("#pad .desk, #pad .desk *, #pad .notice").locator("visible=true").evaluate_all(
            "all => all.map((one) => one.getBoundingClientRect().right)")
        assert max(edges) <= width
        for button in page.locator(".labels button, .tools button").all():
            box = button.bounding_box()
            assert box["width"] >= 40 and box["height"] >= 40


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_can_be_read_in_light_and_in_the_dark(browser, site, theme):
    empty(site)
    with opened(browser, site, f"?__theme={theme}") as page:
        draw(page, digit(3))
        levels = np.asarray(Image.open(io.BytesIO(page.locator("canvas.ink").screenshot())).convert("L"), float)
        paper, pen = (np.percentile(levels, share) for share in ((90, 1) if theme == "light" else (10, 99)))
        assert abs(paper - pen) > 200 and (paper > 128) == (theme == "light")
        name(page, 3)
        for tab, element in (("Draw", "#pad"), ("Statistics", "#statistics"), ("History", "#history")):
            show(page, tab)
            page.locator(f"{element} {'.bars' if tab == 'Draw' else 'img'}").first.wait_for()
            contrasts = page.locator(element).evaluate(CONTRASTS)
            assert len(contrasts) > 8
            assert [(text, ratio) for text, ratio in contrasts if ratio < 4.5] == []
        right, wrong, _ = page.locator("#statistics .key i").evaluate_all(
            "all => all.map((one) => getComputedStyle(one).backgroundColor)")  # blue and orange
        assert (right, wrong) == {"light": ("rgb(11, 92, 173)", "rgb(184, 71, 0)"),
                                  "dark": ("rgb(98, 174, 245)", "rgb(245, 136, 60)")}[theme]


def test_a_keyboard_and_a_screen_reader_find_all_there_is(page):
    page.get_by_role("tab", name="Draw").focus()
    for key, tab in (("ArrowRight", "Upload"), ("ArrowRight", "Statistics"), ("ArrowLeft", "Upload"),
                     ("ArrowLeft", "Draw"), ("ArrowLeft", "Teach"), ("ArrowRight", "Draw")):
        page.keyboard.press(key)
        expect(page.get_by_role("tab", name=tab)).to_be_focused()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
    canvas = page.get_by_role("img", name="Draw one digit here")
    for _ in range(12):
        page.keyboard.press("Tab")
        if canvas.evaluate("one => one === document.activeElement"):
            break
    expect(canvas).to_be_focused()
    assert canvas.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    draw(page, digit(3))
    name(page, 3)
    expect(page.get_by_role("status").filter(has_text="sure")).to_have_attribute("aria-live", "polite")
    expect(page.get_by_role("status").filter(has_text="Kept as no. 1")).to_be_visible()
    expect(page.locator(".notice")).to_have_attribute("role", "alert")
    tree = page.context.new_cdp_session(page)
    for tab in ("Draw", "Upload", "Statistics", "History", "Teach"):
        show(page, tab)
        page.wait_for_load_state("networkidle")
        nodes = tree.send("Accessibility.getFullAXTree")["nodes"]
        names = [node["name"]["value"] for node in nodes if not node["ignored"] and node["role"]["value"] in CONTROLS]
        assert len(names) > 6 and "" not in names


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(browser, site, theme):
    empty(site)
    # what fades in has a low contrast meanwhile
    with opened(browser, site, f"?__theme={theme}", bypass_csp=True, reduced_motion="reduce") as page:
        def check() -> None:
            assert page.evaluate("document.getAnimations().length") == 0
            found = Axe().run(page).response["violations"]
            assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found] == []

        check()
        draw(page, digit(3))
        name(page, 3)
        draw(page, ONE)
        expect(page.locator(".kept")).to_contain_text("Kept as no. 2")
        check()
        for tab, element in (("Statistics", "#statistics img"), ("History", "#history img"), ("Upload", "#upload"),
                             ("Teach", "#lesson")):
            show(page, tab)
            page.locator(element).first.wait_for()
            check()
        expect(page.get_by_role("button", name="Teach it")).to_be_enabled()
        check()
        upload(page, ROOT / "figures" / "samples" / "number.jpg")
        expect(page.locator("#seen")).to_contain_text("Read: ")
        expect(page.get_by_role("button", name="The picture, with an outline around each number")).to_be_visible()
        check()


# what goes wrong

def test_a_drawing_waits_for_a_locked_database_and_is_kept_by_itself(page, site):
    other = sqlite3.connect(site.database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        assert draw(page, digit(6)) == 6
        expect(page.locator(".notice")).to_contain_text("is locked by another program")
        expect(page.locator(".notice")).to_contain_text("One drawing is not kept yet")
        expect(page.locator(".kept")).to_have_text("Not kept yet.")
        expect(page.locator(".digit")).to_have_text("6")
    finally:
        other.execute("ROLLBACK")
        other.close()
    expect(page.locator(".kept")).to_have_text("Kept as no. 1.")
    expect(page.locator(".notice")).to_be_hidden()


def test_a_label_that_is_not_saved_does_not_stay_in_the_history(page, site):
    keep(page, (3, 3))
    other = sqlite3.connect(site.database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        row(page, 1).get_by_role("combobox").select_option("7")
        expect(page.get_by_text("is locked by another program").first).to_be_visible()
        expect(row(page, 1).get_by_role("combobox")).to_have_value("3")
    finally:
        other.execute("ROLLBACK")
        other.close()
    row(page, 1).get_by_role("combobox").select_option("8")
    expect(row(page, 1)).to_contain_text("wrong")
    expect(row(page, 1).get_by_role("combobox")).to_have_value("8")


def test_a_drawing_outlives_the_server_which_ctrl_c_ends_cleanly(page, site):
    draw(page, digit(2))
    name(page, 2)
    status = site.stop()
    if os.name != "nt":
        assert (status, site.errors()) == (0, "")
    draw(page, digit(6))
    expect(page.locator(".words")).to_contain_text("6, ")  # the browser reads by itself
    expect(page.locator(".notice")).to_contain_text("The server does not answer: is it still running?")
    expect(page.locator(".kept")).to_have_text("Not kept yet.")
    site.start("--port", str(urlsplit(site.address).port))
    expect(page.locator(".kept")).to_contain_text("Kept as no.")
    expect(page.locator(".words")).to_contain_text("6, ")
    expect(page.locator(".notice")).to_be_hidden()
