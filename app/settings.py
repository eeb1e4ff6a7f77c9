"""The page's settings, from the environment and from a file `.env` in the current folder.

    >>> settings = read_settings()
    >>> settings.database    # sqlite:///predictions.db, where nothing is set

The environment wins over the file, and an empty value counts as none.
"""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dotenv import dotenv_values
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg", "sqlite": "sqlite"}


class SettingsError(ValueError):
    """A setting cannot be used; the message names the variable and never what is secret in it."""


@dataclass(frozen=True)
class Settings:
    """What the page needs to know; no password shows when it is printed.

    `database` has its driver named, `model_path` is the weights file, and `user` and `password`,
    both or neither, are what the page asks of its visitors.
    """

    database: URL
    model_path: Path
    user: str | None
    password: str | None = field(repr=False)


def read_settings() -> Settings:
    """Read the settings; SettingsError for the first one that cannot be used.

    `DATABASE_URL` names the database, or else `POSTGRES_HOST` with `POSTGRES_PORT` (5432),
    `POSTGRES_DB` (mnist), `POSTGRES_USER` (postgres) and `POSTGRES_PASSWORD`; without either it is
    the SQLite file `predictions.db`. That file and the weights, unless `MODEL_PATH` names them, are
    in the folder `MNIST_OUTPUT`, or else the current one. `APP_USER` and `APP_PASSWORD` go together.
    """
    try:
        file = dotenv_values(".env", interpolate=False, encoding="utf-8-sig")  # with or without Notepad's mark
    except (OSError, UnicodeDecodeError):
        raise SettingsError("the file .env cannot be read: it must be text in UTF-8") from None
    values = {name: value for name, value in {**file, **os.environ}.items() if value}
    user, password = values.get("APP_USER"), values.get("APP_PASSWORD")
    if (user is None) != (password is None):
        raise SettingsError("APP_USER and APP_PASSWORD go together: set both, or neither")
    folder = Path(values.get("MNIST_OUTPUT", "."))
    model_path = Path(values.get("MODEL_PATH", folder / "MNIST-MODEL.pth"))
    return Settings(_database(values, folder), model_path, user, password)


def is_loopback(host: str) -> bool:
    """Whether a name or address leads to this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _database(values: Mapping[str, str], folder: Path) -> URL:
    if "DATABASE_URL" in values:
        return _parsed(values["DATABASE_URL"])
    if "POSTGRES_HOST" not in values:
        return URL.create("sqlite", database=str(folder / "predictions.db"))
    port = values.get("POSTGRES_PORT", "5432")
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise SettingsError(f"POSTGRES_PORT must be a number from 1 to 65535, not {port!r}")
    return URL.create(DRIVERS["postgresql"], values.get("POSTGRES_USER", "postgres"), values.get("POSTGRES_PASSWORD"),
                      values["POSTGRES_HOST"], int(port), values.get("POSTGRES_DB", "mnist"))


def _parsed(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # whose own words may hold a part of the password
        raise SettingsError("DATABASE_URL cannot be read: write it as postgresql://user:password@host:port/name "
                            "or sqlite:///file.db, with each sign of the password that is no letter or digit "
                            "as %40 (@), %3A (:), %2F (/) or %25 (%)") from None
    backend = url.get_backend_name()
    if backend not in DRIVERS:
        raise SettingsError("DATABASE_URL is of a kind that is not known: it must begin with postgresql:// or sqlite://")
    if backend == "sqlite" and (url.host or url.database in (None, "", ":memory:")):
        raise SettingsError("DATABASE_URL names no file: write its path behind three slashes, sqlite:///predictions.db")
    if backend != "sqlite" and not url.database:
        raise SettingsError("DATABASE_URL names no database: write it at the end, postgresql://user@host/mnist")
    if backend != "sqlite" and text.count("@") > 1:
        raise SettingsError('DATABASE_URL has more than one "@": write those in the password as %40')
    if url.port is not None and not 0 < url.port < 2**16:
        raise SettingsError("DATABASE_URL must have a port from 1 to 65535")
    if "password" in url.query:  # libpq takes it there as well, but there it would show
        url = url.set(password=url.query["password"]).difference_update_query(["password"])
    return url.set(drivername=DRIVERS[backend])
