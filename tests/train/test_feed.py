"""The feed: a function of seed, step and index; every image once in an epoch; boxes follow the pixels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_training import TASK, pictures  # noqa: E402

from roadworthy.data.preprocess import Preprocess  # noqa: E402
from roadworthy.data.samples import Sample, Samples  # noqa: E402
from roadworthy.detect.detections import Truth  # noqa: E402
from roadworthy.errors import InputError  # noqa: E402
from roadworthy.train.augment import AUGMENTS, Augment, mirrored, through_window  # noqa: E402
from roadworthy.train.feed import Feed  # noqa: E402


def same(a, b) -> bool:
    return a.name == b.name and torch.equal(a.x, b.x)


@pytest.mark.parametrize("augment", AUGMENTS)
def test_items_are_a_function_of_seed_and_step(augment: str):
    feed, again = (Feed(pictures(7), TASK, 4, 3, augment) for _ in range(2))
    first = {step: feed.items(step) for step in (5, 0, 3)}
    with ThreadPoolExecutor(4) as pool:
        second = {step: list(pool.map(lambda k, step=step: again.item(step, k), range(4))) for step in (3, 5, 0)}
    for step, items in first.items():
        assert all(same(a, b) for a, b in zip(items, second[step]))
        assert [i.name for i in items] == [feed.sample(step, k).name for k in range(4)]
        assert all(i.x.shape == (1, 3, 16, 16) and i.x.dtype == torch.float32 for i in items)
    assert not all(same(a, b) for a, b in zip(first[0], Feed(pictures(7), TASK, 4, 4, augment).items(0)))


def test_every_image_comes_once_in_an_epoch_in_another_order_each_time():
    feed = Feed(pictures(10), TASK, 4, 1)
    names = [feed.sample(step, k).name for step in range(10) for k in range(4)]
    epochs = [names[k : k + 10] for k in range(0, 40, 10)]
    assert all(len(set(epoch)) == 10 for epoch in epochs) and len({tuple(e) for e in epochs}) == 4


def test_the_same_image_is_changed_in_another_way_each_time():
    feed = Feed(pictures(1), TASK, 1, 0, "strong")
    assert len({feed.item(step, 0).x.numpy().tobytes() for step in range(12)}) >= 11
    plain = Feed(pictures(1), TASK, 1, 0, "none")
    assert len({plain.item(step, 0).x.numpy().tobytes() for step in range(12)}) == 1


WHITE = np.array([[70, 30, 100, 60]], np.float32)


def marked(label: bool = True) -> Samples:
    """120 x 200 pixels of dark noise with a white rectangle, and its box."""
    image = np.random.default_rng(0).integers(0, 40, (120, 200, 3), np.uint8)
    image[30:60, 70:100] = 255
    truth = Truth.of(WHITE, np.array([2])) if label else None
    return Samples([Sample("white", load=image.copy, key="white", truth=truth)], "boxes" if label else "images")


@pytest.mark.parametrize("resize", ["letterbox", "stretch", "none"])
@pytest.mark.parametrize("augment", ["light", "strong"])
def test_boxes_follow_the_pixels(resize: str, augment: str):
    """White pixels are found by a threshold between the darkest white and the brightest noise that a change of light
    leaves: 0.6 (255 - 128) + 128 - 40, less a tenth, is 147; the noise ends below 0.6 (40 - 128) + 128 + 40, and a
    tenth more: 127. An edge between pixels is resampled: it may lie one pixel of the input to either side."""
    size = (120, 200) if resize == "none" else (96, 96)
    feed = Feed(marked(), replace(TASK, preprocess=Preprocess(size, resize=resize, pad_value=0)), 1, 0, augment)
    seen = 0
    for step in range(60):
        item = feed.item(step, 0)
        white = (item.x[0].amin(0) > 137).numpy()
        if not len(item.truth):
            assert not white.any()
            continue
        (x1, y1, x2, y2), (rows, columns) = item.truth.boxes_xyxy[0], np.nonzero(white)
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(found - [x1, y1, x2, y2]).max() <= 1.0 + 1e-3
        assert item.truth.classes.tolist() == [2]
        seen += 1
    assert seen > 30


def test_a_window_cuts_boxes_and_forgets_what_it_does_not_show():
    truth = Truth.of(np.array([[0, 0, 10, 10], [8, 0, 18, 10], [30, 0, 40, 10]], np.float32), np.array([0, 1, 2]))
    image = np.arange(20 * 40 * 3, dtype=np.uint8).reshape(20, 40, 3)
    shown, cut = through_window(image, truth, (-2, 8), (12, 16), fill=7)
    assert shown.shape == (12, 16, 3) and (shown[:2] == 7).all() and (shown[2:] == image[:10, 8:24]).all()
    assert cut.boxes_xyxy.tolist() == [[0, 2, 2, 12], [0, 2, 10, 12]]
    assert cut.classes.tolist() == [0, 1] and cut.areas.tolist() == [20, 100]
    assert cut.ignore.tolist() == [True, False]  # a fifth of the first is left


def test_a_mirror_twice_is_the_image_and_a_change_of_light_leaves_boxes():
    truth = Truth.of(WHITE, np.array([1]))
    assert (mirrored(mirrored(truth, 200), 200).boxes_xyxy == WHITE).all() and mirrored(None, 9) is None
    image = np.full((4, 4, 3), 100, np.uint8)
    lit, same_truth = Augment(light=1.0, brightness=50)(image, truth, np.random.default_rng(1), None)
    assert same_truth is truth and len(np.unique(lit)) == 1 and 50 <= lit[0, 0, 0] <= 150 and lit[0, 0, 0] != 100


def test_images_without_borders_never_get_one():
    image, rng = np.full((50, 60, 3), 200, np.uint8), np.random.default_rng(0)
    zooms = [Augment(window=1.0, zoom=(0.5, 2.0))(image, None, rng, None)[0] for _ in range(50)]
    assert all((z == 200).all() and z.shape[0] <= 50 for z in zooms) and len({z.shape for z in zooms}) > 10


def test_labels_are_handed_on_or_kept():
    assert Feed(marked(), TASK, 1, labels=False).item(0, 0).truth is None
    assert Feed(marked(label=False), TASK, 1).item(0, 0).truth is None
    classed = Samples([Sample("a", load=lambda: np.zeros((9, 9, 3), np.uint8), key="a", label=2)], "classes")
    assert (
        Feed(classed, TASK, 1).item(0, 0).truth == 2 and Feed(classed, TASK, 1, labels=False).item(0, 0).truth is None
    )


def test_bad_settings_are_one_sentence():
    with pytest.raises(InputError, match=r"there are no images to train on"):
        Feed(Samples([]), TASK, 1)
    with pytest.raises(InputError, match=r"augment is 'much'; use one of none, light, strong"):
        Feed(pictures(1), TASK, 1, augment="much")
    with pytest.raises(InputError, match=r"batch is 0"):
        Feed(pictures(1), TASK, 0)
