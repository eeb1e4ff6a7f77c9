"""Keep drawings and the network's answers in a database: PostgreSQL, or SQLite in a file.

    >>> store = Store(read_settings().database)
    >>> row = store.save(uuid4(), 7, 0.98, probabilities, png, digest)
    >>> store.label(row, 7)
    >>> store.statistics().accuracy    # 1.0

Once `save`, `label`, `delete` or `discard` has returned, the change is on the disk. While the database cannot
be reached, every method raises StoreError. Once it can be reached again, the methods work again.
"""

import contextlib
import csv
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import numpy as np
import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from app.table import (
    EVERYTHING,
    INTACT,
    Base,
    Damaged,
    Filter,
    Prediction,
    Statistics,
    checked_digit,
    checked_share,
    checksum,
    stored_checksum,
)

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
INSERT = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
DAMAGED = ("XX001", "XX002")  # SQLSTATE of PostgreSQL's errors
MAKING = 0x4D4E495354  # key of the PostgreSQL advisory lock for creating the table
EXPORT_BATCH = 500  # rows read at a time: a few megabytes with their images

# seconds
CONNECT_TIMEOUT = 3
LOCK_TIMEOUT = 2  # waiting for others to finish, in the database or in this process
STATEMENT_TIMEOUT = 3
ANSWER_TIMEOUT = 4  # above STATEMENT_TIMEOUT, so that only a frozen or vanished server exceeds it
QUIET = 1  # after a failure to connect, wait this long before the next attempt

AWAY = "the database cannot be reached: drawings are not being kept"
BUSY = "the database is busy: try again in a moment"
FOREIGN = "the table predictions holds an invalid value: repair that row, or name another database in DATABASE_URL"
CROWDED = "the database server has no connection left: raise its limit, or close other programs"
UNKNOWN = "the database {name} reports the error {code}: drawings are not being kept"
FAULTS = {  # by SQLite's error name, or by PostgreSQL's SQLSTATE
    "SQLITE_BUSY": "the database file {name} is locked by another program: wait until it is done, or close it",
    "SQLITE_CANTOPEN": "the database file {name} cannot be opened: its folder must exist and be writable",
    "SQLITE_CORRUPT": "the database file {name} is damaged: restore it from a copy, or move it away",
    "SQLITE_FULL": "the disk is full: drawings are not being kept until there is room for {name}",
    "SQLITE_IOERR": "the database file {name} cannot be read or written: check its disk",
    "SQLITE_NOTADB": "the file {name} is not an SQLite database: move it away, or name another in DATABASE_URL",
    "SQLITE_READONLY": "the database file {name} is read-only: make it and its folder writable",
    "XX001": "the database {name} is damaged: restore it from a copy",
    "XX002": "the database {name} has a damaged index: run REINDEX DATABASE, or restore it from a copy",
    "25006": "the database {name} is read-only: drawings are not being kept",
    "42501": "the database {name} does not let this user read and write its table: grant POSTGRES_USER these rights",
    "53100": "the database server's disk is full: drawings are not being kept until there is room",
    "55P03": BUSY,
    "57014": "the database takes too long to answer: try again in a moment",
}
REFUSALS = {  # by words of PostgreSQL's message, because errors while connecting have no SQLSTATE
    "password": "the database refuses the user or the password: check POSTGRES_USER and POSTGRES_PASSWORD, "
                "or DATABASE_URL",
    "does not exist": "the server has no such database or user: create {name}, or check POSTGRES_DB and "
                      "POSTGRES_USER, or DATABASE_URL",
    "too many": CROWDED,
    "connection slots": CROWDED,
}


class StoreError(Exception):
    """The database could not do it. The message is one sentence for the page, without secrets or SQL."""


class MissingError(StoreError):
    """There is no drawing with this number."""


@dataclass(frozen=True)
class Health:
    """What a check of the database has found."""

    faults: list[str] | None  # the database's own findings; None where it cannot check itself
    total: int  # rows
    unproven: int  # rows that were saved before rows had checksums
    damaged: list[int]  # numbers of the rows that do not match their checksums


class _Connection(psycopg.Connection):
    """A connection that closes itself where the server stops answering: a frozen server reports no error."""

    def wait(self, gen, interval=0.1, timeout=None):
        try:
            return super().wait(gen, interval, timeout or ANSWER_TIMEOUT)
        except psycopg.OperationalError:
            if self.info.transaction_status == TransactionStatus.ACTIVE:
                self.close()
            raise


class Store:
    """The table `predictions` of one database. Threads may share a store.

    The constructor does not connect. The first method that reaches the database creates the table
    where it is missing. Every method that needs the database raises StoreError where the database
    fails, or where its table `predictions` lacks a column; such a table is not changed.
    A row is damaged if it is not what was saved; this shows in its checksum (`digest`).
    """

    def __init__(self, url: sa.URL) -> None:
        self._lock, self._fault, self._silent_until = threading.Lock(), "", 0.0
        self._queue: list[threading.Event] = []
        is_file = url.get_backend_name() == "sqlite"
        limits = {"timeout": LOCK_TIMEOUT} if is_file else {
            "connect_timeout": CONNECT_TIMEOUT, "tcp_user_timeout": 1000 * ANSWER_TIMEOUT,
            "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
        self._engine = sa.create_engine(
            url, connect_args={name: value for name, value in limits.items() if name not in url.query},
            hide_parameters=True, poolclass=sa.QueuePool, pool_timeout=LOCK_TIMEOUT, pool_pre_ping=True)
        if is_file:
            sa.event.listen(self._engine, "connect", _set_up_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
            sa.event.listen(self._engine, "checkout", self._refuse_a_replaced_file)
        else:
            sa.event.listen(self._engine, "do_connect", _connect_postgresql)
            sa.event.listen(self._engine, "connect", _set_up_postgresql)

    def close(self) -> None:
        """Close the connections. The next method opens new ones."""
        self._engine.dispose()

    def problem(self) -> str | None:
        """A sentence that says why the database cannot be used now, or None where it can."""
        try:
            with self._session() as session:
                session.execute(sa.select(Prediction.id).limit(1))
            return None
        except StoreError as error:
            return str(error)

    def save(self, drawing: uuid.UUID, digit: int, confidence: float, probabilities: Sequence[float],
             image_png: bytes, model_digest: str) -> int:
        """Keep a drawing and return its number.

        `drawing` is its unique key. `confidence` and each of the ten `probabilities` are from 0 to 1.
        A drawing that is there already is replaced: it keeps its number and its true label, and takes
        the time of this save. So the same call may be repeated after an error. Raises ValueError
        where the digit, a probability or the picture is invalid.
        """
        if len(probabilities) != 10:
            raise ValueError(f"there must be ten probabilities, not {len(probabilities)}")
        if not image_png.startswith(PNG_MAGIC):
            raise ValueError("the image is not a PNG file")
        values = {"timestamp": datetime.now(UTC), "predicted_digit": checked_digit("digit", digit),
                  "confidence": checked_share("confidence", confidence), "image_data": image_png,
                  "probabilities": [checked_share("a probability", value) for value in probabilities],
                  "model_digest": model_digest}
        table = Prediction.__table__  # statements on the table itself take half the time of those on the class
        update = sa.update(table).where(table.c.drawing == drawing).values(**values)
        insert = INSERT[self._engine.dialect.name](table).values(drawing=drawing, **values)
        upsert = insert.on_conflict_do_update(index_elements=[table.c.drawing], set_=values)
        with self._session(writes=True) as session:  # an upsert alone uses up a number even to update
            connection = session.connection()
            known = connection.execute(update.returning(table.c.id)).scalar_one_or_none()
            row = known or connection.execute(upsert.returning(table.c.id)).scalar_one()
            connection.execute(sa.update(table).where(table.c.id == row).values(digest=stored_checksum()))
            return row

    def label(self, id: int, true_label: int | None) -> None:
        """Set the true label of a drawing, a digit, or remove it with None.

        Raises MissingError where there is no such drawing, and ValueError where the label is no digit.
        """
        label = None if true_label is None else checked_digit("true_label", true_label)
        self._change(id, sa.update(Prediction).values(true_label=label))

    def delete(self, id: int) -> None:
        """Delete a drawing. Raises MissingError where there is no drawing with this number."""
        self._change(id, sa.delete(Prediction))

    def discard(self, drawing: uuid.UUID) -> None:
        """Delete the drawing with this key, if there is one."""
        with self._session(writes=True) as session:
            session.execute(sa.delete(Prediction).where(Prediction.drawing == drawing))

    def search(self, wanted: Filter = EVERYTHING, limit: int = 50, offset: int = 0) -> list[Prediction | Damaged]:
        """The drawings that match the filter, most recent first; in place of a damaged one its number.

        Skips the first `offset` of them and returns at most `limit`. Raises ValueError where `limit`
        is less than 1 or `offset` less than 0.
        """
        if not (0 < limit < 2**31 and 0 <= offset < 2**31):
            raise ValueError(f"a page needs a limit from 1 and an offset from 0, below 2**31, not {limit} and {offset}")
        newest_first = Prediction.timestamp.desc(), Prediction.id.desc()
        query = sa.select(Prediction.id).where(*wanted.conditions()).order_by(*newest_first)
        return self._found(query.limit(limit).offset(offset))

    def least_sure(self, limit: int) -> list[Prediction]:
        """At most `limit` undamaged drawings without a label, the least confident first."""
        query = sa.select(Prediction.id).where(Prediction.true_label.is_(None)).order_by(
            Prediction.confidence, Prediction.id).limit(limit)
        return [row for row in self._found(query) if isinstance(row, Prediction)]

    def _found(self, numbers: sa.Select) -> list[Prediction | Damaged]:
        """The drawings with the numbers that a query gives, in its order; in place of a damaged one its number."""
        with self._session() as session:
            self._hold_still(session)
            found = session.scalars(numbers).all()
            intact = sa.select(Prediction).where(Prediction.id.in_(found), INTACT)
            rows = {row.id: row for row in session.scalars(intact)}
            return [rows.get(number, Damaged(number)) for number in found]

    def count(self, wanted: Filter = EVERYTHING) -> int:
        """How many drawings match the filter."""
        with self._session() as session:
            return session.execute(sa.select(sa.func.count(Prediction.id)).where(*wanted.conditions())).scalar_one()

    def score(self) -> tuple[int, int, int]:
        """The number of all drawings, of the labelled drawings, and of the labelled drawings that were read right."""
        counts = sa.func.count(Prediction.id), sa.func.count(Prediction.true_label), sa.func.count(
            sa.case((Prediction.true_label == Prediction.predicted_digit, 1)))
        with self._session() as session:
            return tuple(session.execute(sa.select(*counts)).one())

    def statistics(self) -> Statistics:
        """Count all drawings but the damaged ones. The database checks and counts them."""
        steps = (sa.case((Prediction.confidence >= edge / 10, 1), else_=0) for edge in range(1, 10))
        cells = sa.select(Prediction.true_label, Prediction.predicted_digit, sum(steps).label("bin"), sa.func.count()) \
            .group_by(Prediction.true_label, Prediction.predicted_digit, "bin")
        days = sa.select(sa.func.date(Prediction.timestamp, type_=sa.Date).label("day"), sa.func.count()) \
            .group_by("day").order_by("day")
        confusion, histogram = np.zeros((10, 10), int), np.zeros((10, 3), int)
        with self._session() as session:
            self._hold_still(session)
            damaged = session.execute(sa.select(sa.func.count()).where(~INTACT)).scalar_one()
            if damaged:  # otherwise an index is enough, and no images are read again
                cells, days = cells.where(INTACT), days.where(INTACT)
            for label, digit, tenth, count in session.execute(cells):
                histogram[tenth, 2 if label is None else int(label != digit)] += count
                if label is not None:
                    confusion[label, digit] += count
            return Statistics(confusion, histogram, dict(session.execute(days).all()), damaged)

    def export_csv(self, file: TextIO, wanted: Filter = EVERYTHING) -> None:
        """Write the drawings that match the filter as CSV, in the order of their numbers, without images.

        Damaged drawings are left out. `file` must have been opened with newline="". Times are ISO 8601
        in UTC. A missing label is an empty field. The rows are read in batches to save memory, so the
        file may include drawings that are saved during the export.
        """
        columns = [Prediction.id, Prediction.timestamp, Prediction.predicted_digit, Prediction.confidence,
                   Prediction.true_label, Prediction.probabilities]
        writer = csv.writer(file)
        writer.writerow([*(column.key for column in columns[:-1]), *(f"probability_{digit}" for digit in range(10))])
        for id, timestamp, *answer, probabilities in self._rows(columns, wanted.conditions()):
            writer.writerow([id, timestamp.isoformat(), *answer, *probabilities])

    def labelled(self) -> Iterator[tuple[int, bytes, int]]:
        """The number, PNG file and true label of each labelled drawing, in the order of their numbers.

        Damaged drawings are left out. The rows are read in batches, to save memory.
        """
        columns = [Prediction.id, Prediction.image_data, Prediction.true_label]
        return (tuple(row) for row in self._rows(columns, [Prediction.true_label.is_not(None)]))

    def check(self) -> Health:
        """Let the database check its own file, and compare each row with its checksum.

        PostgreSQL checks its table and indexes where its extension amcheck is installed.
        """
        with self._session() as session:
            self._hold_still(session)
            if self._engine.dialect.name == "sqlite":
                faults = [line for line in session.scalars(sa.text("PRAGMA integrity_check")) if line != "ok"]
            else:
                session.execute(sa.text("SET LOCAL statement_timeout = 0"))
                faults = _amcheck(session)
            total, proven = session.execute(sa.select(sa.func.count(), sa.func.count(Prediction.digest))
                                            .select_from(Prediction)).one()
            damaged = session.scalars(sa.select(Prediction.id).where(~INTACT).order_by(Prediction.id)).all()
        return Health(faults, total, total - proven, list(damaged))

    def backup(self, path: Path) -> None:
        """Copy an SQLite database to a new file, while others may read and write it.

        Raises FileExistsError where the file exists, and StoreError for PostgreSQL, which has its own command.
        """
        if self._engine.dialect.name != "sqlite":
            raise StoreError("PostgreSQL makes its own copies, also while the page runs: "
                             "pg_dump --format=custom --file=drawings.dump DATABASE_URL")
        if path.exists():
            raise FileExistsError(f"{path} exists already: name another file, or move it away")
        partial = path.with_name(path.name + ".partial")
        partial.unlink(missing_ok=True)
        try:
            with self._session() as session, contextlib.closing(sqlite3.connect(partial)) as copy:
                session.connection().connection.driver_connection.backup(copy)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _rows(self, columns: Sequence[sa.ColumnElement], conditions: list[sa.ColumnElement[bool]]) -> Iterator[sa.Row]:
        """The rows in the order of their numbers, which must be the first column.

        The rows are read in batches, and between two batches no transaction is open.
        """
        last, part = 0, [None] * EXPORT_BATCH
        while len(part) == EXPORT_BATCH:
            query = sa.select(*columns).where(Prediction.id > last, INTACT, *conditions).order_by(Prediction.id)
            with self._session() as session:
                part = session.execute(query.limit(EXPORT_BATCH)).all()
            yield from part
            last = part[-1][0] if part else last

    def _hold_still(self, session: Session) -> None:
        """Let all queries of this transaction see the same moment, as they do in SQLite anyway."""
        if self._engine.dialect.name == "postgresql":
            session.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))

    def _change(self, id: int, statement: sa.Update | sa.Delete) -> None:
        with self._session(writes=True) as session:
            if not 0 < id < 2**31 or not session.execute(statement.where(Prediction.id == id)).rowcount:
                raise MissingError(f"there is no drawing {id}: it may have been deleted")

    @contextlib.contextmanager
    def _session(self, *, writes: bool = False) -> Iterator[Session]:
        """A transaction that is committed at its end. Errors of the database become a StoreError."""
        with self._turn(writes), self._contact() as connection:
            connection.execution_options(writes=writes)
            try:
                with Session(connection, expire_on_commit=False) as session, session.begin():
                    yield session
            except DBAPIError as error:
                self.close()  # somebody may have changed the table: new connections check it again
                raise StoreError(self._sentence(error)) from error
            except (ValueError, TypeError) as error:  # from SQLAlchemy, where another program has written nonsense
                raise StoreError(FOREIGN) from error

    @contextlib.contextmanager
    def _turn(self, writes: bool) -> Iterator[None]:
        """Let threads write to SQLite one at a time, in the order in which they came.

        SQLite allows one writer at a time. Its own way of waiting has no order, and lets some threads starve.
        """
        if not writes or self._engine.dialect.name != "sqlite":
            yield
            return
        mine = threading.Event()
        with self._lock:
            self._queue.append(mine)
            self._queue[0].set()
        try:
            if not mine.wait(LOCK_TIMEOUT):
                raise StoreError(BUSY)
            yield
        finally:
            with self._lock:
                self._queue.remove(mine)
                if self._queue:
                    self._queue[0].set()

    def _contact(self) -> sa.Connection:
        """A connection to the database, in which the table exists.

        After a failure only one thread tries to connect; the others raise the same StoreError at once.
        """
        with self._lock:
            if self._fault and time.monotonic() < self._silent_until:
                raise StoreError(self._fault)
            self._silent_until = time.monotonic() + CONNECT_TIMEOUT + ANSWER_TIMEOUT
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(self._engine.connect())
                self._prepare(connection)
            except (DBAPIError, PoolTimeout, StoreError) as error:
                fault = str(error) if isinstance(error, StoreError) else self._sentence(error)
                with self._lock:
                    self._fault, self._silent_until = fault, time.monotonic() + QUIET
                raise StoreError(fault) from error
            self._fault = ""
            stack.pop_all()
            return connection

    def _prepare(self, connection: sa.Connection) -> None:
        """Create the table where it is missing, and the column `digest` in a table made before there was one.

        Each connection is checked once. Raises StoreError where the table lacks other columns.
        """
        if "prepared" in connection.info:
            return
        table = Prediction.__tablename__
        with connection.begin():
            missing = not sa.inspect(connection).has_table(table)
        if missing:
            with _making(connection):
                Base.metadata.create_all(connection)
        with connection.begin():
            lacking = _lacking(connection)
        if lacking == [Prediction.digest.key]:
            with _making(connection):
                if _lacking(connection):  # nobody has been faster
                    kind = Prediction.digest.type.compile(connection.dialect)
                    connection.execute(sa.DDL(f"ALTER TABLE {table} ADD COLUMN {Prediction.digest.key} {kind}"))
        elif lacking:
            raise StoreError(f"the database has another table {table}, without {', '.join(lacking)}: rename it, "
                             f"or name another database in DATABASE_URL")
        if connection.dialect.name == "sqlite":
            # only after the checks, because this changes the file; without WAL, readers wait for the writer
            with contextlib.suppress(sqlite3.Error):
                connection.connection.execute("PRAGMA journal_mode = WAL")
        connection.info["prepared"] = self._file()

    def _file(self) -> tuple[int, int] | None:
        """The device and inode of an SQLite database's file, or None where there is no file."""
        try:
            status = os.stat(self._engine.url.database)
        except (OSError, TypeError):
            return None
        return status.st_dev, status.st_ino

    def _refuse_a_replaced_file(self, connection, record, proxy) -> None:
        """Drop a connection whose file was deleted or moved away, because SQLite would go on writing to that file."""
        now = self._file()
        if record.info.get("prepared", now) != now:
            raise DisconnectionError("the database file has been replaced")

    def _sentence(self, error: DBAPIError | PoolTimeout) -> str:
        """The sentence that the page shows for an error."""
        if isinstance(error, PoolTimeout):
            return BUSY
        cause, name = error.orig, Path(self._engine.url.database or "").name  # visitors need not see its folder
        if isinstance(cause, sqlite3.Error):
            code = "_".join(getattr(cause, "sqlite_errorname", "SQLITE_ERROR").split("_")[:2])
        else:
            code = getattr(cause, "sqlstate", None) or "08"
        if code.startswith(("08", "57P")):  # the connection failed, or the server ended it
            return next((text for words, text in REFUSALS.items() if words in str(cause)), AWAY).format(name=name)
        return FAULTS.get(code, UNKNOWN).format(name=name, code=code)


@contextlib.contextmanager
def _making(connection: sa.Connection) -> Iterator[None]:
    """A transaction in which nobody else creates or extends the table."""
    with connection.execution_options(writes=True).begin():
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MAKING)))
        yield


def _lacking(connection: sa.Connection) -> list[str]:
    """The columns that the table lacks."""
    found = {column["name"] for column in sa.inspect(connection).get_columns(Prediction.__tablename__)}
    return [column.name for column in Prediction.__table__.columns if column.name not in found]


def _amcheck(session: Session) -> list[str] | None:
    """What PostgreSQL's extension amcheck says of the table and its indexes; None where it is not installed."""
    installed = sa.text("SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'")
    if not session.execute(installed).scalar_one():
        return None
    table = f"'{Prediction.__tablename__}'::regclass"
    faults = list(session.scalars(sa.text(f"SELECT msg FROM verify_heapam({table})")))
    try:
        with session.begin_nested():  # it reports damage as an error, after which the transaction must go on
            session.execute(sa.text(f"SELECT bt_index_check(indexrelid, true) FROM pg_index WHERE indrelid = {table}"))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", "") not in DAMAGED:
            raise
        faults.append(str(error.orig).splitlines()[0])
    return faults


def _set_up_sqlite(connection: sqlite3.Connection, record) -> None:
    connection.isolation_level = None  # transactions begin in _begin_sqlite, not at the first change
    connection.execute("PRAGMA synchronous = FULL")
    connection.create_function("checksum", 7, checksum, deterministic=True)


def _begin_sqlite(connection: sa.Connection) -> None:
    # a transaction that reads first and then writes would fail where another one has written in between
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def _connect_postgresql(dialect, record, words: list, options: dict) -> _Connection:
    return _Connection.connect(*words, **options)


def _set_up_postgresql(connection: psycopg.Connection, record) -> None:
    connection.execute(f"SET TIME ZONE 'UTC'; SET lock_timeout = '{LOCK_TIMEOUT}s'; "
                       f"SET statement_timeout = '{STATEMENT_TIMEOUT}s'")
    connection.commit()
