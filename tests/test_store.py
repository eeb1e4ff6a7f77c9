"""The page's database and settings, each rule on a real PostgreSQL server and a real SQLite file."""

import concurrent.futures
import contextlib
import csv
import io
import logging
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image
from sklearn.metrics import confusion_matrix
from sqlalchemy.orm import Session

import app.store
from app.settings import SettingsError, read_settings
from app.store import EXPORT_BATCH, MissingError, Store, StoreError
from app.table import Damaged, Filter, Prediction

pytest_plugins = ["databases"]

ROOT = Path(__file__).parents[1]
TENTHS = [0.1] * 10
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def png(size: int = 28) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(size).integers(0, 256, (size, size), np.uint8)).save(file, "PNG")
    return file.getvalue()


PNG = png()


@pytest.fixture
def store(database) -> Iterator[Store]:
    store = Store(database)
    yield store
    store.close()


def save(store: Store, drawing: uuid.UUID | None = None, digit: int = 7, confidence: float = 0.9) -> int:
    return store.save(drawing or uuid.uuid4(), digit, confidence, TENTHS, PNG, "abc")


def execute(url: sa.URL, statement: str, **values) -> list[tuple]:
    """What another program does to the database; returns its rows."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        result = connection.execute(sa.text(statement), values)
        return [tuple(row) for row in result] if result.returns_rows else []


def fill(url: sa.URL, count: int, seed: int = 0) -> list[dict]:
    """Put that many random rows into the table, over four days of noons and midnights in many time zones."""
    rng = np.random.default_rng(seed)
    rows = [{"timestamp": NOON + timedelta(microseconds=int(rng.integers(4 * 24 * 3600 * 10**6))),
             "predicted_digit": int(rng.integers(10)), "true_label": [None, *range(10)][rng.integers(11)],
             "confidence": float(rng.integers(11) / 10 if index % 3 == 0 else rng.random()), "image_data": PNG,
             "probabilities": rng.random(10).tolist(), "model_digest": "abc", "drawing": uuid.uuid4()}
            for index in range(count)]
    for row in rows[::2]:
        row["true_label"] = row["predicted_digit"]
    store = Store(url)
    assert store.problem() is None  # makes the table
    engine = sa.create_engine(url)
    with Session(engine) as session, session.begin():
        zone = timezone(timedelta(hours=-11))
        session.add_all([Prediction(**row | {"timestamp": row["timestamp"].astimezone(zone)}) for row in rows])
    engine.dispose()
    store.close()
    return [row | {"id": number} for number, row in enumerate(rows, 1)]


def fault(action: Callable, *arguments, within: float = 4) -> str:
    """The sentence of the StoreError that the action must raise, in so many seconds at most."""
    begin = time.monotonic()
    with pytest.raises(StoreError) as caught:
        action(*arguments)
    assert time.monotonic() - begin < within
    sentence = str(caught.value)
    assert "\n" not in sentence and "SELECT" not in sentence and sentence[-1] != "."
    return sentence


def soon(store: Store) -> int:
    """Save until it succeeds, which it must in four seconds; returns the number."""
    begin = time.monotonic()
    while True:
        try:
            return save(store)
        except StoreError:
            assert time.monotonic() - begin < 4
            time.sleep(0.05)


# drawings in and out

def test_a_drawing_comes_back_as_it_was_saved(store):
    key, probabilities = uuid.uuid4(), np.random.default_rng(0).dirichlet(np.ones(10))
    before = datetime.now(UTC)
    number = store.save(key, np.int64(3), np.float32(0.75), probabilities, PNG, "abc")
    row, = store.search()
    assert (row.id, row.drawing, row.predicted_digit, row.confidence, row.true_label) == (number, key, 3, 0.75, None)
    assert (row.image_data, row.model_digest, row.probabilities) == (PNG, "abc", probabilities.tolist())
    assert before <= row.timestamp <= datetime.now(UTC) and row.timestamp.utcoffset() == timedelta(0)


def test_saving_a_drawing_again_replaces_it_and_keeps_its_label(store):
    key = uuid.uuid4()
    number = save(store, key, 3)
    store.label(number, 8)
    first, = store.search()
    assert store.save(key, 8, 0.5, TENTHS[::-1], png(30), "def") == number
    again, = store.search()
    assert (again.predicted_digit, again.confidence, again.image_data, again.model_digest) == (8, 0.5, png(30), "def")
    assert again.true_label == 8 and again.timestamp > first.timestamp
    assert save(store, digit=3) != number and store.count() == 2


def test_labels_are_set_and_taken_back(store):
    number = save(store, digit=4)
    for label in (0, 9, None):
        store.label(number, label)
        assert store.search()[0].true_label is label
    store.delete(number)
    assert store.search() == [] and store.count() == 0


def test_a_number_is_never_given_twice_and_a_missing_one_is_an_error(store):
    number = save(store)
    store.delete(number)
    assert save(store) != number
    for missing in (number, 0, -1, 2**31, 2**70):
        for action in (lambda missing=missing: store.delete(missing), lambda missing=missing: store.label(missing, 1)):
            with pytest.raises(MissingError, match=f"no drawing {missing}"):
                action()


@pytest.mark.parametrize("change, words", [
    ({"digit": 11}, "digit"), ({"digit": -1}, "digit"), ({"digit": 3.5}, "digit"), ({"digit": None}, "digit"),
    ({"confidence": 2}, "confidence"), ({"confidence": float("nan")}, "confidence"),
    ({"probabilities": [0.1] * 9}, "ten"), ({"probabilities": [*TENTHS[1:], float("nan")]}, "probability"),
    ({"probabilities": [*TENTHS[1:], -0.1]}, "probability"), ({"image_png": b""}, "PNG"),
    ({"image_png": b"GIF89a"}, "PNG"),
])
def test_what_is_no_answer_is_refused_before_the_database(change, words, tmp_path):
    store = Store(sa.URL.create("sqlite", database=str(tmp_path / "missing" / "file.db")))
    answer = {"digit": 1, "confidence": 0.5, "probabilities": TENTHS, "image_png": PNG, "model_digest": "abc"}
    with pytest.raises(ValueError, match=words):
        store.save(uuid.uuid4(), **answer | change)
    with pytest.raises(ValueError, match="true_label"):
        store.label(1, 10)


@pytest.mark.parametrize("column, value", [
    ("predicted_digit", "10"), ("predicted_digit", "-1"), ("predicted_digit", "NULL"), ("true_label", "10"),
    ("confidence", "1.01"), ("confidence", "-0.01"), ("confidence", "NULL"), ("timestamp", "NULL"),
    ("timestamp", "'yesterday''s'"), ("image_data", "NULL"), ("image_data", "''"), ("model_digest", "NULL"),
    ("probabilities", "'[1, 2]'"), ("probabilities", "'one'"), ("probabilities", "NULL"), ("drawing", "NULL"),
])
def test_the_database_itself_refuses_what_is_no_answer(column, value, store, database):
    store.label(save(store, digit=0, confidence=1), 9)
    with pytest.raises(sa.exc.DBAPIError):
        execute(database, f"UPDATE predictions SET {column} = {value}")
    assert store.search()[0].true_label == 9


def test_sqlite_lets_no_other_type_into_a_digit(sqlite):
    save(Store(sqlite))
    for value in ("3.5", "'seven'", "x'07'"):
        with pytest.raises(sa.exc.IntegrityError):
            execute(sqlite, f"UPDATE predictions SET predicted_digit = {value}")


def test_the_database_itself_knows_each_drawing_once(store, database):
    save(store)
    save(store)
    with pytest.raises(sa.exc.IntegrityError):
        execute(database, "UPDATE predictions SET drawing = (SELECT drawing FROM predictions LIMIT 1)")


# what is found and counted

def fits(row: dict, wanted: Filter) -> bool:
    label, digit = row["true_label"], row["predicted_digit"]
    verdict = "unlabelled" if label is None else "right" if label == digit else "wrong"
    return (wanted.predicted in (None, digit) and (wanted.label is None or wanted.label == label)
            and wanted.verdict in ("all", verdict) and (wanted.since is None or wanted.since <= row["timestamp"])
            and (wanted.until is None or row["timestamp"] < wanted.until)
            and row["confidence"] <= (1 if wanted.most is None else wanted.most))


def test_a_search_finds_what_fits_newest_first(store, database):
    rows = fill(database, 400)
    rows.sort(key=lambda row: (row["timestamp"], row["id"]), reverse=True)
    moment = rows[100]["timestamp"]
    elsewhere = rows[200]["timestamp"].astimezone(timezone(timedelta(hours=9)))
    filters = [Filter(), Filter(predicted=0), Filter(label=0), *(Filter(verdict=name) for name in ("right", "wrong")),
               Filter(verdict="unlabelled"), Filter(since=moment), Filter(until=moment), Filter(since=elsewhere),
               Filter(most=0.6), Filter(most=1), Filter(most=0), Filter(label=3, verdict="unlabelled"),
               Filter(predicted=4, label=4, verdict="right", since=elsewhere, until=moment, most=0.9)]
    for wanted in filters:
        expected = [row["id"] for row in rows if fits(row, wanted)]
        assert [row.id for row in store.search(wanted, limit=1000)] == expected
        assert store.count(wanted) == len(expected)
    assert [row.id for row in store.search(limit=7, offset=390)] == [row["id"] for row in rows[390:397]]
    assert [row.timestamp for row in store.search(limit=400)] == [row["timestamp"] for row in rows]
    assert store.search(offset=400) == []


@pytest.mark.parametrize("faulty", [
    {"predicted": 10}, {"label": -1}, {"verdict": "perhaps"}, {"most": 1.5}, {"most": float("nan")},
    {"since": datetime(2026, 1, 1)}, {"until": datetime(2026, 1, 1)},
])
def test_a_filter_that_cannot_be_is_refused(faulty):
    with pytest.raises(ValueError, match=next(iter(faulty))):
        Filter(**faulty)


@pytest.mark.parametrize("limit, offset", [(0, 0), (-1, 0), (1, -1), (2**31, 0), (1, 2**70)])
def test_a_page_that_cannot_be_is_refused(limit, offset, sqlite):
    with pytest.raises(ValueError, match="page"):
        Store(sqlite).search(limit=limit, offset=offset)


def test_statistics_equal_those_of_scikit_learn(store, database):
    rows = fill(database, 600, seed=1)
    statistics = store.statistics()
    labelled = [row for row in rows if row["true_label"] is not None]
    truth, answers = ([row[name] for row in labelled] for name in ("true_label", "predicted_digit"))
    np.testing.assert_array_equal(statistics.confusion, confusion_matrix(truth, answers, labels=range(10)))
    right = [label == digit for label, digit in zip(truth, answers)]
    assert (statistics.total, statistics.labelled, statistics.right) == (600, len(labelled), sum(right))
    assert statistics.accuracy == pytest.approx(np.mean(right))
    assert statistics.per_digit == [(truth.count(digit), sum(np.array(right)[np.array(truth) == digit]))
                                    for digit in range(10)]
    verdicts = [Filter(verdict=verdict) for verdict in ("right", "wrong", "unlabelled")]
    for column, wanted in zip(statistics.histogram.T, verdicts):
        shares = [row["confidence"] for row in rows if fits(row, wanted)]
        np.testing.assert_array_equal(column, np.histogram(shares, np.arange(11) / 10)[0])
    days = Counter(row["timestamp"].date() for row in rows)
    assert list(statistics.per_day.items()) == sorted(days.items()) and len(days) == 5


def test_what_is_worth_a_label_comes_first(store):
    ids = [save(store, digit=3, confidence=confidence) for confidence in (0.9, 0.4, 0.7, 0.3)]
    store.label(ids[3], 3)
    assert [row.id for row in store.least_sure(2)] == [ids[1], ids[2]]
    assert [row.id for row in store.least_sure(9)] == [ids[1], ids[2], ids[0]]


def test_discarding_by_key_deletes_one_drawing(store):
    key = uuid.uuid4()
    number, other = save(store, drawing=key), save(store)
    store.discard(uuid.uuid4())
    store.discard(key)
    store.discard(key)
    assert [row.id for row in store.search()] == [other] != [number]


def test_an_empty_table_has_statistics(store):
    statistics = store.statistics()
    assert (statistics.total, statistics.labelled, statistics.accuracy, statistics.per_day) == (0, 0, None, {})
    assert not statistics.confusion.any() and statistics.confusion.shape == (10, 10)


def test_csv_holds_every_row_that_is_wanted(store, database):
    rows = fill(database, 2 * EXPORT_BATCH)  # ends where a part ends
    file = io.StringIO(newline="")
    store.export_csv(file)
    for line, row in zip(csv.DictReader(file.getvalue().splitlines()), rows, strict=True):
        assert int(line["id"]) == row["id"] and int(line["predicted_digit"]) == row["predicted_digit"]
        assert line["true_label"] == ("" if row["true_label"] is None else str(row["true_label"]))
        assert datetime.fromisoformat(line["timestamp"]) == row["timestamp"] and line["timestamp"].endswith("+00:00")
        assert float(line["confidence"]) == row["confidence"]
        assert [float(line[f"probability_{digit}"]) for digit in range(10)] == row["probabilities"]


def test_labelled_drawings_are_read_without_keeping_a_transaction(store, database):
    rows = fill(database, EXPORT_BATCH + 200)
    drawings = store.labelled()
    assert next(drawings) == (1, PNG, rows[0]["true_label"])
    execute(database, "DELETE FROM predictions WHERE id = 1")  # waits for nobody
    expected = [row["true_label"] for row in rows if row["true_label"] is not None]
    assert [label for *_, label in drawings] == expected[1:]


def test_a_drawing_saved_again_takes_no_new_number(store):
    key = uuid.uuid4()
    assert [save(store, drawing=key) for _ in range(3)] == [1, 1, 1]
    assert save(store) == 2


def test_the_score_counts_what_the_statistics_count(store, database):
    assert store.score() == (0, 0, 0)
    fill(database, 300)
    numbers = store.statistics()
    assert store.score() == (numbers.total, numbers.labelled, numbers.right)


# many at once

def test_a_clock_that_is_set_back_loses_nothing(store, database):
    fill(database, 3)
    known = execute(database, "SELECT drawing FROM predictions WHERE id = 2")[0][0]
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    execute(database, "UPDATE predictions SET timestamp = :tomorrow", tomorrow=f"{tomorrow:%Y-%m-%d %H:%M:%S.%f}")
    assert save(store, uuid.UUID(str(known))) == 2  # saved again, now with an earlier time
    assert save(store) == 4
    assert {row.id for row in store.search()} == {1, 2, 3, 4} and store.statistics().total == 4


def test_eight_threads_keep_each_drawing_once(store):
    keys = [uuid.uuid4() for _ in range(10)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        numbers = list(threads.map(lambda key: save(store, key), keys * 8))
    assert store.count() == 10 and [len(set(numbers[index::10])) for index in range(10)] == [1] * 10
    assert {row.drawing: row.id for row in store.search()} == dict(zip(keys, numbers))


@contextlib.contextmanager
def slowed(target: object, event: str, seconds: float) -> Iterator[None]:
    """Have SQLAlchemy pause wherever that event happens, as on a slow disk."""
    def pause(*_, **__) -> None:
        time.sleep(seconds)

    sa.event.listen(target, event, pause)
    try:
        yield
    finally:
        sa.event.remove(target, event, pause)


def test_eight_stores_make_the_table_once(database):
    stores = [Store(database) for _ in range(8)]
    # between looking for the table and making it
    with slowed(Prediction.metadata, "before_create", 0.1), concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(save, stores)) == list(range(1, 9))
    assert [store.count() for store in stores] == [8] * 8


def test_twenty_visitors_all_have_their_turn_on_a_slow_disk(store):
    save(store)
    with slowed(sa.Engine, "commit", 0.02), concurrent.futures.ThreadPoolExecutor(20) as visitors:
        assert len(set(visitors.map(lambda _: save(store), range(140)))) == 140


def test_statistics_are_of_one_moment(store):
    stop = threading.Event()

    def visitor() -> None:
        while not stop.is_set():
            save(store)

    with concurrent.futures.ThreadPoolExecutor() as visitors:
        visits = visitors.submit(visitor)
        try:
            while (moment := store.statistics()).total < 100:
                assert moment.total == sum(moment.per_day.values()) and not visits.done()
        finally:
            stop.set()
        visits.result()


WRITER = """
import itertools, os, sys, uuid
from app.settings import read_settings
from app.store import Store
store = Store(read_settings().database)
print("ready", flush=True)
sys.stdin.readline()
first, count = map(int, sys.argv[1:])
for number in itertools.islice(itertools.count(first), count or None):
    print(store.save(uuid.UUID(int=number), 1, 0.5, [0.1] * 10, bytes.fromhex(os.environ["PNG"]), "abc"), flush=True)
"""


@contextlib.contextmanager
def writer(url: sa.URL, folder: Path, first: int = 0, count: int = 0) -> Iterator[subprocess.Popen]:
    """A process that is ready to save so many drawings (0 for no end), numbered from the first, and print their ids."""
    secret = url.render_as_string(hide_password=False)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DATABASE_URL": secret, "PNG": PNG.hex()}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(first), str(count)], text=True, env=environment,
                          cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_two_processes_start_at_once_and_keep_each_drawing_once(database, tmp_path):
    with writer(database, tmp_path, count=40) as one, writer(database, tmp_path, count=40) as two:
        for process in (one, two):
            process.stdin.write("\n")
            process.stdin.flush()
        (first, error), (second, other) = one.communicate(timeout=20), two.communicate(timeout=20)
    assert (error, other) == ("", "") and len(first.split()) == 40 and first == second
    assert Store(database).count() == 40


def test_what_a_killed_process_has_saved_is_there(database, tmp_path):
    chance, printed = random.Random(0), []
    for kill in range(3):
        with writer(database, tmp_path, first=1_000_000 * kill) as process:
            process.stdin.write("\n")
            process.stdin.flush()
            printed += [process.stdout.readline() for _ in range(20)]
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
            printed += process.stdout.read().splitlines(keepends=True)
    printed = [int(line) for line in printed if line.endswith("\n")]  # the last one may be torn
    kept = [number for number, in execute(database, "SELECT id FROM predictions")]
    assert len(printed) > 60 and set(printed) <= set(kept) and len(kept) <= len(printed) + 6


# the database away, and back

def test_a_server_that_is_away_at_the_start_is_found_later(postgresql, server):
    server.stop()
    store = Store(postgresql)
    assert store.problem() == "the database cannot be reached: drawings are not being kept"
    for action in (store.statistics, store.search, lambda: list(store.labelled()), lambda: save(store)):
        assert fault(action) == store.problem()
    server.start()
    assert soon(store) == 1 and store.problem() is None


def test_a_server_that_crashes_is_missed_at_once_and_found_again(postgresql, server):
    store, stop, saved, sentences = Store(postgresql), threading.Event(), [], set()

    def visitor():
        while not stop.is_set():
            try:
                saved.append(save(store))
            except StoreError as error:
                sentences.add(str(error))
                time.sleep(0.01)

    with concurrent.futures.ThreadPoolExecutor(4) as visitors:
        visits = [visitors.submit(visitor) for _ in range(4)]
        try:
            for _ in range(2):
                time.sleep(0.3)
                server.stop()
                fault(save, store, within=1.5)
                server.start()
                soon(store)
        finally:
            stop.set()
        for visit in visits:
            visit.result()
    assert sentences == {"the database cannot be reached: drawings are not being kept"}
    assert set(saved) <= {number for number, in execute(postgresql, "SELECT id FROM predictions")} and len(saved) > 20


@pytest.mark.skipif(os.name != "posix", reason="processes are frozen by POSIX's signals")
def test_a_frozen_server_stops_nobody_for_long(postgresql, server, monkeypatch):
    monkeypatch.setattr(app.store, "ANSWER_TIMEOUT", 1)
    store = Store(postgresql)
    save(store)
    backends = server.execute("SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                              " AND pid <> pg_backend_pid()")
    frozen = [int((server.data / "postmaster.pid").read_text().split()[0]), *(pid for pid, in backends)]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert "cannot be reached" in fault(save, store, within=5)
        assert "cannot be reached" in fault(save, store, within=0.5)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    soon(store)


def test_fifty_visitors_do_not_each_wait_for_a_server_that_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = Store(sa.URL.create("postgresql+psycopg", "me", "word", "127.0.0.1", silent.getsockname()[1], "mnist"))
        with concurrent.futures.ThreadPoolExecutor(50) as visitors:
            sentences = set(visitors.map(lambda _: fault(save, store, within=6), range(50)))
        assert sentences == {"the database cannot be reached: drawings are not being kept",
                             "the database is busy: try again in a moment"}
        begin = time.monotonic()
        for _ in range(50):
            fault(save, store)
        assert time.monotonic() - begin < 0.5


def test_a_row_that_another_program_holds_is_not_waited_for(postgresql):
    store = Store(postgresql)
    number = save(store)
    engine = sa.create_engine(postgresql)
    with engine.begin() as other:
        other.execute(sa.text("UPDATE predictions SET true_label = 1"))
        assert fault(store.label, number, 2) == "the database is busy: try again in a moment"
        assert store.problem() is None
    engine.dispose()
    store.label(number, 2)


def test_a_table_that_is_dropped_is_made_anew(store, database):
    save(store)
    execute(database, "DROP TABLE predictions")
    assert "reports the error" in fault(save, store)
    soon(store)


def test_a_folder_that_is_missing_may_come_later(tmp_path):
    store = Store(sa.URL.create("sqlite", database=str(tmp_path / "missing" / "file.db")))
    assert "its folder must exist" in fault(save, store)
    (tmp_path / "missing").mkdir()
    assert soon(store) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows moves no open file")
def test_nothing_is_saved_into_a_file_that_has_been_moved_away(sqlite, tmp_path):
    store = Store(sqlite)
    save(store)
    for path in tmp_path.iterdir():
        path.rename(tmp_path / f"old-{path.name}")
    assert save(store) == 1 and store.count() == 1
    assert execute(sqlite, "SELECT count(*) FROM predictions") == [(1,)]


@pytest.mark.parametrize("new", [True, False])
def test_a_locked_file_is_an_error_until_it_is_free(sqlite, new):
    store = Store(sqlite)
    if not new:
        save(store)
    other = sqlite3.connect(sqlite.database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert "locked by another program" in fault(save, store)
    other.execute("ROLLBACK")
    other.close()
    soon(store)
    assert execute(sqlite, "PRAGMA journal_mode") == [("wal",)] and store.count() == 2 - new


def test_readers_do_not_wait_for_a_writer(sqlite):
    store = Store(sqlite)
    save(store)
    with contextlib.closing(sqlite3.connect(sqlite.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        begin = time.monotonic()
        assert store.count() == 1 and store.statistics().total == 1 and store.problem() is None
        assert time.monotonic() - begin < 1


def test_on_a_full_disk_a_drawing_is_refused_until_there_is_room(sqlite):
    def narrow(connection, record):
        connection.execute("PRAGMA max_page_count = 60")  # SQLite's own error, as where the disk has no more

    sa.event.listen(sa.Pool, "connect", narrow)
    try:
        store = Store(sqlite)
        with pytest.raises(StoreError, match="the disk is full: drawings are not being kept"):
            for _ in range(300):
                save(store)
        kept = store.count()
        assert kept > 20
        for row in store.search(limit=10):
            store.delete(row.id)
        save(store)
        assert store.count() == kept - 9
    finally:
        sa.event.remove(sa.Pool, "connect", narrow)


def test_a_read_only_file_can_still_be_read(sqlite):
    save(Store(sqlite))
    store = Store(sqlite.set(database=f"file:{sqlite.database}").update_query_dict({"mode": "ro", "uri": "true"}))
    assert "is read-only" in fault(save, store) and store.count() == 1


def test_another_table_of_that_name_is_left_alone(store, database):
    execute(database, "CREATE TABLE predictions (id integer, confidence real)")
    execute(database, "INSERT INTO predictions VALUES (1, 5.5)")
    before = Path(database.database).read_bytes() if database.get_backend_name() == "sqlite" else None
    for action in (store.search, lambda: save(store)):
        sentence = fault(action)
        assert "another table predictions, without timestamp, predicted_digit, true_label" in sentence
        assert "rename" in sentence
    assert execute(database, "SELECT * FROM predictions") == [(1, 5.5)]
    assert before is None or Path(database.database).read_bytes() == before
    execute(database, "ALTER TABLE predictions RENAME TO mine")
    assert soon(store) == 1


def test_a_file_that_is_no_database_is_left_alone(sqlite):
    Path(sqlite.database).write_text("my notes, which are longer than a header of 100 bytes\n" * 20)
    assert "is not an SQLite database" in fault(save, Store(sqlite))
    assert Path(sqlite.database).read_text().startswith("my notes")


@pytest.mark.parametrize("change, words", [
    ({"password": "wr@ng secret"}, "refuses the user or the password"), ({"password": ""}, "refuses the user"),
    ({"database": "elsewhere"}, "no such database"), ({"port": 1}, "cannot be reached"),
])
def test_a_refusal_is_explained_and_tells_no_secret(change, words, postgresql, caplog, capfd):
    for logger in (None, "sqlalchemy", "psycopg"):
        caplog.set_level(logging.DEBUG, logger)
    save(Store(postgresql))
    url = postgresql.set(**change)
    store = Store(url)
    with pytest.raises(StoreError, match=words) as caught:
        save(store)
    assert "connection attempt" in caplog.text and "INSERT INTO" in caplog.text
    shown = [caplog.text, *capfd.readouterr(), repr(store), str(url), repr(url), repr(vars(store)),
             "".join(traceback.format_exception(caught.value))]
    for secret in (postgresql.password, "wr@ng secret", "wr%40ng"):
        assert not any(secret in text for text in shown)


def test_a_user_who_may_not_is_told_so(postgresql, server):
    server.execute("CREATE ROLE visitor LOGIN PASSWORD 'secret' CONNECTION LIMIT 0")
    try:
        assert "no connection left" in fault(save, Store(postgresql.set(username="visitor", password="secret")))
        server.execute("ALTER ROLE visitor CONNECTION LIMIT 5")
        assert "does not let this user" in fault(save, Store(postgresql.set(username="visitor", password="secret")))
    finally:
        server.execute("DROP ROLE visitor")


# damage

def damage(database: sa.URL, column: str, id: int) -> None:
    """Change one value of a row a little, as a fault of a disk or of another program does."""
    postgres = database.get_backend_name() == "postgresql"
    value = {"image_data": "set_byte(image_data, 40, 3)" if postgres else "CAST(substr(image_data, 1, 40) || x'03' "
                           "|| substr(image_data, 42) AS BLOB)",
             "confidence": "confidence - 1e-12", "predicted_digit": "1 - predicted_digit / 9",
             "model_digest": "'abd'", "probabilities": "'[0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.2]'",
             "timestamp": "timestamp + interval '1 microsecond'" if postgres else
                          "substr(timestamp, 1, 25) || ((substr(timestamp, 26) + 1) % 10)",
             "drawing": f"'{uuid.uuid4()}'" if postgres else f"'{uuid.uuid4().hex}'",
             "digest": "set_byte(digest, 31, 0)" if postgres else "substr(digest, 1, 31)"}[column]
    execute(database, f"UPDATE predictions SET {column} = {value} WHERE id = {id}")


@pytest.mark.parametrize("column", ["image_data", "confidence", "predicted_digit", "model_digest",
                                    "probabilities", "timestamp", "drawing", "digest"])
def test_a_row_that_is_not_what_was_saved_is_damaged(column, store, database):
    for digit in (3, 4, 5):
        store.label(save(store, digit=digit), digit)
    damage(database, column, 2)
    assert sorted(row.id for row in store.search() if not isinstance(row, Damaged)) == [1, 3]
    assert [row for row in store.search() if isinstance(row, Damaged)] == [Damaged(2)]
    numbers = store.statistics()
    assert (numbers.total, numbers.labelled, sum(numbers.per_day.values()), numbers.damaged) == (2, 2, 2, 1)
    assert [row[0] for row in store.labelled()] == [1, 3]
    store.export_csv(file := io.StringIO())
    assert [row["id"] for row in csv.DictReader(io.StringIO(file.getvalue()))] == ["1", "3"]
    store.label(2, 6)
    health = store.check()
    assert (health.total, health.unproven, health.damaged) == (3, 0, [2]) and not health.faults
    store.delete(2)
    assert store.check().damaged == []


def test_rows_that_no_program_understands_do_not_hide_the_others(sqlite):
    store = Store(sqlite)
    for _ in range(3):
        save(store)
    with sqlite3.connect(sqlite.database) as other:
        other.execute("PRAGMA ignore_check_constraints = 1")
        other.execute("UPDATE predictions SET probabilities = 'no list', timestamp = x'ff' WHERE id = 2")
    other.close()
    assert {type(row) for row in store.search()} == {Prediction, Damaged}
    assert store.statistics().damaged == 1


def test_a_table_from_before_there_were_checksums_is_extended(store, database):
    save(store)
    execute(database, "ALTER TABLE predictions DROP COLUMN digest")
    others = [Store(database) for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(save, others)) == list(range(2, 10))
    for other in others:
        other.close()
    store.label(1, 7)
    health = store.check()
    assert (health.total, health.unproven, health.damaged) == (9, 1, []) and store.statistics().total == 9


def command(database: sa.URL, *arguments: str | Path) -> subprocess.CompletedProcess:
    variables = os.environ | {"DATABASE_URL": database.render_as_string(hide_password=False)}
    return subprocess.run([sys.executable, "-m", "app", *arguments], cwd=ROOT, env=variables, capture_output=True,
                          text=True)


def test_a_command_checks_the_database(store, database):
    for _ in range(3):
        save(store)
    done = command(database, "check")
    assert done.returncode == 0 and "3 of 3 drawings match their checksums" in done.stdout
    damage(database, "confidence", 2)
    done = command(database, "check")
    assert done.returncode == 1 and "Damaged: 1, with the numbers 2" in done.stdout


def test_sqlite_s_own_check_finds_a_damaged_index(sqlite):
    store = Store(sqlite)
    for _ in range(300):
        save(store, confidence=0.123456789)
    store.close()
    path = Path(sqlite.database)
    data = path.read_bytes()
    stored = b"\x3f\xbf\x9a\xdd\x37\x39\x63\x5f"  # 0.123456789; the last one lies in an index
    at = data.rindex(stored)
    path.write_bytes(data[:at] + b"\x3f\xbf\x9a\xdd\x37\x39\x63\x60" + data[at + 8:])
    done = command(sqlite, "check")
    assert done.returncode == 1 and "predictions" in done.stdout and "finds no fault" not in done.stdout


def test_a_copy_made_while_others_write_is_whole(sqlite, tmp_path):
    store = Store(sqlite)
    for _ in range(200):
        save(store)
    with writer(sqlite, tmp_path) as process:
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()  # it has begun to save
        done = command(sqlite, "backup", tmp_path / "copy.db")
        assert process.poll() is None and done.returncode == 0, done.stderr
    copy = Store(sqlite.set(database=str(tmp_path / "copy.db")))
    health = copy.check()
    assert 200 < health.total < store.count() and not health.faults and not health.damaged
    again = command(sqlite, "backup", tmp_path / "copy.db")
    assert again.returncode == 2 and "exists already" in again.stderr
    assert not list(tmp_path.glob("*.partial"))


def test_postgresql_is_copied_by_its_own_command(postgresql, tmp_path):
    done = command(postgresql, "backup", tmp_path / "copy.db")
    assert done.returncode == 2 and "pg_dump" in done.stderr and not list(tmp_path.glob("copy*"))


# settings

@pytest.fixture
def settings(tmp_path, monkeypatch) -> Callable:
    """Reads the settings where exactly these variables are set and the current folder has this .env."""
    names = ["DATABASE_URL", "MODEL_PATH", "MNIST_OUTPUT", "APP_USER", "APP_PASSWORD",
             *(f"POSTGRES_{part}" for part in ("HOST", "PORT", "DB", "USER", "PASSWORD"))]
    monkeypatch.chdir(tmp_path)

    def read(file: bytes = b"", **variables: str):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        (tmp_path / ".env").write_bytes(file)
        return read_settings()

    return read


def full(url: sa.URL) -> str:
    return url.render_as_string(hide_password=False)


def test_without_settings_all_is_in_the_current_folder(settings):
    plain = settings()
    assert str(plain.database) == "sqlite:///predictions.db" and plain.model_path == Path("MNIST-MODEL.pth")
    assert (plain.user, plain.password) == (None, None)
    elsewhere = settings(MNIST_OUTPUT="out", DATABASE_URL="", APP_USER="", POSTGRES_PASSWORD="unused")
    assert Path(elsewhere.database.database) == Path("out/predictions.db")
    assert elsewhere.model_path == Path("out/MNIST-MODEL.pth")
    assert settings(MNIST_OUTPUT="out", MODEL_PATH="mine.pth").model_path == Path("mine.pth")


@pytest.mark.parametrize("variables, url", [
    ({"POSTGRES_HOST": "db"}, "postgresql+psycopg://postgres@db:5432/mnist"),
    ({"POSTGRES_HOST": "db", "POSTGRES_PORT": "6000", "POSTGRES_DB": "d", "POSTGRES_USER": "u"},
     "postgresql+psycopg://u@db:6000/d"),
    ({"POSTGRES_HOST": "db", "POSTGRES_PASSWORD": "p@:/%"}, "postgresql+psycopg://postgres:p%40%3A%2F%25@db:5432/mnist"),
    ({"POSTGRES_HOST": "db", "DATABASE_URL": "sqlite:///my.db"}, "sqlite:///my.db"),
    ({"DATABASE_URL": "postgres://u:p%40%3A%2F%25@h/d"}, "postgresql+psycopg://u:p%40%3A%2F%25@h/d"),
    ({"DATABASE_URL": "postgresql://u:p@[::1]:9/d?sslmode=require"}, "postgresql+psycopg://u:p@[::1]:9/d?sslmode=require"),
    ({"DATABASE_URL": "postgresql+psycopg2://u@h/d"}, "postgresql+psycopg://u@h/d"),
    ({"DATABASE_URL": "postgresql://u@h/d?password=secret"}, "postgresql+psycopg://u:secret@h/d"),
])
def test_a_database_is_named_by_its_url_or_its_parts(variables, url, settings):
    assert full(settings(**variables).database) == url


@pytest.mark.parametrize("variables, words", [
    ({"POSTGRES_HOST": "db", "POSTGRES_PORT": "six"}, "POSTGRES_PORT must be a number"),
    ({"POSTGRES_HOST": "db", "POSTGRES_PORT": "65536"}, "POSTGRES_PORT must be a number"),
    ({"DATABASE_URL": "s3cret"}, "DATABASE_URL cannot be read"),
    ({"DATABASE_URL": "postgresql://u:s3cret@h:s3cret/d"}, "DATABASE_URL cannot be read"),
    ({"DATABASE_URL": "postgresql://u:s3@cret@h/d"}, "DATABASE_URL has more than one"),
    ({"DATABASE_URL": "postgresql://u:s3cret@h:99999/d"}, "DATABASE_URL must have a port"),
    ({"DATABASE_URL": "mysql://u:s3cret@h/d"}, "DATABASE_URL must begin with"),
    ({"DATABASE_URL": "postgresql://u:s3cret@h"}, "DATABASE_URL names no database"),
    ({"DATABASE_URL": "sqlite://"}, "DATABASE_URL names no file"),
    ({"DATABASE_URL": "sqlite:///:memory:"}, "DATABASE_URL names no file"),
    ({"DATABASE_URL": "sqlite://predictions.db"}, "DATABASE_URL names no file"),
    ({"APP_USER": "me"}, "APP_USER and APP_PASSWORD go together"),
    ({"APP_PASSWORD": "s3cret"}, "APP_USER and APP_PASSWORD go together"),
    ({"file": b"APP_USER=\xff"}, r"\.env cannot be read"),
])
def test_a_setting_that_cannot_be_used_is_named_and_its_secret_is_not(variables, words, settings):
    with pytest.raises(SettingsError, match=words) as caught:
        settings(**variables)
    assert "s3" not in "".join(traceback.format_exception(caught.value)).split("SettingsError: ")[1]


def test_the_environment_wins_over_the_file(settings):
    file = "\ufeffAPP_USER=file\nAPP_PASSWORD='pa$${word} #1'\nPOSTGRES_HOST=file\n# a note\n".encode()
    read = settings(file, POSTGRES_HOST="environment", POSTGRES_PASSWORD="s3cret")
    assert (read.user, read.password, read.database.host) == ("file", "pa$${word} #1", "environment")
    assert "s3cret" not in repr(read) and "word" not in repr(read) and "s3cret" in full(read.database)
