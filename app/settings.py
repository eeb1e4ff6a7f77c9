"""Read the page's settings from the environment and from a file `.env` in the current folder.

    >>> settings = read_settings()
    >>> settings.database    # sqlite:///predictions.db by default

An environment variable overrides the file. An empty value counts as not set.
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
    """A setting cannot be used. The message names the variable, and never contains a secret."""


@dataclass(frozen=True)
class Settings:
    """The page's settings. Printing them shows no password.

    `database` includes the driver. `model_path` is the weights file. Visitors log in with `user` and
    `password`; where both are None, they need not log in.
    """

    database: URL
    model_path: Path
    user: str | None
    password: str | None = field(repr=False)


def read_settings() -> Settings:
    """Read the settings. Raises SettingsError for the first one that cannot be used.

    The database is the first of these that is set:
    - `DATABASE_URL`;
    - `POSTGRES_HOST`, with `POSTGRES_PORT` (default 5432), `POSTGRES_DB` (mnist), `POSTGRES_USER`
      (postgres) and `POSTGRES_PASSWORD`;
    - by default, the SQLite file `predictions.db` in the folder `MNIST_OUTPUT`.

    `MODEL_PATH` is the weights file (default: `MNIST-MODEL.pth` in the folder `MNIST_OUTPUT`).
    `MNIST_OUTPUT` is the current folder by default. `APP_USER` and `APP_PASSWORD` go together.
    """
    try:
        file = dotenv_values(".env", interpolate=False, encoding="utf-8-sig")  # with or without Windows Notepad's BOM
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
    """Whether only this machine can reach the host of this name or address."""
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
    except (ArgumentError, ValueError):  # its own message may contain a part of the password
        raise SettingsError("DATABASE_URL cannot be read: write it as postgresql://user:password@host:port/name "
                            "or sqlite:///file.db, and replace special characters in the password by their codes, "
                            "such as %40 (@), %3A (:), %2F (/) and %25 (%)") from None
    backend = url.get_backend_name()
    if backend not in DRIVERS:
        raise SettingsError("DATABASE_URL must begin with postgresql:// or sqlite://")
    if backend == "sqlite" and (url.host or url.database in (None, "", ":memory:")):
        raise SettingsError("DATABASE_URL names no file: write its path after three slashes, sqlite:///predictions.db")
    if backend != "sqlite" and not url.database:
        raise SettingsError("DATABASE_URL names no database: write it at the end, postgresql://user@host/mnist")
    if backend != "sqlite" and text.count("@") > 1:
        raise SettingsError('DATABASE_URL has more than one "@": write each "@" in the password as %40')
    if url.port is not None and not 0 < url.port < 2**16:
        raise SettingsError("DATABASE_URL must have a port from 1 to 65535")
    if "password" in url.query:  # libpq accepts a password there too, but printing the URL would show it
        url = url.set(password=url.query["password"]).difference_update_query(["password"])
    return url.set(drivername=DRIVERS[backend])
