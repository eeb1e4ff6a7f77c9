"""Every named recipe, as data: how a network is trained, and what that is good for."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; for the fields without a remark see `mnist.train.train`."""

    network: str
    epochs: int
    learning_rate: float  # the peak of the one-cycle schedule
    batch_size: int = 128
    augment: bool = True  # with random warps
    muon: float | None = None
    label_smoothing: float = 0.0
    proxy: float = 1.0  # share of the images to train on in the first epoch
    hard_examples: float = 1.0  # share of the images to train on from the second epoch on
    bfloat16: bool | None = None  # None: if the hardware supports it natively
    validate: bool = True

    def settings(self) -> dict[str, Any]:
        """The arguments of `mnist.train.train` that the recipe sets."""
        return {"epochs": self.epochs, "batch_size": self.batch_size, "learning_rate": self.learning_rate,
                "augment": self.augment, "muon": self.muon, "label_smoothing": self.label_smoothing,
                "proxy": self.proxy, "hard_examples": self.hard_examples, "amp": self.bfloat16,
                "validate": self.validate}


@dataclass(frozen=True)
class StudyRecipe(Recipe):
    """A recipe of the study, which can also change the training set and distil."""

    images: int | None = None  # train on so many of the training images only
    teachers: str | None = None  # name of the recipe whose training runs are the teacher ensemble
    copies: int = 0  # warped copies of each training image in the transfer set
    batch_norm: bool = False  # during training; folded into the weights afterwards
    corrupted: bool = False  # corrupt half of the training images; the teachers see them clean
    left_out: str | None = None  # but not with this family of corruptions, see mnist.augment.FAMILIES
    seeds: int = 5  # trained with the seeds 0, 1, ...

    @property
    def passes(self) -> float:
        """How many passes it takes: images trained on, divided by the size of the training set."""
        return self.epochs * (1.5 * self.copies if self.teachers else 1)


# the default of workspace.ipynb and of run_model.py: 99.4 % in less than a minute on two cores
NOTEBOOK = Recipe("MNIST_CNN", epochs=12, learning_rate=4e-3)
# at least 99.0 % in less than three seconds: on half of the images, and three times on the hardest of them. It is made
# for sets of MNIST's size: a few thousand images give it too few steps
FAST = Recipe("MNIST_CNN", epochs=4, learning_rate=1.2e-2, batch_size=256, augment=False, muon=0.1, label_smoothing=0.1,
              proxy=0.5, hard_examples=0.15, validate=False)
RECIPES = {"notebook": NOTEBOOK, "fast": FAST}

# somebody's own drawings on top of trained weights: see mnist.finetune
FINE_TUNING = replace(NOTEBOOK, epochs=3, learning_rate=1e-3)

# the study's processes have one thread each, in which MNIST_CNN is no faster in bfloat16
_NOTEBOOK = StudyRecipe(**asdict(NOTEBOOK) | {"bfloat16": False})
_DISTILLED = StudyRecipe("MNIST_CNN", epochs=2, learning_rate=1e-2, augment=False, bfloat16=False, teachers="SixConv",
                         copies=20, batch_norm=True)
_ROBUST = replace(_DISTILLED, corrupted=True)
STUDY = {
    # common networks, with the notebook's settings
    "MNIST_CNN": _NOTEBOOK,
    "MNIST_CNN_Dropout": replace(_NOTEBOOK, network="MNIST_CNN_Dropout"),
    "MNISTNet": replace(_NOTEBOOK, network="MNISTNet", bfloat16=True, seeds=3),
    "ThreeConv": replace(_NOTEBOOK, network="ThreeConv", epochs=4, bfloat16=True, seeds=3),
    # the most accurate at this size, and the teachers of the next two
    "SixConv": StudyRecipe("SixConv", epochs=30, learning_rate=1e-2, bfloat16=True),
    # the most accurate MNIST_CNN, and the one that copes best with corrupted images
    "MNIST_CNN distilled": _DISTILLED,
    "MNIST_CNN robust": _ROBUST,
    # how it copes with a family of corruptions that it has never seen
    **{f"MNIST_CNN without {family}": replace(_ROBUST, left_out=family, seeds=1)
       for family in ("noise", "blur", "weather", "geometry", "occlusion")},
    # the learning curve
    **{f"MNIST_CNN {count}": replace(_NOTEBOOK, epochs=6, images=count, seeds=3)
       for count in (600, 2_000, 6_000, 20_000, 55_000)},
}
