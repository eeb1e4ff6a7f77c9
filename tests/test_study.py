"""The evidence: its measures against other means of computing them, and a whole study on a little data."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from skimage.transform import AffineTransform, EuclideanTransform
from skimage.transform import warp as warp_image
from sklearn.metrics import accuracy_score

import mnist_study
from mnist_corruptions import BLEMISHES, CORRUPTIONS, blemish, corrupt
from mnist_model import WeightsError, load_weights
from mnist_study import Recipe, fgsm, fit, pgd, study, uci_digits, weights_path
from mnist_train import evaluate, predict, train
from mnist_utils import load_split, write_idx

ROOT = Path(__file__).parents[1]
IMAGES, LABELS = load_split("test", ROOT / "dataset")


@pytest.fixture(scope="module")
def evidence() -> dict:
    return json.loads((ROOT / "study" / "study.json").read_text("utf-8"))["results"]


@pytest.fixture(scope="module")
def trained() -> tuple[torch.nn.Module, dict[str, float]]:
    model, facts = load_weights(ROOT / "MNIST-MODEL.pth")
    return model, {"mean": facts["mean"], "std": facts["std"]}


# measures

TWO = np.array([[0.95, 0.05], [0.05, 0.95], [0.85, 0.15], [0.25, 0.75], [0.65, 0.35], [0.55, 0.45]])
TRUTH = np.array([0, 1, 1, 1, 0, 1])


def test_reliability_and_its_error():
    table = mnist_study.reliability(TWO, TRUTH, bins=10)
    assert table[:, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2] and np.isnan(table[:5, 1:]).all()
    assert table[5:, 1:].tolist() == [[0.55, 0], [0.65, 1], [0.75, 1], [0.85, 0], [0.95, 1]]
    expected = (0.55 + 0.35 + 0.25 + 0.85 + 2 * 0.05) / 6
    assert mnist_study.expected_calibration_error(TWO, TRUTH, bins=10) == pytest.approx(expected)
    certain = np.eye(10)[LABELS]
    assert mnist_study.expected_calibration_error(certain, LABELS) == 0


def test_the_surest_answers_and_where_they_begin():
    assert mnist_study.selective_accuracy(TWO, TRUTH).tolist() == [1, 1, 2 / 3, 3 / 4, 4 / 5, 4 / 6]
    for accuracy, limit in ((1, 0.95), (0.8, 0.65), (0.6, 0.55), (0.7, 0.65)):
        assert mnist_study.sure_enough(TWO, TRUTH, accuracy) == limit
    assert mnist_study.sure_enough(TWO, 1 - TWO.argmax(1), 0.5) > 1


def test_the_interval_of_a_mean():
    values = np.array([0.9939, 0.9946, 0.9951, 0.9942])
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert mnist_study.interval_of_mean(values) == pytest.approx(expected)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_attacks_stay_near_and_do_harm(trained, attack):
    model, scale = trained
    images, labels = IMAGES[:200], LABELS[:200]
    attacked = attack(model, images, labels, 0.1, **scale)
    assert attacked.shape == images.shape and 0 <= attacked.min() and attacked.max() <= 1
    assert (attacked - torch.from_numpy(images) / 255).abs().max() <= 0.1 + 1e-6
    loss, _ = evaluate(model, 255 * attacked, labels, **scale)
    assert loss > 10 * evaluate(model, images, labels, **scale)[0]
    noise = torch.from_numpy(images) / 255 + 0.1 * torch.randn(images.shape, generator=torch.manual_seed(0)).sign()
    assert loss > 5 * evaluate(model, 255 * noise.clip(0, 1), labels, **scale)[0]
    assert torch.equal(attacked, attack(model, images, labels, 0.1, **scale))


def test_many_small_steps_do_more_harm_than_one(trained):
    model, scale = trained
    losses = [evaluate(model, 255 * attack(model, IMAGES[:200], LABELS[:200], 0.15, **scale), LABELS[:200], **scale)[0]
              for attack in (fgsm, pgd)]
    assert losses[1] > losses[0]


def test_saliency_is_the_gradient(trained):
    """On noise, because on blank paper all places of a pooling are equal, and there are two slopes."""
    model, scale = trained
    noise = np.random.default_rng(0).integers(256, size=(28, 28), dtype=np.uint8)
    found = mnist_study.saliency(model, noise, 7, **scale)
    steps = torch.tensor([-0.1, 0.1]).view(2, 1, 1, 1) * torch.eye(784).view(784, 28, 28)
    low, high = (predict(model, part, **scale)[:, 7] for part in torch.from_numpy(noise.astype(np.float32)) + steps)
    numeric = (255 / 0.2 * (high - low)).abs().numpy()
    assert found.shape == (28, 28) and np.corrcoef(found.ravel(), numeric)[0, 1] > 0.99
    assert np.polyfit(numeric, found.ravel(), 1)[0] == pytest.approx(1, abs=0.03)



# pictures

def test_the_corruptions_have_their_published_names():
    assert list(CORRUPTIONS) == [
        "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "shear", "scale", "rotate", "brightness",
        "translate", "stripe", "fog", "spatter", "dotted_line", "zigzag", "canny_edges"]
    with pytest.raises(ValueError, match="no corruption 'snow': choose from shot_noise, "):
        corrupt(IMAGES[:1], "snow")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_repeats_itself_and_changes_every_image(name):
    images = IMAGES[:210]
    corrupted = corrupt(images, name, seed=1)
    assert corrupted.shape == images.shape and corrupted.dtype == np.uint8
    assert (corrupted != images).any((1, 2)).all()
    assert np.array_equal(corrupted, corrupt(images, name, seed=1))
    random = name not in ("brightness", "scale", "stripe", "canny_edges")
    assert np.array_equal(corrupted, corrupt(images, name, seed=2)) is not random


@pytest.mark.parametrize("name, transforms", [
    ("rotate", [EuclideanTransform(rotation=angle) for angle in (-0.4, 0.4)]),
    ("scale", [AffineTransform(scale=1 / 0.7)]),
    ("shear", [AffineTransform(np.array([[1, -np.sin(a), 0], [0, np.cos(a), 0], [0, 0, 1]])) for a in (-0.4, 0.4)])])
def test_turned_ones_are_what_scikit_image_makes(name, transforms):
    to, back = (EuclideanTransform(translation=(side, side)) for side in (-13.5, 13.5))
    seen = set()
    for image, corrupted in zip(IMAGES[:20], corrupt(IMAGES[:20], name)):
        away = [np.abs(255 * warp_image(image / 255, to + transform + back, order=1) - corrupted).max()
                for transform in transforms]
        seen.add(int(np.argmin(away)))
        assert min(away) <= 0.51
    assert len(seen) == len(transforms)


def test_plain_corruptions():
    images = IMAGES[:100]
    assert np.abs(corrupt(images, "brightness") - np.minimum(images + 127.5, 255)).max() <= 0.5
    assert np.array_equal(corrupt(images, "stripe")[:, :, 7:21], images[:, :, 7:21])
    assert np.array_equal(corrupt(images, "stripe")[:, :, :7], 255 - images[:, :, :7])
    salted = corrupt(images, "impulse_noise") != images
    assert salted[images == 0].mean() == pytest.approx(0.085, abs=0.005)
    for image, moved in zip(images, corrupt(images, "translate")):
        assert any(np.array_equal(moved[4:-4, 4:-4], np.roll(image, (down, right), (0, 1))[4:-4, 4:-4])
                   for down in (-3, 3) for right in (-3, 3))
    assert set(np.unique(corrupt(images, "canny_edges"))) == {0, 255}
    grey = corrupt(images, "fog")
    assert grey.min((1, 2)).max() > 20 and (grey.astype(float) - images).std() > 30
    for name in ("dotted_line", "zigzag"):
        more = corrupt(images, name).astype(int) - images
        assert (more >= 0).all() and 15 < (more > 100).sum((1, 2)).mean() < 90


def test_blemishes_leave_half_of_the_images_alone():
    images = IMAGES[:6000]
    spoiled = blemish(images, seed=3)
    assert spoiled.shape == images.shape and spoiled.dtype == np.uint8
    assert (spoiled == images).all((1, 2)).mean() == pytest.approx(0.5, abs=0.03)
    assert np.array_equal(spoiled, blemish(images, seed=3)) and not np.array_equal(spoiled, blemish(images, seed=4))
    ink, generator = torch.from_numpy(images[:50]) / 255, torch.Generator().manual_seed(0)
    for function in BLEMISHES:
        changed = function(ink.clone(), generator)
        assert changed.shape == ink.shape and (changed != ink).any(2).any(1).float().mean() > 0.8, function


def test_digits_of_other_people_look_like_mnist(trained):
    model, scale = trained
    images, labels = uci_digits()
    assert images.shape == (1797, 28, 28) and images.dtype == np.uint8 and labels.shape == (1797,)
    assert (images.max((1, 2)) == 255).all() and images[:, [0, 1, -2, -1]].any((1, 2)).mean() < 0.05
    assert evaluate(model, images, labels, **scale)[1] > 0.9


# the study

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
    recipes = {"SixConv": Recipe("SixConv", 4, 1e-2, bfloat16=True, seeds=2),
               "few": Recipe("MNIST_CNN", 1, 4e-3, images=50, seeds=2),
               "MNIST_CNN taught": Recipe("MNIST_CNN", 3, 1e-2, teachers="SixConv", copies=2, batch_norm=True,
                                          blemished=True, seeds=2)}
    first = study(tmp_path / "study", little, recipes, processes=2)
    written = json.loads((tmp_path / "study" / "study.json").read_text("utf-8"))
    assert written == json.loads(json.dumps(first))
    for name, recipe in recipes.items():
        result = written["results"][name]
        accuracies = [row["accuracy"] for row in result["seeds"]]
        assert result["accuracy"] == pytest.approx(np.mean(accuracies)) and result["interval"][0] <= result["accuracy"]
        for seed, accuracy in enumerate(accuracies):
            model, facts = load_weights(weights_path(name, seed, tmp_path / "study"))
            scores = predict(model, IMAGES[:300], mean=facts["mean"], std=facts["std"])
            assert accuracy == accuracy_score(LABELS[:300], scores.argmax(1))
            assert type(model).__name__ == recipe.network and "temperature" in facts
    assert written["results"]["SixConv"]["accuracy"] > 0.5 and written["results"]["MNIST_CNN taught"]["accuracy"] > 0.3
    row = written["results"]["MNIST_CNN taught"]["seeds"][0]
    assert row["strangers"].keys() >= {"noise", "blank", "letters"} and row["corruptions"].keys() == CORRUPTIONS.keys()
    assert row["pgd"]["0.3"] <= row["accuracy"] and row["handed_over"] <= 300
    assert written["results"]["MNIST_CNN taught"]["passes"] == 9 and written["results"]["few"]["passes"] == 1

    path = weights_path("MNIST_CNN taught", 1, tmp_path / "study")
    before, _ = load_weights(path)
    for file in (path, path.with_suffix(".checkpoint")):
        file.unlink()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the study's processes: then it comes to the same weights
    try:
        fit("MNIST_CNN taught", recipes["MNIST_CNN taught"], 1, tmp_path / "study", little)
    finally:
        torch.set_num_threads(threads)
    after, _ = load_weights(path)
    assert all(torch.equal(*pair) for pair in zip(before.parameters(), after.parameters(), strict=True))


@pytest.mark.parametrize("name", ["SixConv", "MNIST_CNN taught", "MNIST_CNN robust"])
def test_the_committed_weights_do_what_the_committed_evidence_says(name, evidence):
    result = evidence[name]
    for row in result["seeds"]:
        model, facts = load_weights(weights_path(name, row["seed"], ROOT / "study"))
        assert sum(weight.numel() for weight in model.parameters()) == result["parameters"]
        accuracy = evaluate(model, IMAGES, LABELS, mean=facts["mean"], std=facts["std"])[1]
        assert accuracy == pytest.approx(row["accuracy"], abs=1e-4)  # one image, where another processor rounds
        scale = {"mean": facts["mean"], "std": facts["std"]}
        smaller = evaluate(model, corrupt(IMAGES[:1000], "scale"), LABELS[:1000], **scale)[1]
        assert smaller == pytest.approx(row["corruptions"]["scale"], abs=0.03)


def test_learning_goes_on_from_a_whole_epoch(little, tmp_path, monkeypatch):
    recipe = Recipe("MNIST_CNN", 3, 4e-3, images=40, batch_norm=True)
    monkeypatch.setattr(mnist_study, "EPOCH", 300)
    fit("whole", recipe, 0, tmp_path, little)

    def stopped(*arguments, **options):
        for epoch in train(*arguments, **options):
            if epoch.number == 2:
                raise KeyboardInterrupt
            yield epoch

    monkeypatch.setattr(mnist_study, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit("stopped", recipe, 0, tmp_path, little)
    assert not weights_path("stopped", 0, tmp_path).exists()
    monkeypatch.setattr(mnist_study, "train", train)
    fit("stopped", recipe, 0, tmp_path, little)
    one, other = (load_weights(weights_path(name, 0, tmp_path))[0] for name in ("whole", "stopped"))
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(WeightsError, match=r"whole-0\.pth is of another recipe: delete it"):
        fit("whole", replace(recipe, learning_rate=5e-3), 0, tmp_path, little)


def test_the_first_failure_ends_the_study(tmp_path, capfd):
    begun = time.monotonic()
    recipes = {f"{number}": Recipe("MNIST_CNN", 12, 4e-3) for number in range(50)}
    with pytest.raises(FileNotFoundError, match="is missing"):
        study(tmp_path / "study", str(tmp_path), recipes)
    assert time.monotonic() - begun < 60 and not list((tmp_path / "study").iterdir())


def test_the_goals(evidence):
    for name, parameters in (("MNIST_CNN", 21_840), ("MNIST_CNN_Dropout", 21_840), ("ThreeConv", 365_514),
                             ("MNISTNet", 421_642), ("SixConv", 18_482), ("MNIST_CNN taught", 21_840)):
        assert evidence[name]["parameters"] == parameters
    assert evidence["SixConv"]["accuracy"] >= 0.996 and len(evidence["SixConv"]["seeds"]) == 5
    assert evidence["MNIST_CNN taught"]["accuracy"] >= 0.995 and len(evidence["MNIST_CNN taught"]["seeds"]) == 5
    robust = [np.mean(list(row["corruptions"].values())) for row in evidence["MNIST_CNN robust"]["seeds"]]
    assert np.mean(robust) > 0.92
