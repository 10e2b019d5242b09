"""Common corruptions: equal to independent computations where there are any, and well-behaved."""

import importlib.util
import os
import zipfile
from pathlib import Path

import jax
import matplotlib.colors
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image
from sklearn.datasets import load_sample_images

from finetune_jax.errors import UserError
from finetune_jax.evaluation import corruptions
from finetune_jax.evaluation.corrupted import (
    corrupted_scores,
    parse_corruptions,
    parse_severities,
)
from finetune_jax.evaluation.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    apply,
    blur,
    corrupt,
    digital,
    host,
    image_keys,
    noise,
    unavailable,
    weather,
)
from finetune_jax.evaluation.evaluator import open_run

SIDE = 32
IN_JAX = [name for name, c in CORRUPTIONS.items() if c.make is not None]
# Compiling all of them takes half a minute.
QUICK = {"gaussian_noise", "motion_blur", "contrast", "brightness", "zoom_blur"}
QUICK |= {"gaussian_blur", "pixelate", "jpeg_compression", "saturate"}
# By the published constants a severity is not always a larger distance: less saturation comes
# before more, wide affine maps before narrow waves, glass trades blur for rounds, frost
# dims what it whitens, and water comes before mud.
UNORDERED = {"saturate", "elastic_transform", "glass_blur", "frost", "spatter"}


@pytest.fixture(scope="module")
def photographs():
    """uint8[8, 32, 32, 3]: parts of the photographs that scikit-learn ships."""
    crops = []
    for picture in load_sample_images().images:
        for left in (0, 140, 280, 420):
            square = Image.fromarray(picture[100:300, left : left + 200])
            crops.append(np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BOX)))
    return np.stack(crops)


def require(name):
    if name in unavailable():
        pytest.skip(f"not run: {name} needs {unavailable()[name]}")


def changed(name, images, severity):
    keys = image_keys(name, 0, 0, len(images))
    return np.asarray(apply(name, keys, images.astype(np.float32) / 255, severity))


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CORRUPTIONS],
)
def test_severity_grows_and_type_range_and_keys_are_kept(name, photographs):
    require(name)
    clean, distances = photographs.astype(np.float32) / 255, []
    for severity in SEVERITIES:
        found = changed(name, photographs, severity)
        assert found.shape == clean.shape and found.dtype == np.float32
        assert found.min() >= 0 and found.max() <= 1 and np.isfinite(found).all()
        distances.append(np.abs(found - clean).mean())
    assert min(distances) > 0
    if name not in UNORDERED:
        # Severities 3 and 4 of motion_blur have one width, so the longer trail of 4 may change
        # nothing.
        least = 0 if name == "motion_blur" else 1e-6
        assert (np.diff(distances) >= least).all(), distances
    # The result depends neither on the place of an image in its batch nor on earlier calls.
    whole = corrupt(name, photographs, 3, seed=1)
    later = corrupt(name, np.roll(photographs, -4, axis=0), 3, seed=1, first=4)
    assert np.abs(whole[4:].astype(int) - later[:4]).max() <= 1
    np.testing.assert_array_equal(whole, corrupt(name, photographs, 3, seed=1))
    assert whole.dtype == np.uint8
    if name in IN_JAX:
        assert corruptions.compiled(name, SIDE)._cache_size() == 1  # for all severities


@pytest.mark.slow
def test_random_ones_differ_by_image_and_by_seed(photographs):
    same = np.repeat(photographs[:1], len(photographs), axis=0)
    for name in ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "fog", "snow",
                 "motion_blur", "glass_blur", "elastic_transform"):  # fmt: skip
        first, second, *_ = corrupt(name, same, 5, seed=0)
        assert (first != second).any(), name
        assert (corrupt(name, same, 5, seed=1)[0] != first).any(), name


@pytest.mark.parametrize(
    "make, constants",
    [
        (noise.gaussian, [0]),
        (noise.speckle, [0]),
        (noise.impulse, [0]),
        (blur.gaussian, [0]),
        (blur.defocus, [0, 0.01]),
        (blur.motion, [0, 1]),
        (blur.zoom, [1.005, 0.01]),
        pytest.param(weather.fog, [0, 2], marks=pytest.mark.slow),
        pytest.param(weather.snow, [0, 0, 1, 0.5, 2, 1, 1], marks=pytest.mark.slow),
        (digital.brightness, [0]),
        (digital.contrast, [1]),
        (digital.saturate, [1, 0]),
        (digital.pixelate, [1]),
        pytest.param(digital.elastic, [0, 1, 0], marks=pytest.mark.slow),
    ],
)
def test_without_strength_the_image_is_left_as_it_is(make, constants, photographs):
    change = jax.jit(make(np.array([constants] * 5, np.float64), SIDE))
    x = photographs[0].astype(np.float32) / 255
    np.testing.assert_allclose(change(jax.random.key(0), x, 2), x, atol=2e-5)


@pytest.mark.slow
def test_many_photons_leave_the_image_as_it_is(photographs):
    change = noise.shot(np.full((5, 1), 1e7), SIDE)
    x = photographs[0].astype(np.float32) / 255
    np.testing.assert_allclose(change(jax.random.key(0), x, 0), x, atol=5e-3)


@pytest.mark.slow
def test_noises_have_the_moments_they_are_made_of():
    gray = np.full((4, SIDE, SIDE, 3), 0.5, np.float32)
    keys = image_keys("x", 0, 0, 4)
    found = {n: np.asarray(apply(n, keys, gray, 3)) for n in IN_JAX if n.endswith("noise")}
    assert found["gaussian_noise"].std() == pytest.approx(0.08, rel=0.03)
    assert found["speckle_noise"].std() == pytest.approx(0.5 * 0.12, rel=0.03)
    assert found["shot_noise"].std() == pytest.approx((0.5 / 100) ** 0.5, rel=0.03)
    assert (found["impulse_noise"] != 0.5).mean() == pytest.approx(0.03, rel=0.15)
    assert set(np.unique(found["impulse_noise"])) == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("severity", SEVERITIES)
def test_what_other_libraries_compute_is_computed_alike(severity, photographs):
    clean = photographs.astype(np.float32) / 255

    def constants(name):
        return CORRUPTIONS[name].table(SIDE)[severity - 1]

    def agree(name, expected, tolerance=1e-4):
        np.testing.assert_allclose(
            changed(name, photographs, severity), np.clip(expected, 0, 1), atol=tolerance
        )

    (sigma,) = constants("gaussian_blur")
    smooth = [scipy.ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest") for x in clean]
    agree("gaussian_blur", smooth)
    hsv = matplotlib.colors.rgb_to_hsv(clean)
    lighter = hsv.copy()
    lighter[..., 2] = np.clip(lighter[..., 2] + constants("brightness")[0], 0, 1)
    agree("brightness", matplotlib.colors.hsv_to_rgb(lighter))
    factor, offset = constants("saturate")
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + offset, 0, 1)
    agree("saturate", matplotlib.colors.hsv_to_rgb(hsv))
    side = int(SIDE * constants("pixelate")[0])
    box = Image.Resampling.BOX
    few = [Image.fromarray(x).resize((side, side), box).resize((SIDE, SIDE), box)
           for x in photographs]  # fmt: skip
    agree("pixelate", np.stack(few) / 255, 1e-6)
    # Zooms by scipy, cut as published.
    stop, step = constants("zoom_blur")
    factors, total = np.arange(1, stop, step), clean.copy()
    for zoom in factors:
        crop = int(np.ceil(SIDE / zoom))
        top = (SIDE - crop) // 2
        for i, x in enumerate(clean):
            large = scipy.ndimage.zoom(
                x[top : top + crop, top : top + crop], (zoom, zoom, 1), order=1
            )
            trim = (len(large) - SIDE) // 2
            total[i] += large[trim : trim + SIDE, trim : trim + SIDE]
    agree("zoom_blur", total / (len(factors) + 1))


def test_a_defocused_point_is_the_disk():
    point = np.zeros((1, 224, 224, 3), np.float32)
    point[0, 112, 112] = 1
    found = np.asarray(apply("defocus_blur", image_keys("x", 0, 0, 1), point, 1))[0, ..., 0]
    rows, columns = np.nonzero(found > 1e-6)
    assert np.hypot(rows - 112, columns - 112).max() <= 3
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert found.max() == pytest.approx(1 / 29, rel=1e-3)  # pixels within 3 of the middle


@pytest.mark.parametrize(
    ("radius", "alias", "total"),
    [(3, 0.1, 1.0), (4, 0.5, 1.0), (6, 0.5, 1.0), (8, 0.5, 1.01298), (10, 0.5, 1.01079)],
)
def test_the_disk_is_the_published_one(radius, alias, total):
    """Against scipy's smoothing, which also reflects without the border pixel ("mirror")."""
    side, reach = max(8, radius), 1 if radius <= 8 else 2
    x = np.arange(-side, side + 1)
    disk = (x[:, None] ** 2 + x**2 <= radius**2) / np.sum(x[:, None] ** 2 + x**2 <= radius**2)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / alias) ** 2)
    for axis in (0, 1):
        disk = scipy.ndimage.correlate1d(disk, weights / weights.sum(), axis, mode="mirror")
    found = blur._disk(radius, alias, side + 2)
    np.testing.assert_allclose(found, np.pad(disk, 2), atol=1e-9)
    assert found.sum() == pytest.approx(total, abs=1e-5)


def test_a_trail_of_angle_0_goes_along_a_row():
    from finetune_jax.evaluation.corruptions import filters

    point = np.zeros((9, 9), np.float32)
    point[4, 6] = 1
    weights = jax.numpy.array([0.5, 0.3, 0.2])
    found = np.asarray(filters.motion(point, weights, 0.0))
    np.testing.assert_allclose(found[4, 3:8], [0, 0.2, 0.3, 0.5, 0], atol=1e-6)
    assert found.sum() == pytest.approx(1)
    # The blur goes down the column: each pixel is mixed with the pixels below.
    found = np.asarray(filters.motion(point, weights, 90.0))
    np.testing.assert_allclose(found[1:6, 6], [0, 0.2, 0.3, 0.5, 0], atol=1e-6)


@pytest.mark.slow
def test_plasma_fills_its_range_and_is_smoother_when_it_decays_faster():
    plasma = jax.jit(weather.plasma, static_argnums=1)
    rough, smooth = (np.asarray(plasma(jax.random.key(0), 48, d)) for d in (1.2, 3.0))
    for height in (rough, smooth):
        assert height.shape == (48, 48) and height.min() >= 0 and height.max() <= 1
        assert height.std() > 0.05
    assert np.abs(np.diff(smooth)).mean() < np.abs(np.diff(rough)).mean() / 2


@pytest.mark.parametrize("side", [32, pytest.param(224, marks=pytest.mark.slow)])
def test_frost_is_a_part_of_a_photograph_on_top(side):
    require("frost")
    x = np.random.default_rng(0).uniform(0, 0.2, (side, side, 3)).astype(np.float32)
    row = CORRUPTIONS["frost"].table(side)[0]
    found = [host.frost(np.random.default_rng(i), x, row) for i in range(6)]
    parts = [(one - row[0] * x) / row[1] for one in found]
    photographs = host._photographs(int(row[2]), side)
    assert len(photographs) == 5
    for part in parts:
        assert part.min() > -1e-3 and part.max() < 1 + 1e-3
        # The first row of the part occurs unchanged in one of the photographs.
        rows = (
            np.abs(np.lib.stride_tricks.sliding_window_view(p[..., 0], side, 1) - part[0, :, 0])
            for p in photographs
        )
        assert min(r.max(-1).min() for r in rows) < 1e-3


def test_a_photograph_of_frost_is_made_larger_than_a_large_image():
    require("frost")
    assert all(min(p.shape[:2]) >= 1500 for p in host._photographs(1, 1500))


@pytest.mark.parametrize("side", [32, 224])
def test_water_lightens_drops_and_mud_hides_them(side):
    require("spatter")
    x = np.full((side, side, 3), 0.5, np.float32)
    for severity, row in enumerate(CORRUPTIONS["spatter"].table(side), 1):
        hit = []
        for seed in range(8):
            change = host.spatter(np.random.default_rng(seed), x, row) - x
            hit.append((np.abs(change) > 1e-6).any(-1).mean())
            if severity <= 3:  # pale turquoise, of at most the row's strength
                assert change.min() >= 0 and change.max() <= row[4] * 238 / 255 + 1e-6
                np.testing.assert_allclose(change[..., 0] * 238, change[..., 1] * 175, atol=1e-4)
            else:
                assert (change <= 1e-6).all() and change.min() >= 20 / 255 - 0.5 - 1e-6
        assert 0 < np.mean(hit) < 0.7, severity


def test_fifteen_and_four():
    extra = [name for name, c in CORRUPTIONS.items() if c.extra]
    assert len(CORRUPTIONS) == 15 + 4 and len(extra) == 4
    for corruption in CORRUPTIONS.values():
        assert len(corruption.small) == len(corruption.large) == 5
        assert (corruption.make is None) == (corruption.on_host is not None)


def test_names_and_severities_of_the_command(monkeypatch):
    monkeypatch.setattr(host, "lacking", lambda name: "")
    assert parse_corruptions("all") == tuple(CORRUPTIONS)
    assert parse_corruptions("fog, fog,snow") == ("fog", "snow")
    assert parse_corruptions("") == ()
    assert parse_severities("all") == SEVERITIES
    assert parse_severities("5,1") == (5, 1)
    with pytest.raises(UserError, match="Did you mean 'gaussian_noise'"):
        parse_corruptions("gausian_noise")
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert unavailable().keys() == {"frost", "spatter"}
    assert parse_corruptions("all") == tuple(n for n in CORRUPTIONS if n not in unavailable())
    for name, needs in (("frost", "photographs of frost"), ("spatter", "OpenCV")):
        with pytest.raises(UserError, match=f"{name} needs .*{needs}.*pip install"):
            parse_corruptions(name)
        with pytest.raises(UserError, match=f"{name} needs .*{needs}"):
            corrupt(name, np.zeros((1, 8, 8, 3), np.uint8), 1, seed=0)
    for wrong in ("0", "6", "x", ""):
        with pytest.raises(UserError, match="1 to 5"):
            parse_severities(wrong)


def test_scores_under_corruption(short_run):
    evaluator = open_run(short_run)
    found = corrupted_scores(evaluator, "test", "contrast,saturate,jpeg_compression", "1,5")
    assert found["severities"] == [1, 5]
    assert found["clean"] == evaluator.observe("test")["accuracy"].mean()
    assert found["main"] == ["contrast", "jpeg_compression"]
    means = [np.mean(found["scores"][name]) for name in found["main"]]
    assert found["mean_corrupted"] == pytest.approx(np.mean(means))
    assert found == corrupted_scores(evaluator, "test", "contrast,saturate,jpeg_compression", "1,5")


@pytest.mark.slow
def test_a_published_network_loses_accuracy_with_severity(capsys):
    folder = os.environ.get("FINETUNE_JAX_DATA")
    if not folder:
        pytest.skip("not run: set FINETUNE_JAX_DATA to the folder with the published weights")
    from finetune_jax.models import build, initial_variables
    from finetune_jax.pretrained import load

    model = build("resnet20_cifar", 10, image_size=32)
    path = Path(folder, "resnet_cifar10", "resnet20-12fca82f.th")
    variables, _ = load(path, "resnet_cifar", initial_variables(model, 32, stages=()))
    names = ["airplane", "automobile", "bird", "cat", "deer"]
    names += ["dog", "frog", "horse", "ship", "truck"]
    images, labels = [], []
    with zipfile.ZipFile(Path(folder, "cifar10", "cifar10_test_webp.zip")) as archive:
        members = sorted(m for m in archive.namelist() if m.endswith(".webp"))
        for name in members[:: len(members) // 500]:
            with archive.open(name) as file:
                images.append(np.asarray(Image.open(file).convert("RGB")))
            labels.append(names.index(name.split("/")[-2]))
    images, labels = np.stack(images), np.array(labels)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    forward = jax.jit(lambda x: model.apply(variables, x))

    def accuracy(pictures):
        x = ((pictures / 255 - mean) / std).astype(np.float32)
        return float((np.asarray(forward(x)).argmax(-1) == labels).mean())

    clean = accuracy(images)
    assert clean > 0.89
    wrong = []
    with capsys.disabled():
        print(f"\nclean {clean:.3f}, {len(labels)} images")
        for name in (n for n in CORRUPTIONS if n not in unavailable()):
            scores = [accuracy(corrupt(name, images, s, seed=0)) for s in SEVERITIES]
            print(f"{name:18} " + " ".join(f"{score:.3f}" for score in scores))
            if scores[-1] > clean - 0.01:
                wrong.append(f"{name} costs nothing")
            # The limit allows for the noise of five hundred images. Snow of severity 2 is whiter
            # than snow of severity 3.
            if name not in UNORDERED | {"snow"} and (np.diff(scores) > 0.03).any():
                wrong.append(f"{name} gets easier")
    assert not wrong
