"""The page on which people draw digits and the network reads them. It opens in a notebook's cell or in a browser.

    app = Page(predictor, store)
    address = app.start()          # in a notebook, the cell shows the page
    app.stop()

Gradio serves the page with all the files that it needs: the browser contacts no other machine.
"""

import base64
import contextlib
import functools
import hashlib
import io
import math
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from app.temporary import own_folder
from mnist import html
from mnist.finetune import REHEARSAL_IMAGES, FineTuning, can_go_back, restore_weights
from mnist.picture import PictureError, crop_drawing, to_mnist
from mnist.predict import MNISTPredictor, Number, Prediction
from mnist.recipes import FINE_TUNING
from mnist.runs import sole_training
from mnist.weights import WeightsError

# Gradio reads both variables when it is imported. It serves every file in its upload folder, so this page needs
# a folder of its own: the usual one may hold the uploads of other programs.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
if "GRADIO_TEMP_DIR" not in os.environ:
    os.environ["GRADIO_TEMP_DIR"] = own_folder()

import anyio
import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageOps
from starlette.middleware import Middleware

from app import views
from app.guard import Guard
from app.settings import is_loopback
from app.store import Store, StoreError
from app.table import Filter
from mnist_utils import FILES, write_idx

HERE = Path(__file__).parent
MNIST = HERE.parent / "dataset"
SAMPLES = HERE.parent / "figures" / "samples"
EXAMPLES = {"A page on a table": SAMPLES / "page.jpg", "Digits that touch": SAMPLES / "number.jpg",
            "A single digit": SAMPLES / "seven.jpg"}
DRAWING_BYTES = 200_000  # largest PNG file of a drawing; one of 280 × 280 pixels has about 5,000
DRAWING_SIDE = 400  # pixels, at most: pad.js sends 280, and a larger drawing would keep the server busy
UPLOAD_BYTES = 20_000_000  # largest uploaded file
MESSAGE_BYTES = 1_000_000  # largest body of any other request
QUEUE = 50  # requests that may wait; answers while drawing do not go through this queue
SESSIONS = 200  # browser windows whose state Gradio keeps in memory, 70 kB each
BROWSER_PARAMETERS = 100_000  # of a network that a browser computes at every frame
ROWS = 24  # drawings on one page of the history
LATEST = 12  # most recent drawings shown in the statistics
TEST_SHARE = 5  # one of this many drawings is exported to the test split
# by default Gradio uses the weights 400 and 600, but its font file for 600 contains no letters
THEME = gr.themes.Default(primary_hue="blue", font=[gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)),
                                                    "ui-sans-serif", "system-ui", "sans-serif"]).set(
    # white on Gradio's own blue has a contrast of 3.7, and text needs 4.5
    button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover_dark="*primary_800")
# as wide as reads well; all tabs in sight, where Gradio hides some in a menu; no motion, where a visitor prefers none
STYLE = """main.app { max-width: 90rem; margin: 0 auto; }
.show-api, .or { color: var(--body-text-color) !important; }
@media (max-width: 30rem) {
  main.app { padding-left: 0.75rem !important; padding-right: 0.75rem !important; }
  .tab-container button { padding: 0 0.4rem !important; font-size: clamp(0.8rem, 4vw, 1rem) !important; }
}
@media (prefers-reduced-motion: reduce) {
  *, ::before, ::after { animation: none !important; transition: none !important; }
}"""
# an export is downloaded once its link has taken the place of the last export's
DOWNLOAD = """async () => {
  const known = document.body.dataset;
  for (let turn = 0; turn < 50; turn += 1) {
    await new Promise((go) => setTimeout(go, 100));
    const link = document.querySelector("#export a");
    if (!link || link.href === known.exported) continue;
    known.exported = link.href;
    return link.click();
  }
}"""
ANY = "any"
PROGRESS = gr.Progress()  # Gradio gives each call of a function with this default its own


class Page:
    """The page, its functions, and the server behind it."""

    def __init__(self, predictor: MNISTPredictor, store: Store) -> None:
        self.predictor, self.store = predictor, store
        self.blocks = self._build()

    def start(self, host: str = "127.0.0.1", port: int | None = None, user: str | None = None,
              password: str | None = None, inline: bool | None = None) -> str:
        """Serve the page in the background and return its address.

        Without a port it takes the first free one from 7860 up. With `user` and `password`, visitors
        must log in. `inline` says whether a notebook's cell shows the page; None means that it does
        wherever there is a notebook. Raises OSError where the address or the port cannot be used.
        """
        host = host.strip("[]")
        try:  # Gradio's own error gives neither the address nor the reason
            socket.create_server((host, port or 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
        except OSError as error:
            raise OSError(f"cannot listen on {host}{f', port {port}' if port else ''}: {error.strerror}") from error
        _, address, _ = self.blocks.launch(
            server_name=f"[{host}]" if ":" in host else host, server_port=port or None, inline=inline,
            auth=(user, password) if user and password else None, share=False, quiet=True, prevent_thread_lock=True,
            max_file_size=UPLOAD_BYTES, ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False,
            run_history=False, state_session_capacity=SESSIONS, footer_links=["api"], theme=THEME, css=STYLE,
            js=_file("page.js"),
            height=900, blocked_paths=[str(HERE.parent)], app_kwargs={"middleware": [Middleware(
                Guard, most=MESSAGE_BYTES, upload=UPLOAD_BYTES + MESSAGE_BYTES, local=is_loopback(host))]})
        return address

    def stop(self) -> None:
        """Stop the server. Drawings that it has confirmed as kept stay kept."""
        self.blocks.close(verbose=False)
        self.store.close()

    # drawing: called by pad.js

    def recognise(self, message: dict) -> dict:
        """Read a drawing without keeping it.

        The message holds "picture", base64 of a PNG file. The answer holds "digit" (None where the
        drawing is not exactly one digit), "confidence", "probabilities" and "reason" (why not to trust
        it, or empty). Where the picture cannot be read, the answer holds only "problem", a sentence.
        """
        try:
            answer = self.predictor.predict(crop_drawing(_drawing(message)), "dark")
        except PictureError as error:
            return {"problem": str(error)}
        return {"digit": answer.digit, "confidence": answer.confidence, "probabilities": answer.probabilities.tolist(),
                "reason": answer.reason}

    def keep(self, message: dict) -> dict:
        """Keep a drawing, with its label if there is one.

        The message holds "picture", base64 of a PNG file, "drawing", its key, and "label", a digit or
        None. The answer holds "id", "digit" and "score" once the drawing is on the disk. Where the
        message holds no drawing of a digit, nothing with its key is kept, "id" is None and "reason"
        says why. Where the database fails, the answer holds only "problem", a sentence; the same
        message may be sent again.
        """
        try:
            picture = _drawing(message)
            drawing, label = _key(message.get("drawing")), message.get("label")
            if label is not None and not (type(label) is int and label in range(10)):  # True would pass as 1
                raise ValueError("the label is no digit")
            predictor = self.predictor  # another thread may replace it
            answer = predictor.predict(crop_drawing(picture), "dark")
        except ValueError as error:
            return {"id": None, "reason": str(error)}
        try:
            if answer.digit is None:
                self.store.discard(drawing)  # it may have been a digit before
                return {"id": None, "reason": answer.reason}
            row = self._save(drawing, answer, _grey(picture), predictor.digest)
            if label is not None:
                self.store.label(row, label)
        except StoreError as error:
            return {"problem": str(error)}
        state = {"score": None, "network": self.predictor.digest} if label is None else self.state()
        return {"id": row, "digit": answer.digit, "score": state["score"], "network": state["network"]}

    def discard(self, message: dict) -> dict:
        """Delete the drawing with the key "drawing", if there is one. In the answer, "id" is None."""
        try:
            self.store.discard(_key(message.get("drawing") if isinstance(message, dict) else None))
        except ValueError as error:
            return {"id": None, "reason": str(error)}
        except StoreError as error:
            return {"problem": str(error)}
        return {"id": None, "score": self.state()["score"]}

    def state(self, message: None = None) -> dict:
        """The "score" so far, see `views.score`, or in "problem" why nothing is being kept; and which "network" reads.

        The browser asks for the network, see `network`, where this is not the one that it has.
        """
        state = {"problem": None, "score": None, "network": self.predictor.digest}
        try:
            return state | {"score": views.score(*self.store.score()[1:])}
        except StoreError as error:
            return state | {"problem": str(error)}

    def network(self, message: None = None) -> dict | None:
        """The network for the browser, or None where that could not compute it or not keep up with the pen."""
        predictor = self.predictor
        if sum(one.numel() for one in predictor.model.parameters()) > BROWSER_PARAMETERS:
            return None
        try:
            return {"digest": predictor.digest, **html.network_of(predictor.model, predictor.metadata)}
        except ValueError:
            return None

    def _save(self, drawing: uuid.UUID, answer: Prediction, picture: Image.Image, digest: str) -> int:
        return self.store.save(drawing, answer.digit, answer.confidence, answer.probabilities.tolist(),
                               views.png(picture), digest)

    # reading a picture

    def read(self, file: str | None, keep: bool, doubtful: Sequence[int] = (),
             again: bool = False) -> tuple[dict, Image.Image | None, str]:
        """Read the numbers in a picture file.

        With `keep`, the digits of trusted numbers are kept, and those of the `doubtful` ones, which are
        named by their places. With `again`, those of other doubtful numbers are deleted.

        Gives the numbers as values, the picture with an outline around each, and HTML that shows
        what the network saw of each digit. Raises gr.Error, a sentence, where the picture cannot be read.
        """
        if file is None:
            raise gr.Error("choose a picture first", print_exception=False)
        try:
            numbers = self.predictor.read_numbers(file)
            picture, scale = views.shown(file)
        except PictureError as error:
            raise gr.Error(str(error).replace(file, "the file"), print_exception=False) from error
        except MemoryError as error:
            raise gr.Error("the picture is too large for this machine's memory: choose a smaller one",
                           print_exception=False) from error
        except (WeightsError, OSError) as error:
            raise gr.Error("the digit detector's weights file is missing or damaged: restore mnist/detector.pth",
                           print_exception=False) from error
        notes = list(dict.fromkeys(note for number in numbers for note in number.notes))
        notes += [] if numbers else ["no digit was found"]
        found = [{"text": number.text, "confidence": round(number.confidence, 4), "trusted": number.trusted,
                  "reason": number.reason, "box": number.box, "corners": number.corners,
                  "digits": [{"digit": one.digit, "confidence": round(one.confidence, 4), "trusted": one.trusted,
                              "reason": one.reason, "box": one.box} for one in number.digits]} for number in numbers]
        if keep and numbers:
            digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
            notes.append(self._keep_all(numbers, doubtful, digest, again))
        return {"numbers": found, "notes": notes}, views.outlined(picture, scale, numbers), views.cards(numbers, notes)

    def read_again(self, file: str | None, keep: bool, doubtful: list[int]) -> tuple:
        """Keep the ticked numbers of a file that was read before, and no other doubtful ones."""
        return self.read(file, keep, doubtful, again=True) if keep and file is not None else (gr.skip(),) * 3

    def _read_example(self, path: Path) -> tuple:
        """Read one of the page's own pictures in place of a file."""
        return None, *self.read(str(path), keep=False)

    def _keep_all(self, numbers: list[Number], doubtful: Sequence[int], file: str, again: bool) -> str:
        """Keep the digits as the network saw them. Returns a note: how many were kept, and why not all.

        A digit's key comes from `file`, the hash of the picture file, and from its box. So a file
        that is read again adds no new drawings; and then the digits that are not kept are deleted.
        """
        digits = [one for number in numbers for one in number.digits]
        chosen = [(one, number.digest) for place, number in enumerate(numbers)
                  if number.trusted or place in doubtful for one in number.digits]
        kept = set[uuid.UUID]()
        try:
            for one, read_by in chosen:
                self._save(key := _key_of(file, one), one, Image.fromarray(one.picture), read_by)
                kept.add(key)
            for key in {_key_of(file, one) for one in digits} - kept if again else ():
                self.store.discard(key)  # its tick was taken away
        except StoreError as error:
            return f"{len(kept)} of {len(chosen)} kept: {error}"
        left = f", {len(digits) - len(kept)} of doubtful numbers not kept" if len(digits) > len(kept) else ""
        return f"{len(kept)} kept{left}" + (": label them on the History tab" if kept else "")

    # statistics

    def statistics(self) -> str:
        """The HTML of the Statistics tab. Raises StoreError where the database fails."""
        return views.statistics(self.store.statistics(), self.store.least_sure(LATEST), self.store.search(limit=LATEST))

    # history

    def history(self, predicted: str, label: str, verdict: str, since: datetime | None, until: datetime | None,
                most: float, page: float) -> tuple[list[dict], str, int]:
        """One page of the drawings that match the filters, most recent first.

        Gives the drawings as history.js shows them, a line with their number, and the page's number:
        the last page where `page` is past the end. `most` is in percent. Raises StoreError where the
        database fails, and ValueError where a filter is invalid.
        """
        wanted = _filter(predicted, label, verdict, since, until, most)
        count = self.store.count(wanted)
        last = max(1, math.ceil(count / ROWS))
        page = int(min(max(page or 1, 1), last))
        rows = self.store.search(wanted, ROWS, (page - 1) * ROWS)
        text = f"{count:,} {'drawing' if count == 1 else 'drawings'}; page {page} of {last}"
        return [views.listed(row) for row in rows], text, page

    def relabel(self, event: gr.EventData) -> None:
        """Change the label of drawings, or remove it."""
        label = _number(getattr(event, "label", None), "label")
        for drawing in _drawings(event):
            self.store.label(drawing, label)

    def remove(self, event: gr.EventData) -> None:
        """Delete drawings."""
        for drawing in _drawings(event):
            self.store.delete(drawing)

    def csv(self, predicted: str, label: str, verdict: str, since: datetime | None, until: datetime | None,
            most: float) -> dict:
        """Export the drawings that match the filters as a CSV file."""
        path = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]), "drawings.csv")
        try:
            with open(path, "w", encoding="utf-8", newline="") as file:
                self.store.export_csv(file, _filter(predicted, label, verdict, since, until, most))
        except StoreError:
            shutil.rmtree(path.parent)
            raise
        return gr.update(value=str(path), visible=True)

    def idx(self) -> dict:
        """Export all labelled drawings as a ZIP file of IDX files, which have the same names as those in dataset/."""
        with tempfile.TemporaryDirectory(dir=os.environ["GRADIO_TEMP_DIR"]) as folder:
            self._write_labelled(Path(folder), test=True)
            archive = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]), "drawings")
            return gr.update(value=shutil.make_archive(str(archive), "zip", folder), visible=True)

    def _write_labelled(self, folder: Path, test: bool) -> None:
        """Write all labelled drawings as IDX files; with `test`, one in TEST_SHARE as test images.

        Raises ValueError where no drawing has a label.
        """
        parts: dict[str, list] = {"train": [], "test": []}
        for number, picture, label in self.store.labelled():  # in every export, a drawing is in the same split
            parts["train" if number % TEST_SHARE or not test else "test"].append((to_mnist(picture), label))
        if not parts["train"]:
            parts = {"train": parts["test"], "test": []}
        if not parts["train"]:
            raise ValueError("no drawing has a label yet: label some on the Draw or the History tab first")
        for split, part in parts.items():
            if part:
                for name, values in zip(FILES[split], zip(*part)):
                    (folder / name).parent.mkdir(exist_ok=True)
                    write_idx(folder / name, np.array(values, np.uint8))

    # teaching

    def teach(self, progress: gr.Progress = PROGRESS) -> str:
        """Fine-tune the network on all labelled drawings, and use it. Gives HTML: the accuracy before and after.

        Raises gr.Error, a sentence, where that cannot be done; then the network is unchanged.
        """
        recipe, path = FINE_TUNING.settings(), self.predictor.path
        with _told(path), sole_training(path), tempfile.TemporaryDirectory(
                dir=os.environ["GRADIO_TEMP_DIR"]) as folder:
            self._write_labelled(Path(folder), test=False)
            progress(0.02, "reading the images")
            run = FineTuning(path, folder, MNIST, seed=0, device=torch.device("cpu"))
            for epoch in run.epochs(**recipe):
                progress(epoch.number / (recipe["epochs"] + 1), f"epoch {epoch.number} of {recipe['epochs']}")
            results = run.save()
            self.predictor = MNISTPredictor(path)
        return views.taught(results, path.name)

    def go_back(self) -> str:
        """Go back to the weights from before the last teaching. Raises gr.Error where there are none."""
        path = self.predictor.path
        with _told(path), sole_training(path):
            restore_weights(path)
            self.predictor = MNISTPredictor(path)
        return "<p>The page reads with the former weights again.</p>"

    def teaching_buttons(self) -> tuple[dict, dict]:
        """How the two buttons of the tab Teach are now. Raises StoreError where the database fails."""
        labelled = self.store.score()[1]
        text = f"Teach it my {labelled:,} drawings" if labelled > 1 else "Teach it my drawings"
        return (gr.update(value=text, interactive=labelled > 0),
                gr.update(interactive=can_go_back(self.predictor.path)))

    # the page itself

    def _build(self) -> gr.Blocks:
        # own threads, because waiting for a database should delay nothing else; more of them only wait for each other
        reading, storing = anyio.CapacityLimiter(1), anyio.CapacityLimiter(3)
        parameters = sum(one.numel() for one in self.predictor.model.parameters())
        with gr.Blocks(title="Draw a digit", analytics_enabled=False, fill_width=True,
                       delete_cache=(600, 3600)) as blocks:
            gr.Markdown(f"# Draw a digit\nA network of {parameters:,} parameters says which one it is. "
                        "Nothing leaves the computer that serves this page.")
            with gr.Tab("Draw"):
                gr.HTML(html_template=html.text("pad.html"), css_template=html.text("palette.css", "pad.css"),
                        js_on_load=html.script(self.network()), apply_default_css=False, elem_id="pad",
                        server_functions=[_served(self.recognise, reading), *(
                            _served(one, storing) for one in (self.keep, self.discard, self.state, self.network))])
            with gr.Tab("Upload"):
                self._build_upload()
            with gr.Tab("Statistics") as statistics:
                self._build_statistics(statistics)
            with gr.Tab("History") as history:
                self._build_history(history)
            with gr.Tab("Teach") as teaching:
                self._build_teaching(teaching)
        return blocks.queue(max_size=QUEUE)

    def _build_upload(self) -> None:
        gr.Markdown("A photo, a scan or a drawing, with one number or several: drop it, paste it, or take one with a "
                    "phone's camera. It is read at once. Numbers in blue are trusted, those in orange are doubtful.")
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Picture", file_types=["image"], type="filepath", elem_id="upload")
                keep = gr.Checkbox(True, label="Keep what was read, so that it can be labelled in the history")
                doubtful = gr.CheckboxGroup([], label="Keep these doubtful ones as well", visible=False,
                                            elem_id="doubtful")
            with gr.Column():
                outlined = gr.Image(label="Where the numbers are", show_label=False, interactive=False, format="png",
                                    alt_text="The picture, with an outline around each number", buttons=[],
                                    visible=False)
        with gr.Row(elem_id="examples"):
            examples = [gr.Button(what, icon=str(path), scale=0, min_width=200) for what, path in EXAMPLES.items()]
        seen = gr.HTML(elem_id="seen", css_template=_style("tables.css"), apply_default_css=False)
        with gr.Accordion("As values", open=False):
            values = gr.JSON(show_label=False)
        answer = [values, outlined, seen]
        file.upload(self.read, [file, keep], answer, api_name="read", concurrency_limit=2).success(
            _doubtful, values, [outlined, doubtful], api_visibility="private", show_progress="hidden")
        for example, path in zip(examples, EXAMPLES.values()):  # not the user's handwriting, so it is not kept
            example.click(functools.partial(self._read_example, path), None, [file, *answer],
                          api_visibility="private", concurrency_limit=2).success(
                lambda: (gr.update(visible=True), gr.update(visible=False)), None, [outlined, doubtful],
                api_visibility="private", show_progress="hidden")
        for choice in (keep, doubtful):
            choice.input(self.read_again, [file, keep, doubtful], answer, api_visibility="private",
                         concurrency_limit=2, trigger_mode="always_last")
        file.clear(lambda: (None, gr.update(value=None, visible=False), "", gr.update(value=[], visible=False)), None,
                   [*answer, doubtful], api_visibility="private", show_progress="hidden")

    def _build_teaching(self, tab: gr.Tab) -> None:
        gr.Markdown(f"The network trains further on the drawings that have a label, mixed with {REHEARSAL_IMAGES:,} of "
                    "MNIST's images so that it forgets nothing. That takes less than a minute. Then the page reads "
                    f"with the new weights, which are saved in `{self.predictor.path.name}`. There is a way back.")
        with gr.Row():
            teach = gr.Button("Teach it my drawings", variant="primary", scale=0, min_width=260)
            back = gr.Button("Go back to the former weights", scale=0, min_width=260)
        result = gr.HTML(elem_id="lesson", css_template=_style("tables.css"), apply_default_css=False, min_height=60)
        buttons = [teach, back]
        update = _plainly(self.teaching_buttons)
        tab.select(update, None, buttons, api_visibility="private", show_progress="hidden")
        for button, action in ((teach, self.teach), (back, self.go_back)):  # one at a time
            button.click(action, None, result, api_visibility="private", concurrency_limit=1,
                         concurrency_id="teaching").then(update, None, buttons, api_visibility="private",
                                                         show_progress="hidden")

    def _build_statistics(self, tab: gr.Tab) -> None:
        shown = gr.HTML(elem_id="statistics", css_template=_style("tables.css"), apply_default_css=False)
        with gr.Row():
            again = gr.Button("Count again", scale=0, min_width=160)
        again.click(_plainly(self.statistics), None, shown, api_name="statistics")
        tab.select(_plainly(self.statistics), None, shown, api_visibility="private")

    def _build_history(self, tab: gr.Tab) -> None:
        digits = [ANY, *map(str, range(10))]
        with gr.Accordion("Filter", open=False):
            with gr.Row():
                predicted = gr.Dropdown(digits, value=ANY, label="Read as", min_width=120)
                label = gr.Dropdown(digits, value=ANY, label="Labelled", min_width=120)
                verdict = gr.Dropdown(["all", "right", "wrong", "unlabelled"], value="all", label="Answer",
                                      min_width=120)
            with gr.Row():
                most = gr.Slider(0, 100, 100, step=1, label="Confidence at most (%)", min_width=200)
                since, until = (gr.DateTime(label=f"{word} (UTC)", type="datetime", include_time=False, timezone="UTC",
                                            min_width=200, elem_classes="day") for word in ("From", "Before"))
        count = gr.Markdown(elem_id="count")
        rows = gr.HTML([], html_template=_file("history.html"),
                       css_template=_style("history.css"), js_on_load=_file("history.js"),
                       apply_default_css=False, elem_id="history")
        with gr.Row():
            back = gr.Button("Newer", scale=0, min_width=110)
            page = gr.Number(1, label="Page", precision=0, minimum=1, scale=0, min_width=80)
            forth = gr.Button("Older", scale=0, min_width=110)
        with gr.Row():
            as_csv = gr.Button("Export these as CSV", scale=0, min_width=260)
            as_idx = gr.Button("Export all labelled ones as IDX files", scale=0, min_width=320)
        export = gr.File(label="Export", interactive=False, visible=False, elem_id="export")
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
        as_csv.click(_plainly(self.csv), wanted, export, api_name="csv").success(js=DOWNLOAD)
        as_idx.click(_plainly(self.idx), None, export, api_name="idx").success(js=DOWNLOAD)


def _doubtful(values: dict) -> tuple[dict, dict]:
    """Show the outlined picture, and the doubtful numbers of a picture to choose from."""
    choices = [(f"{number['text']}?", place) for place, number in enumerate(values["numbers"]) if not number["trusted"]]
    return gr.update(visible=True), gr.update(choices=choices, value=[], visible=bool(choices))


@contextlib.contextmanager
def _told(weights: Path) -> Iterator[None]:
    """Raise what goes wrong while weights are trained or replaced as gr.Error: a sentence without paths."""
    try:
        yield
    except OSError as error:
        raise gr.Error(f"the weights or MNIST's images cannot be read or written: {error.strerror}",
                       print_exception=False) from error
    except MemoryError as error:
        raise gr.Error("this machine has not enough memory for that now", print_exception=False) from error
    except (StoreError, ValueError, ArithmeticError) as error:
        raise gr.Error(str(error).replace(str(weights), weights.name), print_exception=False) from error


def _key_of(file: str, digit: Prediction) -> uuid.UUID:
    """The key of a digit in an uploaded file, whose hash is `file`."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{file} {digit.box}")


def _served(function: Callable[[Any], dict], limiter: anyio.CapacityLimiter) -> Callable:
    """Wrap a function for pad.js, so that it runs in one of the limiter's threads."""
    async def served(message):
        return await anyio.to_thread.run_sync(function, message, limiter=limiter)

    served.__name__ = function.__name__
    return served


def _plainly(function: Callable) -> Callable:
    """Wrap a function, so that the page shows its StoreError or ValueError, and the server's log does not."""
    @functools.wraps(function)
    def shown(*arguments):
        try:
            return function(*arguments)
        except (StoreError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from error
    return shown


def _style(name: str) -> str:
    """A style sheet of this folder, after the page's colours."""
    return html.text("palette.css") + _file(name)


def _file(name: str) -> str:
    return (HERE / name).read_text("utf-8")


def _drawing(message: dict) -> Image.Image:
    """The picture in a message from pad.js. Raises PictureError where it is missing, damaged or too large."""
    text = message.get("picture") if isinstance(message, dict) else None
    if not isinstance(text, str) or len(text) > DRAWING_BYTES * 4 // 3:
        raise PictureError("the drawing is missing or too large")
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
        if max(picture.size) <= DRAWING_SIDE:
            picture.load()
    except Exception as error:  # Pillow raises a dozen types for damaged files
        raise PictureError("the drawing is not a PNG file, or it is damaged") from error
    if max(picture.size) > DRAWING_SIDE:
        raise PictureError("the drawing is too large")
    return picture


def _grey(drawing: Image.Image) -> Image.Image:
    """A drawing of opaque ink on a transparent background as dark ink on white paper."""
    return ImageOps.invert(drawing.convert("RGBA").getchannel("A"))


def _key(text: Any) -> uuid.UUID:
    """The key of a drawing, which pad.js makes. Raises ValueError where the text is none."""
    try:
        return uuid.UUID(text)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError("the drawing has no key") from error


def _drawings(event: gr.EventData) -> list[int]:
    """The numbers of drawings in an event of history.js. Raises ValueError where they are none."""
    numbers = getattr(event, "ids", None)
    if not (isinstance(numbers, list) and 0 < len(numbers) <= ROWS):
        raise ValueError("the event holds no drawings")
    return [_number(number, "id") or 0 for number in numbers]


def _number(value: Any, name: str) -> int | None:
    """A number that history.js has sent, or None where it is empty. Raises ValueError where it is no number."""
    if value in ("", None):
        return None
    if not (type(value) is int or (isinstance(value, str) and value.isdecimal())):
        raise ValueError(f"the {name} is no number")
    return int(value)


def _filter(predicted: str, label: str, verdict: str, since: datetime | None, until: datetime | None,
            most: float) -> Filter:
    number = {str(digit): digit for digit in range(10)}
    return Filter(number.get(predicted), number.get(label), verdict, since, until,
                  most=None if most >= 100 else most / 100)
