"""Serve the page: python -m app, or `make app`. It prints its address. Ctrl-C stops it.

`python -m app check` checks the database and each drawing in it. `python -m app backup FILE` copies
an SQLite database, also while the page runs. The settings come from options, from the environment, or
from a file `.env`: see app/settings.py.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from app.settings import is_loopback, read_settings
from app.store import Store, StoreError

if TYPE_CHECKING:
    from app.page import Page


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = argparse.ArgumentParser(prog="python -m app", description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("command", nargs="?", choices=["serve", "check", "backup"], default="serve",
                         help="what to do (default: %(default)s)")
    options.add_argument("file", nargs="?", type=Path, help="backup: the file to write")
    options.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s, this "
                                                             "machine alone)")
    options.add_argument("--port", type=_port, help="the port (default: the first free one from 7860 up)")
    options.add_argument("--user", help="ask visitors for this name and a password (default: APP_USER)")
    options.add_argument("--password", help="the password for that name; APP_PASSWORD is safer, because other "
                                             "users of this machine can see the options of a command")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Check or copy the database, or run the page until Ctrl-C or SIGTERM. Returns the exit status.

    It is 0, or 1 where a check has found damage, or 2 where the command cannot be done.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # service managers stop a process with SIGTERM
    options = parser().parse_args(arguments)
    if (options.command == "backup") != (options.file is not None):
        print("python -m app: backup needs the name of a file, and no other command takes one", file=sys.stderr)
        return 2
    try:
        if options.command == "check":
            return check(Store(read_settings().database))
        if options.command == "backup":
            Store(read_settings().database).backup(options.file)
            print(f"copied the database to {options.file}")
            return 0
        page, address = serve(options)
        print(f"Draw at {address} (Ctrl-C ends it)", flush=True)
        try:
            while True:
                time.sleep(60)  # Ctrl-C interrupts this on Windows, too
        finally:
            page.stop()
    except KeyboardInterrupt:
        return 0
    except (OSError, ValueError, StoreError) as error:
        print(f"python -m app: {error}", file=sys.stderr)
        return 2


def check(store: Store) -> int:
    """Print what a check of the database finds. Returns 1 where something is damaged, otherwise 0."""
    health = store.check()
    if health.faults is None:
        print("The database was not asked to check itself: on PostgreSQL, run CREATE EXTENSION amcheck first.")
    else:
        print("\n".join(health.faults) or "The database finds no fault in itself.")
    intact = health.total - health.unproven - len(health.damaged)
    print(f"{intact:,} of {health.total:,} drawings match their checksums.")
    if health.unproven:
        print(f"Saved before drawings had checksums: {health.unproven:,}")
    if health.damaged:
        print(f"Damaged: {len(health.damaged):,}, with the numbers {', '.join(map(str, health.damaged[:20]))}"
              + (", …" if len(health.damaged) > 20 else ""))
    return int(bool(health.faults or health.damaged))


def serve(options: argparse.Namespace) -> tuple["Page", str]:
    """Start the page and print warnings to stderr. Returns the page and its address.

    Raises OSError where a file cannot be read or the address cannot be used, and ValueError where a
    setting or the weights file is invalid.
    """
    settings = read_settings()
    user, password = options.user or settings.user, options.password or settings.password
    if bool(user) != bool(password):
        raise ValueError("a user name and a password go together: give both, or neither")
    import torch  # slow to import, as the next ones

    from mnist.predict import MNISTPredictor

    torch.set_num_threads(1)  # one picture is too little work to split among threads, and many arrive at once

    store, predictor = Store(settings.database), MNISTPredictor(settings.model_path)
    from app.page import Page

    if not is_loopback(options.host):
        print(f"python -m app: {options.host} lets other machines in, which may see, label and delete drawings, and "
              "teach the network"
              + ("" if user else ": set APP_USER and APP_PASSWORD"), file=sys.stderr)
    page = Page(predictor, store)
    address = page.start(options.host, options.port, user, password)
    if problem := store.problem():
        print(f"python -m app: {problem}", file=sys.stderr)
    return page, address


def _port(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, not {text!r}")
    return int(text)



if __name__ == "__main__":
    sys.exit(main())
