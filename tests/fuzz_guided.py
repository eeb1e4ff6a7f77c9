"""Mutate a kind of file guided by coverage: python tests/fuzz_guided.py IDX --seconds 60.

libFuzzer, through Atheris, keeps the mutations that reach new code and mutates those again. It helps
where Python code reads a file that has no checksum: IDX files, and .env with python-dotenv. What counts
as a fault is said in fuzz.py. Install Atheris first: pip install --group fuzz.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mnist_utils", "app.settings", "dotenv"]):
    import app.settings  # noqa: F401
    import mnist_utils  # noqa: F401

from fuzz import forget_settings, kinds, outcome_of

KINDS = "IDX", ".env"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("kind", choices=KINDS)
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    forget_settings()
    logging.disable()  # python-dotenv reports each line that it cannot parse
    with tempfile.TemporaryDirectory() as folder:
        kind = kinds(Path(folder))[chosen.kind]
        (corpus := Path(folder, "corpus")).mkdir()
        (corpus / "example").write_bytes(kind.example)
        path = Path(folder, kind.name)

        def read(data: bytes) -> None:
            path.write_bytes(data)
            outcome, _ = outcome_of(kind, path, data)
            assert outcome in ("read", "refused"), outcome

        atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={chosen.seconds}", f"-seed={chosen.seed}",
                       "-print_final_stats=1", f"-artifact_prefix={Path.cwd()}/"], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
