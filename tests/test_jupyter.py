"""playground.ipynb as a person runs it: in JupyterLab, in a real browser, up to the page in its last cell."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

pytest_plugins = ["browser"]

ROOT = Path(__file__).parents[1]
LINKED = ["app", "dataset", "mnist", "mnist_utils.py"]
PATIENCE = 90_000  # ms


@pytest.fixture
def lab(tmp_path, output) -> str:
    """The address of a JupyterLab of its own, on a copy: the notebook saves itself."""
    for name in LINKED:
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "figures", tmp_path / "figures")
    shutil.copy(output / "MNIST-MODEL.pth", tmp_path)
    shutil.copy(ROOT / "playground.ipynb", tmp_path)
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("MNIST_OUTPUT", "DATABASE_URL", "POSTGRES_", "MODEL_PATH", "APP_"))}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--ip=127.0.0.1",
               "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    lab = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for line in lab.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+/lab\?token=\w+", line):
                break
        yield found[0].replace("/lab?", "/lab/tree/playground.ipynb?")
    finally:
        lab.send_signal(signal.SIGTERM)
        lab.stderr.close()
        lab.wait(20)


def test_the_page_in_the_playground_s_cell_reads_what_is_drawn(lab, browser: Browser):
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.goto(lab)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=PATIENCE)
    page.get_by_text("| Idle").wait_for(timeout=PATIENCE)
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.locator("[data-command='runmenu:run-all']").click()
    frame = page.locator(".jp-OutputArea-output iframe")
    frame.wait_for(timeout=PATIENCE)
    frame.scroll_into_view_if_needed()
    inside = frame.content_frame
    canvas = inside.locator("#pad canvas.ink")
    canvas.scroll_into_view_if_needed(timeout=PATIENCE)
    box = canvas.bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"])
              for x, y in ((0.3, 0.25), (0.7, 0.25), (0.5, 0.55), (0.42, 0.8))]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=5)
    page.mouse.up()
    expect(inside.locator("#pad .digit")).to_have_text("7", timeout=10_000)
    inside.get_by_role("button", name="It was a 7").click()
    expect(inside.locator("#pad .kept")).to_contain_text("right", timeout=10_000)
