import pickle
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from rela_lightning.data.digits import Digits
from rela_lightning.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("all_images")


def test_images_and_labels_are_those_of_scikit_learn():
    bunch, digits = load_digits(), Digits("all", image_size=8)  # at 8 pixels nothing is interpolated
    assert digits.targets == bunch.target.tolist()
    for row in range(0, len(digits), 97):
        image, label = digits[row]
        assert image.mode == "RGB"
        assert label == bunch.target[row]
        pixels = np.asarray(image)
        assert (pixels == pixels[..., :1]).all()
        np.testing.assert_array_equal(pixels[..., 0], np.rint(bunch.images[row] * 255 / 16))


def test_enlarging_keeps_the_picture():
    small, large = Digits("all", image_size=8), Digits("all")
    assert large[0][0].size == (32, 32)
    # averaging each 4x4 block of the enlargement gives the picture back, a little blurred
    blocks = np.asarray(large[5][0])[..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3))
    correlation = np.corrcoef(blocks.ravel(), np.asarray(small[5][0])[..., 0].ravel())[0, 1]
    assert correlation > 0.95


def test_split_is_fixed_stratified_and_complete():
    train, test, whole = Digits("train", image_size=8), Digits("test", image_size=8), Digits("all", image_size=8)
    assert (len(train), len(test)) == (1347, 450)
    shares = [np.bincount(split.targets) / len(split) for split in (train, test, whole)]
    np.testing.assert_allclose(shares[0], shares[2], atol=0.003)
    np.testing.assert_allclose(shares[1], shares[2], atol=0.003)

    def pictures(split):
        return sorted(np.asarray(split[row][0]).tobytes() for row in range(len(split)))

    assert sorted(pictures(train) + pictures(test)) == pictures(whole)
    assert pictures(Digits("test", image_size=8)) == pictures(test)


def test_transform_sees_the_image():
    digits = Digits("test", transform=lambda image: image.size, image_size=12)
    assert digits[0] == ((12, 12), digits.targets[0])


def test_an_image_handed_out_can_be_painted_on():
    digits = Digits("test")
    digits[0][0].putpixel((0, 0), (255, 0, 0))
    assert digits[0][0].getpixel((0, 0)) != (255, 0, 0)


def test_pickles_for_workers():
    digits = Digits("test", image_size=8)
    copy = pickle.loads(pickle.dumps(digits))
    assert np.array_equal(np.asarray(copy[3][0]), np.asarray(digits[3][0]))
    assert copy.classes == [str(number) for number in range(10)]


@pytest.mark.parametrize("options", [{"split": "val"}, {"image_size": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError, match="expected"):
        Digits(**options)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"rela-lightning\[demo\]"):
        Digits()
