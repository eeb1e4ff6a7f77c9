"""A notebook's button that reads the pictures which a person chooses."""

from typing import Any

import ipywidgets
import numpy as np
from IPython.display import display
from PIL import Image

from mnist.picture import PictureError
from mnist.predict import MNISTPredictor


def read_button(predictor: MNISTPredictor) -> ipywidgets.VBox:
    """A button to choose pictures, and below it the numbers in each, with the network's input for every digit."""
    upload, results = ipywidgets.FileUpload(accept="image/*", multiple=True), ipywidgets.Output()

    def read(change: dict[str, Any]) -> None:
        with results:
            for file in change["new"]:
                show(predictor, file["name"], bytes(file["content"]))

    upload.observe(read, names="value")
    return ipywidgets.VBox([upload, results])


def show(predictor: MNISTPredictor, name: str, picture: bytes) -> None:
    """Print the numbers in a picture, or why it cannot be read, and display the network's inputs side by side."""
    try:
        numbers = predictor.read_numbers(picture)
    except PictureError as error:
        print(f"{name}: {error}")
        return
    print(f"{name}: {' '.join(number.text for number in numbers) or 'no digit was found'}")
    for number in numbers:
        if not number.trusted:
            print(f"do not trust {number.text} ({number.confidence:.1%}): {number.reason}")
        row = Image.fromarray(255 - np.hstack([one.picture for one in number.digits]))
        display(row.resize((3 * row.width, 3 * row.height), Image.Resampling.NEAREST))
