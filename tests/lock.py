"""Write constraints.txt, the versions of all packages: python tests/lock.py, or `make lock`.

pip resolves the pins of pyproject.toml on this machine, without installing anything, and without
the present constraints. Packages that only other systems need are not among them.
"""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def resolved() -> list[str]:
    """Every package that pip would install in an empty environment, as name==version."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        subprocess.run([sys.executable, "-m", "pip", "install", "--group", "workspace", "--dry-run",
                        "--ignore-installed", "--quiet", "--report", report], cwd=ROOT, check=True)
        packages = [item["metadata"] for item in json.loads(report.read_text("utf-8"))["install"]]
    return sorted((f"{package['name']}=={package['version'].split('+')[0]}" for package in packages), key=str.lower)


if __name__ == "__main__":
    if sys.version_info[:2] != (3, 11):  # a later Python needs fewer packages, which 3.11 would then lack
        sys.exit("the lock is made with Python 3.11: make PYTHON=python3.11 lock")
    lines = [f"# Written by `make lock` with Python {platform.python_version()} on {platform.system()}.", *resolved()]
    (ROOT / "constraints.txt").write_text("\n".join(lines) + "\n", "utf-8")
    print(f"constraints.txt: {len(lines) - 1} packages")
