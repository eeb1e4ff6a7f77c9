"""pytest plugin: a browser, and the page in a process of its own.

A test file takes it with `pytest_plugins = ["browser"]`. Where there is no browser, its tests are skipped, but not in
continuous integration.
"""

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from visitor import Site, browsing, serving

MISSING = "there is no Chromium or Chrome on this machine"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        if browser is None and "CI" not in os.environ:
            pytest.skip(MISSING)
        assert browser, MISSING
        yield browser


@pytest.fixture(scope="module")
def site(output) -> Iterator[Site]:
    """The page with the weights that this session's workspace.ipynb has trained, or the committed ones."""
    with serving(output / "MNIST-MODEL.pth") as site:
        yield site
