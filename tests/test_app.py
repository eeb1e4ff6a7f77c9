"""The page as a server: what it answers, what others may try on it, and that it loses nothing where something fails."""

import concurrent.futures
import contextlib
import html.parser
import http.client
import io
import json
import os
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import uuid
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from gradio_client import Client, handle_file
from PIL import Image

from app.page import Page
from app.settings import is_loopback
from app.store import Store
from benchmark_page import Person, drawn, walked
from handwriting import traced
from mnist.predict import MNISTPredictor
from mnist.weights import pack
from mnist_utils import load_split
from visitor import Site

pytest_plugins = ["databases"]

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "figures" / "samples" / "number.jpg"
NUMBERS = ["0316", "52948"]  # are on it
IMAGES, LABELS = load_split("test", ROOT / "dataset")
DRAWINGS = [drawn(walked(traced(IMAGES[LABELS == digit][1]))) for digit in range(10)]
API, JSON = "/gradio_api", {"Content-Type": "application/json"}
SCRIPT = "<img src=x onerror=alert(1)>"
SQL = "'; DROP TABLE predictions; --"
DEEP = json.loads("[" * 400 + "]" * 400)
META = {"_type": "gradio.FileData"}
EVERYTHING = ["any", "any", "all", None, None, 100]  # the history's filters


def site_in(folder: Path, output: Path, database: sa.URL | None = None, **surroundings: str) -> Site:
    """A page that has not started yet, with all its temporary files in its folder."""
    site = Site(folder, output / "MNIST-MODEL.pth")
    site.surroundings |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)) | surroundings
    if database is not None:
        site.surroundings["DATABASE_URL"] = database.render_as_string(hide_password=False)
    return site


@pytest.fixture(scope="module")
def running(output, tmp_path_factory) -> Iterator[Site]:
    site = site_in(tmp_path_factory.mktemp("page"), output)
    site.start()
    yield site
    site.stop()


@pytest.fixture
def site(running) -> Iterator[Site]:
    """The page, which has no traceback in its log for what a test does."""
    known = len(running.errors())
    yield running
    assert "Traceback" not in running.errors()[known:]


@pytest.fixture
def person(site) -> Person:
    return Person(site.address)


def stored(site: Site, condition: str = "") -> dict[str, int]:
    """The numbers of the drawings in the site's table, by key."""
    engine = sa.create_engine(site.surroundings["DATABASE_URL"], poolclass=sa.NullPool)
    with engine.connect() as connection:
        found = connection.execute(sa.text(f"SELECT drawing, id FROM predictions {condition}")).all()
    keys = {uuid.UUID(str(key)).hex: number for key, number in found}
    assert len(keys) == len(found)
    return keys


def execute(site: Site, statement: str, *values) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(site.database)) as connection, connection:
        return connection.execute(statement, values).fetchall()


def post(site: Site, path: str, **options) -> httpx.Response:
    return httpx.post(site.address.rstrip("/") + path, timeout=30, **options)


def get(site: Site, path: str) -> tuple[int, bytes]:
    """Status and body of what is at that path, which is sent as it is."""
    with contextlib.closing(http.client.HTTPConnection(urlsplit(site.address).netloc, timeout=30)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def call(site: Site, name: str, data: list) -> Any:
    """What one of the page's functions gives over the queue, or its error's sentence, or None where it has none."""
    response = post(site, f"{API}/call/{name}", json={"data": data})
    assert response.status_code == 200, response.text
    _, text = get(site, f"{API}/call/{name}/{response.json()['event_id']}")
    values = json.loads(text.decode().rsplit("data: ", 1)[1])
    return values["error"] if isinstance(values, dict) else values


def upload(site: Site, name: str, content: bytes) -> str:
    """The path under which the page has it now."""
    response = post(site, f"{API}/upload", files={"files": (name, content)})
    assert response.status_code == 200, response.text
    path, = response.json()
    return path


def is_plain(text: str) -> bool:
    """Whether it tells people something, and nothing of the server."""
    return bool(text) and not any(word in text for word in (
        "Traceback", "File \"", str(ROOT), sys.prefix, "mnist-page-", "SELECT", "Error(", "object has no attribute"))


# what it is for

def test_programs_read_pictures_with_gradio_s_client(site):
    before = stored(site)
    client = Client(site.address, verbose=False, analytics_enabled=False, download_files=site.folder)
    values, outlined, seen = client.predict(handle_file(SAMPLE), False, api_name="/read")
    client.close()
    assert [one["text"] for one in values["numbers"]] == NUMBERS and values["numbers"][1]["trusted"]
    with Image.open(outlined) as with_outlines, Image.open(SAMPLE) as sample:
        assert with_outlines.width / with_outlines.height == pytest.approx(sample.width / sample.height, rel=0.01)
    assert all(number in seen for number in NUMBERS) and stored(site) == before


def test_drawings_are_read_kept_and_labelled(site, person, output):
    network = MNISTPredictor(output / "MNIST-MODEL.pth").digest
    for digit, picture in enumerate(DRAWINGS):
        answer = person.call("recognise", {"picture": picture})
        assert answer["digit"] == digit and answer["reason"] == ""
        assert answer["confidence"] == max(answer["probabilities"]) and len(answer["probabilities"]) == 10
        message, label = {"picture": picture, "drawing": uuid.uuid4().hex}, (digit + digit // 5) % 10
        kept = person.call("keep", {**message, "label": None})
        assert kept == {"id": kept["id"], "digit": digit, "score": None, "network": network}
        assert person.call("keep", {**message, "label": label})["id"] == kept["id"]
        (image, *row), = execute(site, "SELECT image_data, predicted_digit, true_label, probabilities FROM predictions "
                                       "WHERE drawing = ?", message["drawing"])
        assert row[:2] == [digit, label] and json.loads(row[2]) == pytest.approx(answer["probabilities"], abs=1e-6)
        with Image.open(io.BytesIO(image)) as grey, Image.open(io.BytesIO(b64decode(picture))) as ink:
            assert np.array_equal(np.asarray(grey), 255 - np.asarray(ink.getchannel("A")))
    assert person.call("state", None) == {
        "problem": None, "score": {"labelled": 10, "correct": 5, "text": "5 of 10 right (50.0 %)"}, "network": network}
    assert person.call("network", None)["digest"] == network


def test_a_drawing_is_discarded_by_its_key(site, person):
    key = uuid.uuid4().hex
    person.call("keep", {"picture": DRAWINGS[4], "drawing": key, "label": 4})
    before = stored(site)
    assert person.call("discard", {"drawing": uuid.uuid4().hex})["id"] is None and stored(site) == before
    person.call("discard", {"drawing": key})
    assert stored(site).keys() == before.keys() - {key}
    for message in ({}, None, [], {"drawing": SQL}, {"drawing": 5}):
        assert person.call("discard", message)["reason"] == "the drawing has no key"


def test_what_is_drawn_is_read_as_the_whole_paper_is(person, output):
    """The page reads the part with ink alone, wherever that is and whatever its size."""
    predictor = MNISTPredictor(output / "MNIST-MODEL.pth")
    for digit, picture in enumerate(DRAWINGS):
        with Image.open(io.BytesIO(b64decode(picture))) as drawing:
            for side, place in ((280, (0, 0)), (140, (99, 50)), (280, (100, 15 * digit - 60)), (480, (-40, -90))):
                paper, file = Image.new("RGBA", (400, 300)), io.BytesIO()
                paper.paste(drawing.resize((side, side)), place)
                paper.save(file, "PNG")
                whole = predictor.predict(file.getvalue())
                answer = person.call("recognise", {"picture": b64encode(file.getvalue()).decode()})
                assert (answer["digit"], answer["reason"]) == (whole.digit, whole.reason)
                assert answer["probabilities"] == pytest.approx(whole.probabilities.tolist(), abs=1e-5)


# what pad.js never sends

def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def blank(width: int, height: int) -> bytes:
    """A PNG file in black and white, tiny whatever its size."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width // 8 + 2)) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)) \
        + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


GOOD = b64decode(DRAWINGS[7])
HUGE = zlib.compress(bytes(50_000_000), 9)
FILES = {
    "nothing": b"",
    "text": b"hello",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "JPEG": SAMPLE.read_bytes()[:100_000],
    "20,000 × 20,000": blank(20_000, 20_000),
    "one pixel too wide": blank(401, 100),
    "1 × 1": blank(1, 1),
    "cut off": GOOD[:len(GOOD) // 2],
    "wrong checksum": GOOD[:60] + bytes([GOOD[60] ^ 1]) + GOOD[61:],
    "huge text": GOOD[:33] + chunk(b"zTXt", b"a\0\0" + HUGE) + GOOD[33:],
    "huge profile": GOOD[:33] + chunk(b"iCCP", b"a\0\0" + HUGE) + GOOD[33:],
    "short palette": GOOD[:33] + chunk(b"tRNS", b"a") + chunk(b"cHRM", b"abc") + GOOD[33:],
    "no size": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"123"),
}
OTHERS = [7, -1.5, 10**30, True, [], ["x"], {}, {"a": {"b": [None]}}, DEEP, "", "\0", "☃", "\ud800", SQL, SCRIPT]


def refused(person: Person, message: Any) -> None:
    """Both functions must say in a sentence why they do nothing with it, and soon."""
    begin = time.monotonic()
    assert is_plain(person.call("recognise", message)["problem"])
    answer = person.call("keep", message)
    assert answer["id"] is None and is_plain(answer["reason"])
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_drawing(site, person, name):
    before = stored(site)
    refused(person, {"picture": b64encode(FILES[name]).decode(), "drawing": uuid.uuid4().hex})
    assert stored(site) == before


def test_fields_of_other_kinds(site, person):
    before = stored(site)
    for value in (*OTHERS, None, "A" * 300_000, DRAWINGS[7][:-1], "data:image/png;base64," + DRAWINGS[7]):
        refused(person, {"picture": value, "drawing": uuid.uuid4().hex, "label": 7})
        refused(person, value)
    for key in (*OTHERS, None, "7", "x" * 32, uuid.uuid4().hex[:-1]):
        answer = person.call("keep", {"picture": DRAWINGS[7], "drawing": key})
        assert answer["id"] is None and is_plain(answer["reason"])
    for label in (*OTHERS[1:], 11, -1, "7", 7.5, False):
        answer = person.call("keep", {"picture": DRAWINGS[7], "drawing": uuid.uuid4().hex, "label": label})
        assert answer == {"id": None, "reason": "the label is no digit"}
    assert stored(site) == before


def test_a_drawing_of_many_marks_is_not_kept_for_a_reason(person):
    """Else the browser would offer it again and again, and all later ones would wait behind it."""
    ink = np.zeros((280, 280, 4), np.uint8)
    ink[10:270:12, 10:270:12, 3] = 255
    ink[11:270:12, 10:270:12, 3] = 255
    file = io.BytesIO()
    Image.fromarray(ink).save(file, "PNG")
    refused(person, {"picture": b64encode(file.getvalue()).decode(), "drawing": uuid.uuid4().hex})


def test_requests_that_name_nothing(site, person):
    whole = {"data": {"picture": DRAWINGS[7]}, "fn_name": "recognise", "component_id": person.pad, "session_hash": "x"}
    names = ["__init__", "_save", "postprocess", "preprocess", "recognise.__globals__", "read", "relabel"]
    changes = [*({"fn_name": name} for name in (*names, *OTHERS, None)),
               *({"component_id": id} for id in (0, 1, 99_999, -1, *OTHERS[2:], None)),
               *({"session_hash": session} for session in OTHERS[:9])]
    for change in changes:
        response = post(site, f"{API}/component_server", content=json.dumps(whole | change))
        assert response.status_code in (400, 404) and is_plain(response.text), change
    for missing in whole:
        part = {name: value for name, value in whole.items() if name != missing}
        assert post(site, f"{API}/component_server", json=part).status_code == 400
        assert post(site, f"{API}/component_server", files={"x": b""}, data={"fn_name": "keep"}).status_code == 400
    for body in (b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"data":' * 100_000):
        assert post(site, f"{API}/component_server", content=body).status_code == 400
    assert post(site, f"{API}/call/nothing", json={"data": []}).status_code == 400
    assert post(site, f"{API}/queue/join", json={"data": [], "fn_index": 99, "session_hash": "x"}).status_code == 400
    assert person.call("recognise", whole["data"])["digit"] == 7


@pytest.mark.parametrize("path", ["component_server", "queue/join", "call/read", "call/upload", "run/read", "cancel"])
def test_large_messages(site, path):
    """With their length, and without it, as it is in chunks."""
    body = json.dumps({"data": ["x" * 1_500_000]}).encode()
    for content in (body, iter([body[:500_000], body[500_000:]])):
        response = post(site, f"{API}/{path}", content=content, headers=JSON)
        assert (response.status_code, response.text) == (413, "the message is too large")


@pytest.mark.parametrize("length", ["5", "5000", "-1", "1e3", "x", "99999999999", "9" * 30, "10\r\nContent-Length: 20"])
def test_lengths_that_are_wrong(site, person, length):
    body = json.dumps({"data": None, "fn_name": "state", "component_id": person.pad, "session_hash": "x"})
    with socket.create_connection(("127.0.0.1", urlsplit(site.address).port), timeout=10) as connection:
        head = f"POST {API}/component_server HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall((head + body).encode())
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer[:10] in (b"", b"HTTP/1.1 4") and b"Traceback" not in answer
    assert person.call("state", None)["problem"] is None


@pytest.mark.parametrize("headers, status", [
    ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Sec-Fetch-Site": "same-origin"}, 200), ({"Sec-Fetch-Site": "none"}, 200),
    ({"Origin": "http://example.com"}, 403), ({"Origin": "null"}, 403),
    ({"Origin": "http://localhost:8", "Host": "localhost:8"}, 200),
    ({"Origin": "http://example.com", "Host": "example.com", "Sec-Fetch-Site": "same-origin"}, 403)])
def test_other_sites_can_change_nothing(site, person, headers, status):
    message = {"data": {"picture": DRAWINGS[7], "drawing": uuid.uuid4().hex}, "fn_name": "keep",
               "component_id": person.pad, "session_hash": "x"}
    response = post(site, f"{API}/component_server", json=message, headers=headers)
    assert response.status_code == status
    assert (message["data"]["drawing"] in stored(site)) == (status == 200)
    if "Host" not in headers:
        assert httpx.get(site.address, headers=headers).status_code == 200  # links lead here


def test_a_full_queue_is_refused_in_a_sentence(site):
    path = upload(site, "small.png", GOOD)
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, False, False]
    sent = [post(site, f"{API}/call/read", json={"data": data}) for _ in range(150)]
    refused = [response for response in sent if response.status_code != 200]
    assert refused and all("queue" in response.text.lower() and is_plain(response.text) for response in refused)
    ended = [get(site, f"{API}/call/read/{response.json()['event_id']}")[1] for response in sent
             if response.status_code == 200]
    assert len(ended) >= 50 and all(b"complete" in text for text in ended)


def test_the_queue_survives_values_of_other_kinds(running):
    """Gradio itself writes tracebacks to the log for these; no visitor sees one."""
    before = stored(running)
    for place in range(len(EVERYTHING)):
        for value in (*OTHERS[:9], SQL, "now - 5d", "9999-99-99", 1e308):
            answer = call(running, "csv", [*EVERYTHING[:place], value, *EVERYTHING[place + 1:]])
            assert answer is None or not isinstance(answer, str) or is_plain(answer), value
    for page in (None, -5, 1e308, 10**40, "x", [1]):
        answer = call(running, "history", [*EVERYTHING, page])
        assert answer is None or not isinstance(answer, str) or is_plain(answer), page
    for name, data in (("read", []), ("read", [7, 7, 7]), ("csv", []), ("relabel", []), ("remove", [1])):
        assert call(running, name, data) is None
    assert stored(running) == before and Person(running.address).call("state", None)["problem"] is None


def test_labels_and_numbers_in_the_history_that_are_none(site, person):
    """As history.js sends them, but wrong."""
    functions = {one["api_name"]: one["id"] for one in httpx.get(site.address + "config").json()["dependencies"]}
    person.keep(DRAWINGS[7])
    number, = person.kept.values()
    before = execute(site, "SELECT id, true_label FROM predictions")
    labels, ids = [*OTHERS[1:9], "11", -1, SQL, SCRIPT], [*OTHERS[1:], None, 10**9]
    for name, sent in [*(("relabel", {"ids": [number], "label": label}) for label in labels),
                       *(("relabel", {"ids": [id], "label": "3"}) for id in ids),
                       *(("remove", {"ids": [id]}) for id in ids), *(("remove", {"ids": id}) for id in ids),
                       ("remove", {}), ("remove", {"ids": [number] * 1000})]:
        message = {"data": [], "fn_index": functions[name], "session_hash": uuid.uuid4().hex, "event_data": sent}
        response = post(site, f"{API}/queue/join", content=json.dumps(message), headers=JSON)
        assert response.status_code == 200, sent
        _, text = get(site, f"{API}/queue/data?session_hash={message['session_hash']}")
        assert is_plain(re.search(r'"error":"(.*?)","duration"', text.decode())[1]), sent
    assert execute(site, "SELECT id, true_label FROM predictions") == before


# uploads

def test_uploads_have_a_largest_size(site):
    for size in (20_000_001, 22_000_000):
        assert post(site, f"{API}/upload", files={"files": ("x.png", bytes(size))}).status_code == 413
    assert post(site, f"{API}/upload", data={"files": "no file"}, files={"x": b""}).status_code == 400


@pytest.mark.parametrize("name", [
    f"{SCRIPT}.png", "../../../../etc/passwd.png", "%2e%2e%2fx.png", "a" * 230 + ".png", "con.png", "‮gnp.png",
    '"; x=".jpg'])
def test_names_of_uploads_are_only_names(site, name):
    path = upload(site, name, SAMPLE.read_bytes())
    assert Path(path).resolve().is_relative_to(site.folder.resolve()) and "<" not in path
    values, outlined, seen = call(site, "read", [{"path": path, "orig_name": name, "meta": META}, False, False])
    assert [one["text"] for one in values["numbers"]] == NUMBERS
    assert SCRIPT[1:-1] not in seen and outlined["path"].endswith(".png")
    path = upload(site, name, b"<html><script>alert(1)</script></html>")
    answer = call(site, "read", [{"path": path, "orig_name": name, "meta": META}, False, False])
    assert answer.startswith("the file is not a supported image file") and is_plain(answer)


@pytest.mark.parametrize("name", ["x.html", "x.svg", "x.xhtml", "x.js", "x.png"])
def test_uploads_never_run_as_a_page(site, name):
    path = upload(site, name, b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")
    headers = httpx.get(f"{site.address}{API[1:]}/file={path}").headers
    assert headers["Content-Type"] == "image/png" or headers["Content-Disposition"].startswith("attachment")


# the server's files

@pytest.fixture
def secrets(running) -> Iterator[list[Path]]:
    """Files that are not for visitors, most of which say so."""
    other = running.folder / "gradio" / "0" / "other.png"  # where another program's uploads would be
    other.parent.mkdir(parents=True, exist_ok=True)
    mine = [running.folder / ".env", running.folder / "secret.png", other]
    for path in mine:
        path.write_text("a secret")
    yield [*mine, running.database, running.folder / "errors", ROOT / "README.md", ROOT / "MNIST-MODEL.pth",
           ROOT / "app" / "page.py", *filter(Path.exists, [Path("/etc/passwd"), Path("/proc/self/environ")])]
    for path in mine:
        path.unlink()


def test_no_file_of_the_server_can_be_read(site, secrets):
    for path in secrets:
        text = path.read_bytes()[:200]
        relative = os.path.relpath(path, site.folder)
        ways = [str(path), quote(str(path), safe=""), quote(quote(str(path), safe="")), f"/{path}", f"{path}%00.png",
                relative, quote(relative, safe=""), f"./{relative}", f"x/../{relative}", f"file://{path}",
                str(path).replace("/", "\\"), f"{site.folder}/../{site.folder.name}/{relative}"]
        for route in (f"{API}/file=", f"{API}/file/", f"{API}/proxy=", "/file=", "/static/", "/assets/", "/svelte/"):
            for way in ways:
                status, body = get(site, route + way)
                assert status in (403, 404, 400, 405) and text not in body, route + way


def test_the_server_fetches_nothing_for_others(site):
    for url in (site.address + "config", "http://localhost/", "https://example.com/x.png", "ftp://example.com/"):
        for route in ("file=", "file/", "proxy="):
            assert get(site, f"{API}/{route}{url}") == (403, b"this page fetches nothing from elsewhere")


def test_no_file_of_the_server_can_be_read_as_a_picture(running, secrets):
    before = stored(running)
    for path in (*secrets, os.path.relpath(SAMPLE, running.folder), SAMPLE, "..", "\0", running.address + "config"):
        for value in ({"path": str(path), "meta": META}, {"path": "x.png", "url": str(path), "meta": META},
                      {"path": str(path), "url": f"{API}/file={path}", "orig_name": "x.png", "meta": META},
                      {"path": str(path)}, str(path), [{"path": str(path), "meta": META}]):
            assert call(running, "read", [value, True, True]) is None, value
        assert call(running, "csv", [{"path": str(path), "meta": META}, *EVERYTHING[1:]]) is None
    assert stored(running) == before


# what is in the table

class Tags(html.parser.HTMLParser):
    """The names of a text's elements, of their attributes, and where their pictures come from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names, self.attributes, self.sources = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.sources |= {value.partition(",")[0] for name, value in attributes if name in ("src", "href")}


def test_what_is_in_the_table_is_only_text(site):
    execute(site, "INSERT INTO predictions (timestamp, predicted_digit, confidence, true_label, image_data, "
                  "probabilities, model_digest, drawing) VALUES ('2030-01-01 00:00:00.000000', 7, 0.5, 3, ?, ?, ?, ?)",
            f'">{SCRIPT}'.encode(), json.dumps([SCRIPT] * 10), SCRIPT, uuid.uuid4().hex)
    try:
        shown, = call(site, "statistics", [])
        tags = Tags(shown)
        assert {"figure", "img"} <= tags.names and not tags.names & {"script", "iframe", "object", "a", "svg", "link"}
        assert tags.attributes <= {"class", "style", "src", "alt", "scope"}
        assert tags.sources == {"data:image/png;base64"}
        (newest, *_), _, _ = call(site, "history", [*EVERYTHING, 1])
        assert newest["label"] == "3" and not any("<" in str(value) for value in newest.values())
    finally:
        execute(site, "DELETE FROM predictions WHERE model_digest = ?", SCRIPT)


# who may come in

LOGIN = {"username": "anna", "password": "correct horse"}


@pytest.fixture(scope="module")
def guarded(output, tmp_path_factory) -> Iterator[list[Site]]:
    """Pages that ask for a password: one has it from its surroundings, one from its options, which win."""
    sites = [site_in(tmp_path_factory.mktemp("guarded"), output, APP_USER=user, APP_PASSWORD=password)
             for user, password in ((LOGIN["username"], LOGIN["password"]), ("other", "another"))]
    options = [[], ["--user", LOGIN["username"], "--password", LOGIN["password"], "--host", loopback()]]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        list(threads.map(lambda site, words: site.start(*words), sites, options))
    yield sites
    for site in sites:
        site.stop()


def loopback() -> str:
    """The loopback of IPv6, where this machine has one."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return "127.0.0.1"
    return "::1"


def statuses(client: httpx.Client) -> set[int]:
    """What the routes answer that show, do or store something."""
    message = {"data": {"picture": DRAWINGS[7], "drawing": uuid.uuid4().hex}, "fn_name": "keep", "component_id": 3,
               "session_hash": "x"}
    config = client.get("/config")
    functions = {one["api_name"]: one["id"] for one in config.json().get("dependencies", [])}
    return {response.status_code for response in (
        config, client.get(f"{API}/info"), client.get(f"{API}/queue/status"),
        client.get(f"{API}/openapi.json"), client.post(f"{API}/component_server", json=message),
        client.post(f"{API}/queue/join", json={"data": [], "fn_index": functions.get("statistics", 1),
                                                     "session_hash": "x"}),
        client.post(f"{API}/call/statistics", json={"data": []}),
        client.post(f"{API}/run/statistics", json={"data": []}),
        client.post(f"{API}/upload", files={"files": ("x.png", GOOD)}))}


def test_visitors_without_the_password_get_nothing(guarded):
    for site in guarded:
        with httpx.Client(base_url=site.address, timeout=20) as client:
            for user, password in ((None, None), ("anna", "wrong"), ("other", "another"), ("anna", ""), (SQL, SQL)):
                if user:
                    response = client.post("/login", data={"username": user, "password": password})
                    assert response.status_code in (400, 422)
                assert statuses(client) == {401}
                assert client.get(f"{API}/file={site.database}").status_code == 401
            assert "recognise" not in client.get("/").text
            assert not site.database.exists() or stored(site) == {}
            assert client.post("/login", data=LOGIN).status_code == 200
            assert statuses(client) == {200} and "recognise" in client.get("/").text
            assert client.get(f"{API}/file={site.database}").status_code == 403
        assert len(stored(site)) == 1
        assert site.errors() == ""  # with no password, and not that others may come in


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_passwords_cannot_be_guessed_by_trying_many(guarded):
    site = guarded[0]
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(15) as threads:
        answers = list(threads.map(lambda number: post(site, "/login", data={**LOGIN, "password": f"guess {number}"}),
                                   range(15)))
    looked_at = [answer for answer in answers if answer.status_code != 429]
    assert {answer.status_code for answer in looked_at} == {400} and len(looked_at) < 15
    assert time.monotonic() - begin > len(looked_at) - 2  # one a second
    assert post(site, "/login", data=LOGIN).status_code == 200


def test_the_next_page_deletes_what_a_killed_one_has_left(tmp_path):
    """Processes that make their folder as a page does before it imports Gradio, which takes seconds."""
    command = [sys.executable, "-c", "from app.temporary import own_folder; print(own_folder(), flush=True); input()"]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(tmp_path))}
    with contextlib.ExitStack() as stack:
        def started() -> tuple[subprocess.Popen, Path]:
            process = stack.enter_context(subprocess.Popen(command, env=surroundings, text=True, stdin=subprocess.PIPE,
                                                           stdout=subprocess.PIPE))
            return process, Path(process.stdout.readline().strip())

        killed, left = started()
        killed.kill()
        killed.wait()
        assert left.exists()
        _, second = started()
        _, third = started()
        assert set(tmp_path.iterdir()) == {second, third}  # that of a running page stays
        stack.close()
    assert not list(tmp_path.iterdir())


def test_an_end_is_quiet_and_leaves_nothing_behind(guarded):
    """While visitors are still connected."""
    for site, sent in zip(guarded, (signal.SIGINT, signal.SIGTERM)):
        with httpx.Client(base_url=site.address, timeout=20) as client:
            client.post("/login", data=LOGIN)
            client.post(f"{API}/upload", files={"files": ("x.png", GOOD)})
            assert list(site.folder.glob("mnist-page-*/*/x.png"))
            with client.stream("GET", f"{API}/heartbeat/x"):
                site.process.send_signal(sent)
                assert site.process.wait(10) == 0
        assert site.errors() == "" and not list(site.folder.glob("mnist-page-*"))


@pytest.mark.parametrize("host, alone", [
    ("127.0.0.1", True), ("127.8.8.8", True), ("localhost", True), ("::1", True), ("[::1]", True), ("0.0.0.0", False),
    ("::", False), ("192.168.1.7", False), ("example.com", False), ("localhost.example.com", False), ("", False)])
def test_addresses_that_let_others_in_are_told(host, alone):
    assert is_loopback(host) is alone


MAIN = """
import json, os, sys
from app.__main__ import main
for arguments, surroundings in json.load(sys.stdin):
    os.environ.update(surroundings)
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    print(status, file=sys.stderr)
"""


def test_what_cannot_be_served_is_said_in_a_sentence(running, output, tmp_path):
    """In one process, because each start takes seconds; none gets as far as to serve."""
    (tmp_path / "other.pth").write_bytes(pack({"weights": {}}))
    port, right = str(urlsplit(running.address).port), str(output / "MNIST-MODEL.pth")
    cases = [
        ([], {"APP_USER": "anna", "APP_PASSWORD": ""}, "APP_USER and APP_PASSWORD go together: set both, or neither"),
        (["--user", "anna"], {"APP_USER": ""}, "a user name and a password go together: give both, or neither"),
        (["--password", "secret"], {}, "a user name and a password go together: give both, or neither"),
        ([], {"MODEL_PATH": str(tmp_path / "none.pth")}, f"{tmp_path / 'none.pth'} is missing: run workspace.ipynb, "
                                                         "which trains and saves it"),
        ([], {"MODEL_PATH": str(tmp_path / "other.pth")}, f"{tmp_path / 'other.pth'} is not one of this project's "
                                                          "weights files: those hold architecture, mean, std, weights"),
        (["--port", port], {"MODEL_PATH": right}, f"cannot listen on 127.0.0.1, port {port}: "),
        (["--host", "192.0.2.1"], {}, "192.0.2.1 lets other machines in, which may see, label and delete drawings, and "
                                      "teach the network: set APP_USER and APP_PASSWORD"),  # an address that nobody has
        *((["--port", number], {}, f"error: argument --port: a port is a number from 1 to 65535, not '{number}'")
          for number in ("0", "65536", "-1", "x", "80.5"))]
    site = site_in(tmp_path, output)
    done = subprocess.run([sys.executable, "-c", MAIN], input=json.dumps([case[:2] for case in cases]), text=True,
                          capture_output=True, env=site.surroundings, cwd=tmp_path, timeout=60)
    assert done.stdout == "" and "Traceback" not in done.stderr
    *blocks, rest = re.split(r"^(?:2\n)", done.stderr, flags=re.MULTILINE)
    assert rest == "" and len(blocks) == len(cases)
    for (_, _, sentence), block in zip(cases, blocks):
        *usage, last = [line for line in block.splitlines() if "cannot listen on 192.0.2.1: " not in line]
        assert last.startswith(f"python -m app: {sentence}"), block
        assert not usage or usage[0].startswith("usage: ")


# what the tabs show, without a browser

@pytest.fixture(scope="module")
def filled(output, tmp_path_factory) -> Iterator[Page]:
    """A page with six drawings: two right, one wrong, three without a label."""
    store = Store(sa.URL.create("sqlite", database=str(tmp_path_factory.mktemp("filled") / "predictions.db")))
    page = Page(MNISTPredictor(output / "MNIST-MODEL.pth"), store)
    for digit, confidence, label in ((3, 0.99, 3), (3, 0.55, 5), (7, 0.81, 7), (7, 0.42, None), (1, 1.0, None),
                                     (0, 0.97, None)):
        row = store.save(uuid.uuid4(), digit, confidence, [0.1] * 10, GOOD, page.predictor.digest)
        store.label(row, label)
    yield page
    page.stop()


HOUR = timedelta(hours=1)


@pytest.mark.parametrize("changed, expected", [
    ({}, [6, 5, 4, 3, 2, 1]), ({"predicted": "3"}, [2, 1]), ({"label": "7"}, [3]), ({"verdict": "right"}, [3, 1]),
    ({"verdict": "wrong"}, [2]), ({"verdict": "unlabelled"}, [6, 5, 4]), ({"most": 60}, [4, 2]), ({"most": 0}, []),
    ({"since": datetime.now(UTC) + HOUR}, []), ({"until": datetime.now(UTC) - HOUR}, []),
    ({"since": datetime.now(UTC) - HOUR, "until": datetime.now(UTC) + HOUR, "predicted": "7", "most": 50}, [4])])
def test_each_filter_leaves_its_drawings(filled, changed, expected):
    wanted = {"predicted": "any", "label": "any", "verdict": "all", "since": None, "until": None, "most": 100} | changed
    rows, text, page = filled.history(*wanted.values(), 1)
    assert [row["id"] for row in rows] == expected and page == 1
    assert text == f"{len(expected)} {'drawing' if len(expected) == 1 else 'drawings'}; page 1 of 1"
    lines = Path(filled.csv(*wanted.values())["value"]).read_text("utf-8").splitlines()
    assert [int(line.split(",")[0]) for line in lines[1:]] == sorted(expected)


def test_the_statistics_show_what_there_is(filled):
    shown = filled.statistics()
    tables = [re.findall(r"<tr>(.*?)</tr>", table) for table in re.findall(r"<table.*?</table>", shown)]
    digits, confusion, sure, days = [[re.sub("<[^>]+>", " ", row).split() for row in table] for table in tables]
    assert [digits[digit][1] for digit in (3, 5, 7)] == ["1", "0", "1"] and digits[3] == ["3", "1", "of", "1"]
    assert confusion[6] == ["5", "1"] and len(confusion) == 11
    assert [int(row[-1]) for row in sure] == [0, 0, 0, 0, 1, 1, 0, 0, 1, 3]
    parts = re.findall(r'class="(\w+)" style="width:([\d.]+)%', tables[2][9])
    assert [(part, float(share)) for part, share in parts] == [("right", 33.33), ("wrong", 0), ("unlabelled", 66.67)]
    assert 'style="left:66.67%"' in shown  # the mark on the interval
    assert days == [[f"{datetime.now(UTC):%Y-%m-%d}", "6"]]
    assert "66.7 %</strong> of 3 labelled drawings read right (2; 95 % interval" in shown
    unsure, latest = (re.findall(r"<figcaption>(.*?)</figcaption>", part) for part in shown.split("Latest drawings"))
    assert [text[:9] for text in unsure] == ["read as 7", "read as 0", "read as 1"] and "no label yet" in unsure[0]
    assert latest[0] == "read as 0 (97 %)<br>no label yet" and latest[4] == "read as 3 (55 %)<br>labelled 5"
    assert re.findall(r'<figure class="(\w+)"', shown)[-6:] == ["unlabelled"] * 3 + ["right", "wrong", "right"]


def test_statistics_of_nothing(output, tmp_path):
    page = Page(MNISTPredictor(output / "MNIST-MODEL.pth"),
                Store(sa.URL.create("sqlite", database=str(tmp_path / "predictions.db"))))
    shown = page.statistics()
    page.stop()
    assert "0 drawings, none of them labelled yet" in shown and "Latest drawings" not in shown


# faults

def keeping(person: Person, kept: dict[str, int]) -> None:
    """Draw sevens until the page is gone; what it confirms goes to `kept`."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        while True:
            key = uuid.uuid4().hex
            kept[key] = person.call("keep", {"picture": DRAWINGS[7], "drawing": key, "label": 7})["id"]


def killed(site: Site, kept: dict[str, int]) -> None:
    """Start the page, and kill it while twenty people use it."""
    site.start()
    people, already, end = [Person(site.address) for _ in range(20)], len(kept), time.monotonic() + 20
    with concurrent.futures.ThreadPoolExecutor(20) as threads:
        for person in people:
            threads.submit(keeping, person, kept)
        while len(kept) < already + 40 and time.monotonic() < end:
            time.sleep(0.01)
        site.process.kill()
    assert len(kept) >= already + 40
    site.process.wait()
    site.process.stdout.close()


def test_what_is_confirmed_outlives_a_kill(output, tmp_path, postgresql):
    """Three times, with SQLite and PostgreSQL at once."""
    sites = []
    for name, url in (("sqlite", None), ("postgresql", postgresql)):
        (tmp_path / name).mkdir()
        sites.append(site_in(tmp_path / name, output, url))
    confirmed = [{}, {}]
    for _ in range(3):
        with concurrent.futures.ThreadPoolExecutor() as threads:
            list(threads.map(killed, sites, confirmed))
        for site, kept in zip(sites, confirmed):
            assert kept.items() <= stored(site, "WHERE true_label = 7").items()
            assert len(stored(site)) <= len(kept) + 3 * 20  # those that were on their way


def test_a_database_may_come_late_and_go_away(output, tmp_path, server, postgresql):
    server.stop()
    site = site_in(tmp_path, output, postgresql)
    site.start()
    try:
        assert site.errors() == "python -m app: the database cannot be reached: drawings are not being kept\n"
        people = [Person(site.address) for _ in range(10)]
        assert people[0].call("recognise", {"picture": DRAWINGS[3]})["digit"] == 3
        problem = {"problem": "the database cannot be reached: drawings are not being kept"}
        assert people[0].call("keep", {"picture": DRAWINGS[3], "drawing": uuid.uuid4().hex}) == problem
        assert people[0].call("state", None)["problem"] == problem["problem"]
        server.start()
        outage(server, people)
        assert {key: number for person in people for key, number in person.kept.items()} == stored(site)
        assert "Traceback" not in site.errors()
    finally:
        site.stop()


def outage(server, people: list[Person]) -> None:
    """Ten draw for a while, in which the database crashes and comes back; then they keep what they still have."""
    again, end = threading.Event(), time.monotonic() + 3

    def drawing(person: Person) -> int:
        problems = 0
        while time.monotonic() < end or not again.is_set():
            digit, key = len(person.kept) % 10, uuid.uuid4().hex
            begin = time.monotonic()
            assert person.call("recognise", {"picture": DRAWINGS[digit]})["digit"] == digit
            assert time.monotonic() - begin < 2
            message = {"picture": DRAWINGS[digit], "drawing": key, "label": digit}
            while "problem" in (answer := person.call("keep", message)):
                assert "id" not in answer and is_plain(answer["problem"])
                problems += 1
                time.sleep(0.1)
            person.kept[key] = answer["id"]
        return problems

    with concurrent.futures.ThreadPoolExecutor(10) as threads:
        tasks = [threads.submit(drawing, person) for person in people]
        time.sleep(1)
        server.stop()
        time.sleep(1)
        server.start()
        again.set()
        assert sum(task.result() for task in tasks)


def test_fifty_people_at_once(site):
    before, people = stored(site), [Person(site.address) for _ in range(50)]

    def draws_five(person: Person) -> None:
        for digit in range(5):
            assert person.call("recognise", {"picture": DRAWINGS[digit]})["digit"] == digit
            person.keep(DRAWINGS[digit])

    with concurrent.futures.ThreadPoolExecutor(50) as threads:
        list(threads.map(draws_five, people))
    kept = {key: number for person in people for key, number in person.kept.items()}
    assert len(kept) == 250 and before | kept == stored(site)
