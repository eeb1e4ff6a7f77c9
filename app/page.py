"""The page on which digits are drawn and read: one definition for a notebook's cell and for a page of its own.

    app = Page(predictor, store)
    address = app.start()          # in a notebook, the cell shows the page
    app.stop()

Gradio serves it, from files of its own alone: the page asks no other machine for anything.
"""

import atexit
import base64
import functools
import hashlib
import html
import io
import math
import os
import shutil
import socket
import tempfile
import uuid
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

# before Gradio is imported; its own folder for uploads, so that no other program's are served
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
if "GRADIO_TEMP_DIR" not in os.environ:
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="mnist-page-")
    atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)

import anyio
import gradio as gr
import numpy as np
from PIL import Image, ImageDraw
from scipy.stats import binomtest
from starlette.middleware import Middleware

from app.guard import Guard
from app.store import Filter, Statistics, Store, StoreError
from app.store import Prediction as Row
from mnist_picture import FEWEST, PictureError, read_picture, to_mnist
from mnist_predict import MNISTPredictor, Prediction
from mnist_utils import FILES, write_idx

HERE = Path(__file__).parent
DRAWING_BYTES = 200_000  # of a drawing's PNG file; one of 280 × 280 pixels has about 5,000
DRAWING_SIDE = 400  # pixels; pad.js sends 280, and none may keep the server busy for long
MARGIN = 20  # pixels of paper around what is read of a drawing
UPLOAD_BYTES = 20_000_000
MESSAGE_BYTES = 1_000_000  # of every other request
ROWS = 20  # drawings on one page of the history
LATEST = 12  # drawings in the statistics
TEST_SHARE = 5  # each so many-th labelled drawing is exported to test on
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # told apart by the colour-blind (Okabe and Ito)
DAYS = 14
# Gradio's own weights are 400 and 600, but its file for 600 lacks the letters
THEME = gr.themes.Default(primary_hue="blue", font=[gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)),
                                                    "ui-sans-serif", "system-ui", "sans-serif"])
ANY = "any"


class Page:
    """The page, its functions, and the server behind it."""

    def __init__(self, predictor: MNISTPredictor, store: Store, model_path: str | os.PathLike) -> None:
        """`model_path` is the file that the predictor has loaded: its digest is kept with each drawing."""
        self.predictor, self.store = predictor, store
        self.digest = hashlib.sha256(Path(model_path).read_bytes()).hexdigest()
        self.blocks = self._build()

    def start(self, host: str = "127.0.0.1", port: int | None = None, user: str | None = None,
              password: str | None = None, inline: bool | None = None) -> str:
        """Serve the page in the background and return its address; OSError where the port is taken."""
        host = host.strip("[]")
        try:  # Gradio would say neither which address failed nor why
            socket.create_server((host, port or 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
        except OSError as error:
            raise OSError(f"cannot listen on {host}{f', port {port}' if port else ''}: {error.strerror}") from error
        _, address, _ = self.blocks.launch(
            server_name=f"[{host}]" if ":" in host else host, server_port=port or None, inline=inline,
            auth=(user, password) if user and password else None, share=False, quiet=True, prevent_thread_lock=True,
            max_file_size=UPLOAD_BYTES, ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False,
            run_history=False, footer_links=["api"], blocked_paths=[str(HERE.parent)], theme=THEME, height=900,
            app_kwargs={"middleware": [Middleware(Guard, most=MESSAGE_BYTES, upload=UPLOAD_BYTES + MESSAGE_BYTES)]})
        return address

    def stop(self) -> None:
        """End the server; what it has confirmed as kept is kept."""
        self.blocks.close(verbose=False)
        self.store.close()

    # drawing: called by pad.js

    def recognise(self, message: dict) -> dict:
        """The answer to a drawing, which is not kept."""
        try:
            answer = self.predictor.predict(_inked(_drawing(message)))
        except PictureError as error:
            return {"problem": str(error)}
        return {"digit": answer.digit, "confidence": answer.confidence, "probabilities": answer.probabilities.tolist(),
                "reason": answer.reason, "seen": _data_url(answer.picture) if answer.digit is not None else None}

    def keep(self, message: dict) -> dict:
        """Keep a drawing, with its label if there is one; "id" is there only once it is on the disk."""
        try:
            picture = _drawing(message)
            drawing, label = _key(message.get("drawing")), message.get("label")
            if label is not None and not (type(label) is int and label in range(10)):  # True is no label
                raise ValueError("the label is no digit")
            answer = self.predictor.predict(_inked(picture))
        except ValueError as error:
            return {"id": None, "reason": str(error)}
        if answer.digit is None:
            return {"id": None, "reason": answer.reason}
        try:
            row = self._save(drawing, answer, _grey(picture))
            if label is None:
                return {"id": row, "digit": answer.digit}
            self.store.label(row, label)
            return {"id": row, "digit": answer.digit, "score": _score(self.store.statistics())}
        except StoreError as error:
            return {"problem": str(error)}

    def state(self, message: None = None) -> dict:
        """The score so far, or why nothing is being kept."""
        try:
            return {"problem": None, "score": _score(self.store.statistics())}
        except StoreError as error:
            return {"problem": str(error), "score": ""}

    def _save(self, drawing: uuid.UUID, answer: Prediction, picture: Image.Image) -> int:
        return self.store.save(drawing, answer.digit, answer.confidence, answer.probabilities.tolist(),
                               _png(picture), self.digest)

    # reading a picture

    def read(self, file: str | None, keep: bool) -> tuple[dict, Image.Image | None, str]:
        """The digits in a picture as values, the picture with their boxes, and what the network saw."""
        if file is None:
            raise gr.Error("choose a picture first", print_exception=False)
        try:
            picture = read_picture(file)
            digits = self.predictor.read(file)
        except PictureError as error:
            raise gr.Error(str(error).replace(f"{file:.100}", "the file"), print_exception=False) from error
        except MemoryError as error:
            raise gr.Error("the picture is too large for this machine", print_exception=False) from error
        notes = list(digits[0].notes) if digits else ["it is blank: there is no ink to be seen"]
        found = [{"digit": one.digit, "confidence": round(one.confidence, 4), "trusted": one.trusted,
                  "reason": one.reason, "box": one.box} for one in digits]
        if keep and (problem := self._keep_all(digits)):
            notes.append(problem)
        return {"digits": found, "notes": notes}, _boxed(picture.grey, picture.scale, digits), _cards(digits, notes)

    def _keep_all(self, digits: list[Prediction]) -> str:
        """Keep each digit as the network saw it; why that failed, if it did."""
        try:
            for one in digits:
                if one.digit is not None:
                    self._save(uuid.uuid4(), one, Image.fromarray(one.picture))
        except StoreError as error:
            return f"not kept: {error}"
        return ""

    # statistics

    def statistics(self) -> str:
        """What the tab of this name shows."""
        numbers, latest = self.store.statistics(), self.store.search(limit=LATEST)
        digits = [(str(digit), [(right / count if count else 0, BLUE)], f"{right:,} of {count:,}")
                  for digit, (count, right) in enumerate(numbers.per_digit)]
        most = max(1, *numbers.histogram.sum(1).tolist())
        sure = [(f"{10 * tenth} to {10 * tenth + 10} %", list(zip((row / most).tolist(), (BLUE, ORANGE, GREY))),
                 f"{row.sum():,}") for tenth, row in enumerate(numbers.histogram)]
        busiest = max(numbers.per_day.values(), default=1)
        days = [(str(day), [(count / busiest, GREY)], f"{count:,}")
                for day, count in list(numbers.per_day.items())[-DAYS:]]
        key = f"<p>{_swatch(BLUE)} read right {_swatch(ORANGE)} read wrong {_swatch(GREY)} no label yet</p>"
        return _summary(numbers) + _row([
            _bars("Read right, of those labelled as", digits), _confusion(numbers),
            f"<div>{_bars('Drawings, by how sure the network was', sure)}{key}</div>",
            _bars(f"Drawings a day (UTC), the last {DAYS} days that had any", days),
        ]) + "<h3>Latest drawings</h3>" + _gallery(latest)

    # history

    def history(self, predicted: str, label: str, verdict: str, since: datetime | None, until: datetime | None,
                most: float, page: float) -> tuple[list[dict], str, int]:
        """The wanted drawings of one page, how many there are, and the page itself where that one is past the end."""
        wanted = _filter(predicted, label, verdict, since, until, most)
        count = self.store.count(wanted)
        last = max(1, math.ceil(count / ROWS))
        page = int(min(max(page or 1, 1), last))
        rows = self.store.search(wanted, ROWS, (page - 1) * ROWS)
        text = f"{count:,} {'drawing' if count == 1 else 'drawings'}; page {page} of {last}"
        return [_listed(row) for row in rows], text, page

    def relabel(self, event: gr.EventData) -> None:
        """Correct the label of a drawing, or take it back."""
        self.store.label(_number(event, "id") or 0, _number(event, "label"))

    def remove(self, event: gr.EventData) -> None:
        """Delete a drawing."""
        self.store.delete(_number(event, "id") or 0)

    def csv(self, predicted: str, label: str, verdict: str, since: datetime | None, until: datetime | None,
            most: float) -> dict:
        """A CSV file of the wanted drawings."""
        path = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]), "drawings.csv")
        with open(path, "w", encoding="utf-8", newline="") as file:
            self.store.export_csv(file, _filter(predicted, label, verdict, since, until, most))
        return gr.update(value=str(path), visible=True)

    def idx(self) -> dict:
        """A ZIP file with all labelled drawings as IDX files, laid out as dataset/ is."""
        pictures = [(to_mnist(picture), label) for picture, label in self.store.labelled()]
        if not pictures:
            raise gr.Error("no drawing has a label yet: say what some of them are first", print_exception=False)
        folder = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]))
        with zipfile.ZipFile(folder / "drawings.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            tested = pictures[TEST_SHARE - 1::TEST_SHARE]
            trained = [one for number, one in enumerate(pictures, 1) if number % TEST_SHARE]
            for split, part in (("train", trained), ("test", tested)):
                if part:
                    for name, values in zip(FILES[split], zip(*part)):
                        write_idx(folder / "values", np.array(values, np.uint8))
                        archive.write(folder / "values", name)
        (folder / "values").unlink()
        return gr.update(value=str(folder / "drawings.zip"), visible=True)

    # the page itself

    def _build(self) -> gr.Blocks:
        storing = anyio.CapacityLimiter(8)  # threads of its own, so that all else goes on while it waits for a database
        with gr.Blocks(title="Draw a digit", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            gr.Markdown("# Draw a digit\nA network of 21,840 parameters says which one it is. "
                        "All of it happens on this machine: nothing is sent anywhere else.")
            with gr.Tab("Draw"):
                gr.HTML(html_template=_file("pad.html"), css_template=_file("pad.css"), js_on_load=_file("pad.js"),
                        apply_default_css=False, elem_id="pad", server_functions=[
                            _served(self.recognise), _served(self.keep, storing), _served(self.state, storing)])
            with gr.Tab("Upload"):
                self._build_upload()
            with gr.Tab("Statistics") as statistics:
                self._build_statistics(statistics)
            with gr.Tab("History") as history:
                self._build_history(history)
        return blocks

    def _build_upload(self) -> None:
        gr.Markdown("A photo, a scan or a drawing, with one digit or several. The page should fill the picture.")
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Picture", file_types=["image"], type="filepath", elem_id="upload")
                keep = gr.Checkbox(True, label="Keep what was read, so that it can be labelled in the history")
                read = gr.Button("Read it", variant="primary", elem_id="read")
            with gr.Column():
                boxed = gr.Image(label="Where the digits are", show_label=False, interactive=False, format="png",
                                 buttons=[])
        seen = gr.HTML(elem_id="seen", css_template=_file("tables.css"), apply_default_css=False)
        with gr.Accordion("As values", open=False):
            values = gr.JSON(show_label=False)
        answer = [values, boxed, seen]
        read.click(self.read, [file, keep], answer, api_name="read", concurrency_limit=2, show_progress_on=boxed)
        file.change(lambda: (None, None, ""), None, answer, api_visibility="private", show_progress="hidden")

    def _build_statistics(self, tab: gr.Tab) -> None:
        shown = gr.HTML(elem_id="statistics", css_template=_file("tables.css"), apply_default_css=False)
        gr.Button("Count again").click(_plainly(self.statistics), None, shown, api_name="statistics")
        tab.select(_plainly(self.statistics), None, shown, api_visibility="private")

    def _build_history(self, tab: gr.Tab) -> None:
        digits = [ANY, *map(str, range(10))]
        with gr.Row():
            predicted = gr.Dropdown(digits, value=ANY, label="Read as", min_width=120)
            label = gr.Dropdown(digits, value=ANY, label="Labelled", min_width=120)
            verdict = gr.Dropdown(["all", "right", "wrong", "unlabelled"], value="all", label="Answer", min_width=120)
        with gr.Row():
            most = gr.Slider(0, 100, 100, step=1, label="Confidence at most (%)", min_width=200)
            since, until = (gr.DateTime(label=f"{word} (UTC)", type="datetime", include_time=False, timezone="UTC",
                                        min_width=200, elem_classes="day") for word in ("From", "Before"))
        count = gr.Markdown(elem_id="count")
        rows = gr.HTML([], html_template=_file("history.html"), css_template=_file("history.css"),
                       js_on_load=_file("history.js"), apply_default_css=False, elem_id="history")
        with gr.Row():
            back = gr.Button("Newer")
            page = gr.Number(1, label="Page", precision=0, minimum=1, min_width=80)
            forth = gr.Button("Older")
        with gr.Row():
            as_csv = gr.Button("Export these as CSV")
            as_idx = gr.Button("Export all labelled ones as IDX files")
        export = gr.File(label="Export", interactive=False, visible=False, elem_id="export")
        gr.Markdown("To teach the network your hand, unpack the IDX export into a folder and run\n\n"
                    "`python run_model.py --mode train --resume --data FOLDER`")
        wanted = [predicted, label, verdict, since, until, most]
        shown = [rows, count, page]
        history = _plainly(self.history)
        tab.select(history, [*wanted, page], shown, api_visibility="private")
        for one in wanted:
            one.change(lambda *values: history(*values, 1), wanted, shown, api_visibility="private",
                       show_progress="hidden")
        page.submit(history, [*wanted, page], shown, api_visibility="private")
        back.click(lambda *values: history(*values[:-1], (values[-1] or 1) - 1), [*wanted, page], shown,
                   api_visibility="private")
        forth.click(lambda *values: history(*values[:-1], (values[-1] or 1) + 1), [*wanted, page], shown,
                    api_visibility="private")
        for trigger, change in ((rows.input, self.relabel), (rows.delete, self.remove)):
            trigger(_plainly(change), None, None, api_visibility="private", show_progress="hidden").then(
                history, [*wanted, page], shown, api_visibility="private", show_progress="hidden")
        as_csv.click(_plainly(self.csv), wanted, export, api_name="csv")
        as_idx.click(_plainly(self.idx), None, export, api_name="idx")


def _served(function: Callable[[Any], dict], limiter: anyio.CapacityLimiter | None = None) -> Callable:
    """The function as pad.js calls it, in one of the limiter's threads.

    Without a limiter it runs at once, in the server's own thread: what takes 5 ms there takes 7 in
    another one, and under load 9, because Python lets only one of them work at a time.
    """
    async def served(message):
        if limiter is None:
            return function(message)
        return await anyio.to_thread.run_sync(function, message, limiter=limiter)

    served.__name__ = function.__name__
    return served


def _plainly(function: Callable) -> Callable:
    """The function, with what the database reports shown on the page, and nothing in the server's log."""
    @functools.wraps(function)
    def shown(*arguments):
        try:
            return function(*arguments)
        except (StoreError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from error
    return shown


def _file(name: str) -> str:
    return (HERE / name).read_text("utf-8")


def _drawing(message: dict) -> Image.Image:
    """The picture in a message from pad.js; PictureError for what is none, or too large."""
    text = message.get("picture") if isinstance(message, dict) else None
    if not isinstance(text, str) or len(text) > DRAWING_BYTES * 4 // 3:
        raise PictureError("the drawing is missing or too large")
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
        if max(picture.size) <= DRAWING_SIDE:
            picture.load()
    except Exception as error:  # Pillow raises a dozen types for damaged files
        raise PictureError("the drawing is no PNG file, or a damaged one") from error
    if max(picture.size) > DRAWING_SIDE:
        raise PictureError("the drawing is too large")
    return picture


def _inked(picture: Image.Image) -> Image.Image:
    """The part that is drawn on, with what reading it needs of the paper: it takes time by the pixel."""
    left, top, right, bottom = picture.getbbox() or (0, 0, *picture.size)
    edges = []
    for low, high, side in ((left, right, picture.width), (top, bottom, picture.height)):
        length = min(max(high - low + 2 * MARGIN, FEWEST), side)  # a smaller one would be enlarged
        start = min(max((low + high - length) // 2, 0), side - length)
        edges.append((start, start + length))
    (left, right), (top, bottom) = edges
    return picture.crop((left, top, right, bottom))


def _grey(picture: Image.Image) -> Image.Image:
    """The picture in grey, on paper."""
    return Image.fromarray(np.rint(255 * read_picture(picture).grey).astype(np.uint8))


def _key(text: Any) -> uuid.UUID:
    """A drawing's key, as pad.js makes them."""
    try:
        return uuid.UUID(text)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError("the drawing has no key") from error


def _number(event: gr.EventData, name: str) -> int | None:
    """A number that history.js sends along, or None where it is left empty."""
    value = getattr(event, name, None)
    if value in ("", None):
        return None
    if not (type(value) is int or (isinstance(value, str) and value.isdecimal())):
        raise ValueError(f"the {name} is no number")
    return int(value)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _data_url(picture: np.ndarray | bytes) -> str:
    data = picture if isinstance(picture, bytes) else _png(Image.fromarray(picture))
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _score(numbers: Statistics) -> str:
    if not numbers.labelled:
        return f"{numbers.total:,} drawings so far, none labelled." if numbers.total else ""
    return (f"So far {numbers.right:,} of {numbers.labelled:,} labelled drawings were read right "
            f"({_percent(numbers.accuracy)}).")


def _filter(predicted: str, label: str, verdict: str, since: datetime | None, until: datetime | None,
            most: float) -> Filter:
    number = {str(digit): digit for digit in range(10)}
    return Filter(number.get(predicted), number.get(label), verdict, since, until,
                  most=None if most >= 100 else most / 100)


# what the tabs show, as HTML; all that is not a number is escaped

def _boxed(grey: np.ndarray, scale: float, digits: list[Prediction]) -> Image.Image:
    """The picture (H, W) in grey, with a box and a number around each digit."""
    picture = Image.fromarray(np.rint(255 * grey).astype(np.uint8)).convert("RGB")
    if max(picture.size) < 300:
        scale *= picture.width / (width := picture.width * math.ceil(300 / max(picture.size)))
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for one in digits:
        left, top, right, bottom = (edge / scale for edge in one.box)
        colour = BLUE if one.trusted else ORANGE
        draw.rectangle((left - 3, top - 3, right + 3, bottom + 3), outline=colour, width=3)
        draw.text((left, max(0, top - 26)), "?" if one.digit is None else str(one.digit), fill=colour, font_size=22)
    return picture


def _card(picture: np.ndarray | bytes, *lines: str) -> str:
    text = "<br>".join(map(html.escape, filter(None, lines)))
    return f'<figure><img src="{_data_url(picture)}" alt=""><figcaption>{text}</figcaption></figure>'


def _row(parts: list[str]) -> str:
    return f'<div class="row">{"".join(parts)}</div>'


def _cards(digits: list[Prediction], notes: list[str]) -> str:
    cards = [_card(one.picture, "?" if one.digit is None else f"{one.digit}, {_percent(one.confidence)} sure",
                   one.reason and f"not trusted: {one.reason}") for one in digits]
    read = "".join("?" if one.digit is None else str(one.digit) for one in digits)
    head = f"<p>Read: <strong>{read}</strong>. This is what the network saw:</p>" if digits else ""
    return head + _row(cards) + "".join(f"<p>{html.escape(note)}</p>" for note in notes)


def _summary(numbers: Statistics) -> str:
    if not numbers.labelled:
        return f"<p>{numbers.total:,} drawings, none of them labelled yet: say on the first tab what yours were.</p>"
    low, high = binomtest(numbers.right, numbers.labelled).proportion_ci(method="wilson")
    return (f'<p class="summary"><strong>{_percent(numbers.accuracy)}</strong> of {numbers.labelled:,} labelled '
            f"drawings read right ({numbers.right:,}; 95 % interval {_percent(low)} to {_percent(high)}). "
            f"{numbers.total:,} drawings in all.</p>")


def _bars(title: str, rows: list[tuple[str, list[tuple[float, str]], str]]) -> str:
    """A bar chart: for each row its name, the parts of its bar as shares of the longest, and its number."""
    body = ""
    for name, parts, number in rows:
        bar = "".join(f'<span style="width:{share:.2%};background:{colour}"></span>' for share, colour in parts)
        body += f'<tr><th scope="row">{name}</th><td><div>{bar}</div></td><td>{number}</td></tr>'
    return f'<table class="bars"><caption>{title}</caption>{body}</table>'


def _swatch(colour: str) -> str:
    return f'<span class="swatch" style="background:{colour}"></span>'


def _confusion(numbers: Statistics) -> str:
    counts = numbers.confusion
    strength = 0.65 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    head = "".join(f'<th scope="col">{digit}</th>' for digit in range(10))
    body = ""
    for truth in range(10):
        cells = "".join(f'<td style="background:rgba({"0,114,178" if truth == digit else "213,94,0"},'
                        f'{strength[truth, digit]:.2f})">{counts[truth, digit] or ""}</td>' for digit in range(10))
        body += f'<tr><th scope="row">{truth}</th>{cells}</tr>'
    return ('<table class="confusion"><caption>What it really was (down), and was read as (across)</caption>'
            f"<tr><td></td>{head}</tr>{body}</table>")


def _gallery(rows: list[Row]) -> str:
    return _row([_card(row.image_data, f"read as {row.predicted_digit} ({_percent(row.confidence, 0)})",
                       "no label yet" if row.true_label is None else f"it was a {row.true_label}") for row in rows])


def _listed(row: Row) -> dict:
    """A row as history.html shows it."""
    label = "" if row.true_label is None else str(row.true_label)
    return {"id": row.id, "time": f"{row.timestamp:%Y-%m-%d %H:%M:%S}", "digit": row.predicted_digit,
            "confidence": _percent(row.confidence), "image": _data_url(row.image_data), "label": label,
            "verdict": "" if label == "" else "right" if row.true_label == row.predicted_digit else "wrong"}
