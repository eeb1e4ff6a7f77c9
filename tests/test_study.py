"""The study: a whole one on little data, and whether the committed results are those of the committed weights."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score

import mnist.study
from mnist.corruptions import CORRUPTIONS, corrupt
from mnist.evaluate import evaluate, predict
from mnist.recipes import StudyRecipe
from mnist.study import interval_of_mean, study, train_one, uci_digits, weights_path
from mnist.train import train
from mnist.weights import WeightsError, load_weights
from mnist_utils import load_split, write_idx

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")


@pytest.fixture(scope="module")
def evidence() -> dict:
    return json.loads((ROOT / "study" / "study.json").read_text("utf-8"))["results"]


def test_the_interval_of_a_mean():
    values = np.array([0.9939, 0.9946, 0.9951, 0.9942])
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert interval_of_mean(values) == pytest.approx(expected)


def test_digits_of_other_people_look_like_mnist():
    model, metadata = load_weights(ROOT / "MNIST-MODEL.pth")
    scale = {"mean": metadata["mean"], "std": metadata["std"]}
    images, labels = uci_digits()
    assert images.shape == (1797, 28, 28) and images.dtype == np.uint8 and labels.shape == (1797,)
    assert (images.max((1, 2)) == 255).all() and images[:, [0, 1, -2, -1]].any((1, 2)).mean() < 0.05
    assert evaluate(model, images, labels, **scale)[1] > 0.9


@pytest.fixture(scope="module")
def little(tmp_path_factory) -> str:
    """A folder with 900 images to train on and 300 to test on."""
    folder, (train_images, train_labels) = tmp_path_factory.mktemp("little"), load_split("train", ROOT / "dataset")
    for split, images, labels in (("train/train", train_images[:900], train_labels[:900]),
                                  ("test/t10k", IMAGES[:300], LABELS[:300])):
        write_idx(folder / f"{split}-images-idx3-ubyte", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte", labels)
    return str(folder)


def test_a_whole_study_on_a_little_data(little, tmp_path):
    recipes = {"SixConv": StudyRecipe("SixConv", 4, 1e-2, bfloat16=True, seeds=2),
               "few": StudyRecipe("MNIST_CNN", 1, 4e-3, images=50, seeds=2),
               "MNIST_CNN distilled": StudyRecipe("MNIST_CNN", 3, 1e-2, augment=False, teachers="SixConv", copies=2,
                                             batch_norm=True, corrupted=True, seeds=2)}
    first = study(tmp_path / "study", little, recipes, processes=2)
    written = json.loads((tmp_path / "study" / "study.json").read_text("utf-8"))
    assert written == json.loads(json.dumps(first))
    for name, recipe in recipes.items():
        result = written["results"][name]
        accuracies = [row["accuracy"] for row in result["seeds"]]
        assert result["accuracy"] == pytest.approx(np.mean(accuracies)) and result["interval"][0] <= result["accuracy"]
        for seed, accuracy in enumerate(accuracies):
            model, metadata = load_weights(weights_path(name, seed, tmp_path / "study"))
            scores = predict(model, IMAGES[:300], mean=metadata["mean"], std=metadata["std"])
            assert accuracy == accuracy_score(LABELS[:300], scores.argmax(1))
            assert type(model).__name__ == recipe.network and "temperature" in metadata
    assert written["results"]["SixConv"]["accuracy"] > 0.5
    assert written["results"]["MNIST_CNN distilled"]["accuracy"] > 0.3
    row = written["results"]["MNIST_CNN distilled"]["seeds"][0]
    assert row["ood"].keys() >= {"noise", "blank", "letters"} and row["corruptions"].keys() == CORRUPTIONS.keys()
    assert row["pgd"]["0.3"] <= row["accuracy"] and row["rejected"] <= 300
    assert written["results"]["MNIST_CNN distilled"]["passes"] == 9 and written["results"]["few"]["passes"] == 1

    path = weights_path("MNIST_CNN distilled", 1, tmp_path / "study")
    before, _ = load_weights(path)
    for file in (path, path.with_suffix(".checkpoint")):
        file.unlink()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the study's processes: then it comes to the same weights
    try:
        train_one("MNIST_CNN distilled", recipes["MNIST_CNN distilled"], 1, tmp_path / "study", little)
    finally:
        torch.set_num_threads(threads)
    after, _ = load_weights(path)
    assert all(torch.equal(*pair) for pair in zip(before.parameters(), after.parameters(), strict=True))


@pytest.mark.parametrize("name", ["SixConv", "MNIST_CNN distilled", "MNIST_CNN robust"])
def test_the_committed_weights_do_what_the_committed_evidence_says(name, evidence):
    result = evidence[name]
    for row in result["seeds"]:
        model, metadata = load_weights(weights_path(name, row["seed"], ROOT / "study"))
        assert sum(weight.numel() for weight in model.parameters()) == result["parameters"]
        accuracy = evaluate(model, IMAGES, LABELS, mean=metadata["mean"], std=metadata["std"])[1]
        assert accuracy == pytest.approx(row["accuracy"], abs=1e-4)  # one image, where another processor rounds
        scale = {"mean": metadata["mean"], "std": metadata["std"]}
        smaller = evaluate(model, corrupt(IMAGES[:1000], "scale"), LABELS[:1000], **scale)[1]
        assert smaller == pytest.approx(row["corruptions"]["scale"], abs=0.03)


def test_learning_goes_on_from_a_whole_epoch(little, tmp_path, monkeypatch):
    recipe = StudyRecipe("MNIST_CNN", 3, 4e-3, images=40, batch_norm=True)
    monkeypatch.setattr(mnist.study, "IMAGES_PER_PASS", 300)
    train_one("whole", recipe, 0, tmp_path, little)

    def stopped(*arguments, **options):
        for epoch in train(*arguments, **options):
            if epoch.number == 2:
                raise KeyboardInterrupt
            yield epoch

    monkeypatch.setattr(mnist.study, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_one("stopped", recipe, 0, tmp_path, little)
    assert not weights_path("stopped", 0, tmp_path).exists()
    monkeypatch.setattr(mnist.study, "train", train)
    train_one("stopped", recipe, 0, tmp_path, little)
    one, other = (load_weights(weights_path(name, 0, tmp_path))[0] for name in ("whole", "stopped"))
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(WeightsError, match=r"whole-0\.pth belongs to another recipe: delete it"):
        train_one("whole", replace(recipe, learning_rate=5e-3), 0, tmp_path, little)


def test_the_first_failure_ends_the_study(tmp_path, capfd):
    begun = time.monotonic()
    recipes = {f"{number}": StudyRecipe("MNIST_CNN", 12, 4e-3) for number in range(50)}
    with pytest.raises(FileNotFoundError, match="is missing"):
        study(tmp_path / "study", str(tmp_path), recipes)
    assert time.monotonic() - begun < 60 and not list((tmp_path / "study").iterdir())


def test_the_goals(evidence):
    for name, parameters in (("MNIST_CNN", 21_840), ("MNIST_CNN_Dropout", 21_840), ("ThreeConv", 365_514),
                             ("MNISTNet", 421_642), ("SixConv", 18_482), ("MNIST_CNN distilled", 21_840)):
        assert evidence[name]["parameters"] == parameters
    assert evidence["SixConv"]["accuracy"] >= 0.996 and len(evidence["SixConv"]["seeds"]) == 5
    assert evidence["MNIST_CNN distilled"]["accuracy"] >= 0.995 and len(evidence["MNIST_CNN distilled"]["seeds"]) == 5
    robust = [np.mean(list(row["corruptions"].values())) for row in evidence["MNIST_CNN robust"]["seeds"]]
    assert np.mean(robust) > 0.92
