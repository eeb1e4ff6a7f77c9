"""A notebook's button that reads the pictures which a person chooses."""

from typing import Any

import ipywidgets
import numpy as np
from IPython.display import display
from PIL import Image

from mnist.picture import PictureError
from mnist.predict import MNISTPredictor


def read_button(predictor: MNISTPredictor) -> ipywidgets.VBox:
    """A button to choose pictures, and below it the digits in each, with the network's input for every digit."""
    upload, results = ipywidgets.FileUpload(accept="image/*", multiple=True), ipywidgets.Output()

    def read(change: dict[str, Any]) -> None:
        with results:
            for file in change["new"]:
                show(predictor, file["name"], bytes(file["content"]))

    upload.observe(read, names="value")
    return ipywidgets.VBox([upload, results])


def show(predictor: MNISTPredictor, name: str, picture: bytes) -> None:
    """Print the digits in a picture, or why it cannot be read, and display the network's inputs side by side."""
    try:
        digits = predictor.read(picture)
    except PictureError as error:
        print(f"{name}: {error}")
        return
    if not digits:
        print(f"{name}: the picture is blank")
        return
    print(f"{name}: {' '.join('?' if one.digit is None else str(one.digit) for one in digits)}")
    for one in digits:
        if one.digit is None:
            print(f"?: {one.reason}")
        elif not one.trusted:
            print(f"do not trust the {one.digit} ({one.confidence:.1%}): {one.reason}")
    row = Image.fromarray(255 - np.hstack([one.picture for one in digits]))
    display(row.resize((3 * row.width, 3 * row.height), Image.Resampling.NEAREST))
