"""pytest plugin: a browser, and the page in a separate process.

A test file loads it with `pytest_plugins = ["browser"]`. Where there is no browser, its tests are skipped.
In continuous integration they fail instead.
"""

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from mnist.html import NoBrowser, browsing
from visitor import Site, serving

MISSING = "there is no Chromium or Chrome on this machine"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        with browsing() as browser:
            yield browser
    except NoBrowser:
        assert "CI" not in os.environ, MISSING
        pytest.skip(MISSING)


@pytest.fixture(scope="module")
def site(output) -> Iterator[Site]:
    """The page with the weights that workspace.ipynb has trained in this test run, or else the committed weights."""
    with serving(output / "MNIST-MODEL.pth") as site:
        yield site
