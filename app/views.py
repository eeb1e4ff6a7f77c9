"""HTML and pictures for the page's tabs. Text from pictures and from the database is escaped."""

import base64
import html
import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from scipy.stats import binomtest

from app.table import Damaged, Statistics
from app.table import Prediction as Row
from mnist.finetune import Comparison
from mnist.picture import MAX_WORKING_SIDE, PICTURE_FORMATS, read_picture
from mnist.predict import Number

BLUE, ORANGE = "#0072B2", "#D55E00"  # on photos; told apart by the colour-blind (Okabe and Ito)
VERDICTS = "right", "wrong", "unlabelled"  # classes in tables.css
DAYS = 14


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)  # half the time of the usual 6, for a fifth more bytes
    return buffer.getvalue()


def data_url(picture: np.ndarray | bytes) -> str:
    """A picture, given as uint8 (H, W) or as a PNG file, as the URL of an HTML image."""
    data = picture if isinstance(picture, bytes) else png(Image.fromarray(picture))
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def score(labelled: int, right: int) -> dict:
    """The number of "labelled" drawings and of the "correct" answers among them, and the "text" to show."""
    text = f"{right:,} of {labelled:,} right ({_percent(right / labelled)})" if labelled else ""
    return {"labelled": labelled, "correct": right, "text": text}


def shown(file: str) -> tuple[Image.Image, float]:
    """A picture file as `read_picture` sees it, in colour if it can be, and how many pixels of the file a pixel is."""
    with Image.open(file, formats=PICTURE_FORMATS) as picture:
        if picture.has_transparency_data or picture.mode in ("F", "I") or picture.mode.startswith("I;16"):
            source = read_picture(file)
            return Image.fromarray(np.rint(255 * source.grey).astype(np.uint8)).convert("RGB"), source.scale
        longest = max(picture.size)
        picture.draft(None, (2 * MAX_WORKING_SIDE, 2 * MAX_WORKING_SIDE))
        upright = ImageOps.exif_transpose(picture).convert("RGB")
        upright.thumbnail((MAX_WORKING_SIDE, MAX_WORKING_SIDE), reducing_gap=2)
        return upright, longest / max(upright.size)


def outlined(picture: Image.Image, scale: float, numbers: list[Number]) -> Image.Image:
    """The picture with an outline around each number, and its digits above it; orange where it is doubtful.

    `scale` is how many pixels of the original picture one of its pixels spans, because the corners of
    `numbers` are in pixels of the original.
    """
    if max(picture.size) < 300:
        scale *= picture.width / (width := picture.width * math.ceil(300 / max(picture.size)))
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for number in numbers:
        corners = [(x / scale, y / scale) for x, y in number.corners]
        colour = BLUE if number.trusted else ORANGE
        text = number.text if number.trusted else f"{number.text}?"
        draw.line([*corners, corners[0], corners[1]], "white", 7, joint="curve")
        draw.line([*corners, corners[0], corners[1]], colour, 4, joint="curve")
        size = int(min(max(18, (corners[3][1] - corners[0][1]) / 2), 40))
        x, y = corners[0][0], max(2, min(corners[0][1], corners[1][1]) - 1.3 * size)
        draw.text((x, y), text, colour, font_size=size, stroke_width=3, stroke_fill="white")
    return picture


def cards(numbers: list[Number], notes: list[str]) -> str:
    """HTML that shows what was read, what the network saw of each digit, and the notes."""
    texts = ", ".join(number.text + "?" * (not number.trusted) for number in numbers)
    rows = f"<p>Read: <strong>{texts}</strong>. This is what the network saw:</p>" if numbers else ""
    for number in numbers:
        if len(numbers) > 1 or number.reason:
            doubt = html.escape(f", doubtful: {number.reason}") if number.reason else ""
            rows += f"<p><strong>{number.text}</strong>, {_percent(number.confidence)} sure{doubt}</p>"
        rows += _row([_card(one.picture, f"{one.digit}, {_percent(one.confidence)} sure", one.reason)
                      for one in number.digits])
    return rows + "".join(f"<p>{html.escape(note)}</p>" for note in notes)


def statistics(numbers: Statistics, unsure: list[Row], latest: list[Row | Damaged]) -> str:
    """The HTML of the Statistics tab: counts, charts, and the drawings in `unsure`, worth a label, and in `latest`."""
    digits = [(str(digit), [right / count, 1 - right / count] if count else [], f"{right:,} of {count:,}")
              for digit, (count, right) in enumerate(numbers.per_digit)]
    most = max(1, *numbers.histogram.sum(1).tolist())
    sure = [(f"{10 * tenth} to {10 * tenth + 10} %", (row / most).tolist(), f"{row.sum():,}")
            for tenth, row in enumerate(numbers.histogram)]
    busiest = max(numbers.per_day.values(), default=1)
    days = [(str(day), [count / busiest], f"{count:,}") for day, count in list(numbers.per_day.items())[-DAYS:]]
    key = "".join(f'<span><i class="{verdict}"></i>{text}</span>' for verdict, text in zip(VERDICTS, (
        "read right", "read wrong", "no label yet")))
    charts = [_bars("Read right, of those labelled as", digits), _confusion(numbers),
              _bars("Drawings, by how sure the network was", sure) + f'<p class="key">{key}</p>',
              _bars(f"Drawings a day (UTC), the last {DAYS} days that had any", days, ("drawn",))]
    return _summary(numbers) + f'<div class="charts">{"".join(f"<div>{chart}</div>" for chart in charts)}</div>' + (
        f"<h2>Worth a label: those without one of which the network was least sure</h2>{_gallery(unsure)}"
        if unsure else "") + (f"<h2>Latest drawings</h2>{_gallery(latest)}" if latest else "")


def taught(results: list[Comparison], weights: str) -> str:
    """HTML that compares a network before and after it was taught."""
    rows = "".join(f'<tr><th scope="row">{html.escape(one.name)} ({one.count:,})</th><td>{_percent(one.before, 2)}</td>'
                   f"<td><strong>{_percent(one.after, 2)}</strong></td></tr>" for one in results)
    fell = results[0].after < results[0].before
    advice = "<p>The accuracy on the drawings fell: label more of them, or go back.</p>" if fell else ""
    return ('<table class="taught"><caption>Read right</caption><tr><td></td><th scope="col">before</th>'
            f'<th scope="col">after</th></tr>{rows}</table>'
            f"<p>The page reads with the new weights now. They are saved in {html.escape(weights)}.</p>{advice}")


def listed(row: Row | Damaged) -> dict:
    """The values of a row for history.html; history.css hides the picture and the label of a damaged one."""
    if isinstance(row, Damaged):
        return {"id": row.id, "time": "", "digit": "", "confidence": "", "image": "", "label": "", "verdict": "damaged"}
    label = "" if row.true_label is None else str(row.true_label)
    return {"id": row.id, "time": f"{row.timestamp:%Y-%m-%d %H:%M:%S}", "digit": row.predicted_digit,
            "confidence": _percent(row.confidence), "image": data_url(row.image_data), "label": label,
            "verdict": "" if label == "" else _verdict(row)}


def _verdict(row: Row) -> str:
    """One of VERDICTS."""
    if row.true_label is None:
        return "unlabelled"
    return "right" if row.true_label == row.predicted_digit else "wrong"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _card(picture: np.ndarray | bytes, *lines: str, verdict: str = "") -> str:
    text = "<br>".join(map(html.escape, filter(None, lines)))
    kind = f' class="{verdict}"' if verdict else ""
    return f'<figure{kind}><img src="{data_url(picture)}" alt=""><figcaption>{text}</figcaption></figure>'


def _row(parts: list[str]) -> str:
    return f'<div class="row">{"".join(parts)}</div>'


def _summary(numbers: Statistics) -> str:
    damaged = (f"<p>Left out because they are damaged: {numbers.damaged:,}. Restore the database from a copy, or "
               "delete them on the History tab.</p>" if numbers.damaged else "")
    if not numbers.labelled:
        return f"<p>{numbers.total:,} drawings, none of them labelled yet: label yours on the Draw tab.</p>{damaged}"
    low, high = binomtest(numbers.right, numbers.labelled).proportion_ci(method="wilson")
    return (f'<p class="summary"><strong>{_percent(numbers.accuracy)}</strong> of {numbers.labelled:,} labelled '
            f"drawings read right ({numbers.right:,}; 95 % interval {_percent(low)} to {_percent(high)}). "
            f"{numbers.total:,} drawings in all.</p>"
            f'<div class="interval"><span style="left:{low:.2%};width:{high - low:.2%}"></span>'
            f'<b style="left:{numbers.accuracy:.2%}"></b></div>{damaged}')


def _bars(title: str, rows: list[tuple[str, list[float], str]], parts: tuple[str, ...] = VERDICTS) -> str:
    """A bar chart. Each row holds its name, the parts of its bar as shares of the full width, and its number."""
    body = ""
    for name, shares, number in rows:
        bar = "".join(f'<span class="{part}" style="width:{share:.2%}"></span>' for part, share in zip(parts, shares))
        body += f'<tr><th scope="row">{name}</th><td><div>{bar}</div></td><td>{number}</td></tr>'
    return f'<table class="bars"><caption>{title}</caption>{body}</table>'


def _confusion(numbers: Statistics) -> str:
    counts = numbers.confusion
    strength = 0.65 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    head = "".join(f'<th scope="col">{digit}</th>' for digit in range(10))
    body = ""
    for truth in range(10):
        # the page's blue and orange, light enough for the text on them in both themes
        cells = "".join(f'<td style="background:rgba({"11,92,173" if truth == digit else "184,71,0"},'
                        f'{strength[truth, digit]:.2f})">{counts[truth, digit] or ""}</td>' for digit in range(10))
        body += f'<tr><th scope="row">{truth}</th>{cells}</tr>'
    return ('<table class="confusion"><caption>What it really was (down), and was read as (across)</caption>'
            f"<tr><td></td>{head}</tr>{body}</table>")


def _gallery(rows: list[Row | Damaged]) -> str:
    drawn = [_card(row.image_data, f"read as {row.predicted_digit} ({_percent(row.confidence, 0)})",
                   "no label yet" if row.true_label is None else f"labelled {row.true_label}",
                   verdict=_verdict(row))
             for row in rows if isinstance(row, Row)]
    return f'<div class="gallery">{"".join(drawn)}</div>'
