"""The table `predictions`: its rows, their checksums, filters that select rows, and statistics of all rows."""

import hashlib
import operator
import struct
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UTCDateTime(sa.TypeDecorator[datetime]):
    """Times with a time zone, stored and returned as UTC, also in SQLite, which has no time zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


class Base(DeclarativeBase):
    """The base class by which SQLAlchemy finds the table."""


DIGITS = ", ".join(map(str, range(10)))  # listed, because in SQLite 3.5 is BETWEEN 0 AND 9


class Prediction(Base):
    """One drawing and the network's answer: a row of the table `predictions`.

    `timestamp` is the time of the last save. `true_label` is the digit that, according to a person,
    the drawing shows. `probabilities` are those of the ten digits. `drawing` is a key that is made
    before the drawing is saved, so that saving it twice makes one row. `digest` is the row's checksum,
    see `checksum`; rows of a table made before this column came have none.
    """

    __tablename__ = "predictions"

    id: Mapped[int] = mapped_column(primary_key=True)
    timestamp: Mapped[datetime] = mapped_column(UTCDateTime)
    predicted_digit: Mapped[int] = mapped_column(sa.SmallInteger)
    confidence: Mapped[float] = mapped_column(sa.Float(53))
    true_label: Mapped[int | None] = mapped_column(sa.SmallInteger)
    image_data: Mapped[bytes] = mapped_column(sa.LargeBinary)
    probabilities: Mapped[list[float]] = mapped_column(sa.JSON)
    model_digest: Mapped[str]
    drawing: Mapped[uuid.UUID] = mapped_column(unique=True)
    digest: Mapped[bytes | None] = mapped_column(sa.LargeBinary)

    __table_args__ = (
        sa.CheckConstraint(f"predicted_digit IN ({DIGITS})", "predicted_digit_is_a_digit"),
        sa.CheckConstraint(f"true_label IN ({DIGITS})", "true_label_is_a_digit"),
        sa.CheckConstraint("confidence BETWEEN 0 AND 1", "confidence_is_from_0_to_1"),
        sa.CheckConstraint("length(image_data) > 0", "image_data_is_not_empty"),
        sa.CheckConstraint("json_array_length(probabilities) = 10", "probabilities_are_ten"),
        sa.CheckConstraint("datetime(timestamp) IS NOT NULL", "timestamp_is_a_time").ddl_if(dialect="sqlite"),
        sa.Index("predictions_by_time", "timestamp", "id"),
        sa.Index("predictions_by_digit", "predicted_digit", "timestamp"),
        sa.Index("predictions_by_label", "true_label", "timestamp"),
        sa.Index("predictions_counted", "true_label", "predicted_digit", "confidence"),  # counts without the images
        sa.Index("predictions_by_confidence", "confidence"),
        {"sqlite_autoincrement": True},  # so that no new drawing gets the number of a deleted one
    )


def checksum(image_data: bytes, confidence: float, drawing: str, timestamp: str, predicted_digit: int,
             model_digest: str, probabilities: str) -> bytes:
    """The SHA-256 of what was saved in a row, as SQLite stores it: times and probabilities are text.

    A value that no row can hold, because it is damaged, gives a checksum as well. The true label, which
    people change, is not part of it.
    """
    text = "|".join(map(str, (drawing, timestamp, predicted_digit, model_digest, probabilities)))
    try:
        values = bytes(image_data) + struct.pack(">d", confidence)
    except (TypeError, struct.error):
        values = b""
    return hashlib.sha256(values + text.encode(errors="surrogateescape")).digest()


class stored_checksum(sa.sql.functions.GenericFunction[bytes]):  # named as in SQL
    """What `checksum` gives for a row as the database holds it now."""

    type = sa.LargeBinary()
    inherit_cache = True


@compiles(stored_checksum, "sqlite")
def _in_sqlite(*_: object, **options: object) -> str:  # each connection has `checksum` as a function
    return "checksum(image_data, confidence, drawing, timestamp, predicted_digit, model_digest, probabilities)"


@compiles(stored_checksum, "postgresql")
def _in_postgresql(*_: object, **options: object) -> str:
    return ("sha256(image_data || float8send(confidence) || convert_to(concat(replace(drawing::text, '-', ''), '|', "
            "to_char(\"timestamp\" AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), '|', predicted_digit, '|', "
            "model_digest, '|', probabilities), 'UTF8'))")


INTACT = sa.or_(Prediction.digest.is_(None), Prediction.digest == stored_checksum())


@dataclass(frozen=True)
class Damaged:
    """A row whose values are not those that were saved."""

    id: int


VERDICTS = {
    "all": sa.true(),
    "right": Prediction.true_label == Prediction.predicted_digit,
    "wrong": Prediction.true_label != Prediction.predicted_digit,
    "unlabelled": Prediction.true_label.is_(None),
}
BOUNDS = {
    "predicted": (operator.eq, Prediction.predicted_digit),
    "label": (operator.eq, Prediction.true_label),
    "since": (operator.ge, Prediction.timestamp),
    "until": (operator.lt, Prediction.timestamp),
    "most": (operator.le, Prediction.confidence),
}


def checked_digit(name: str, value: int) -> int:
    """Return the value as an int. Raises ValueError, which mentions `name`, where it is no digit."""
    if value not in range(10):
        raise ValueError(f"{name} must be from 0 to 9, not {value!r}")
    return int(value)


def checked_share(name: str, value: float) -> float:
    """Return the value as a float. Raises ValueError, which mentions `name`, where it is not from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, not {value!r}")
    return float(value)


@dataclass(frozen=True)
class Filter:
    """Selects the drawings that meet every condition that is set.

    `predicted` and `label` are digits. The last save must be at or after `since`, and before `until`;
    both need a time zone. `most` is the highest confidence, from 0 to 1. Raises ValueError where a
    value is invalid.
    """

    predicted: int | None = None
    label: int | None = None
    verdict: Literal["all", "right", "wrong", "unlabelled"] = "all"
    since: datetime | None = None
    until: datetime | None = None
    most: float | None = None

    def __post_init__(self) -> None:
        for check, *names in ((checked_digit, "predicted", "label"), (checked_share, "most")):
            for name in names:
                if getattr(self, name) is not None:
                    check(name, getattr(self, name))
        for name in ("since", "until"):
            if getattr(self, name) is not None and getattr(self, name).utcoffset() is None:
                raise ValueError(f"{name} needs a time zone")
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}, not {self.verdict!r}")

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """The filter as conditions for the `where` of a query."""
        bounds = [compare(column, getattr(self, name)) for name, (compare, column) in BOUNDS.items()
                  if getattr(self, name) is not None]
        return [VERDICTS[self.verdict], *bounds]


EVERYTHING = Filter()


@dataclass(frozen=True, eq=False)
class Statistics:
    """Counts of all drawings at one moment.

    `confusion` (10, 10) counts the labelled drawings: a row for each true label, a column for each
    predicted digit. `histogram` (10, 3) counts all drawings: a row for each tenth of confidence, from
    0 to 1; the columns are right, wrong and unlabelled. `per_day` counts all drawings by the UTC day
    of their last save, in the order of the days. None of them includes the `damaged` rows.
    """

    confusion: np.ndarray
    histogram: np.ndarray
    per_day: dict[date, int]
    damaged: int = 0

    @property
    def total(self) -> int:
        """How many drawings there are, without the damaged ones."""
        return int(self.histogram.sum())

    @property
    def labelled(self) -> int:
        """How many drawings have a true label."""
        return int(self.confusion.sum())

    @property
    def right(self) -> int:
        """How many labelled drawings were predicted right."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float | None:
        """The share of the labelled drawings that were predicted right; None where no drawing is labelled."""
        return self.right / self.labelled if self.labelled else None

    @property
    def per_digit(self) -> list[tuple[int, int]]:
        """For each true label, how many drawings have it and how many of them were predicted right."""
        return list(zip(self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()))
