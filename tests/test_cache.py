"""Entries of the cache are named by what they were made from, down to the last pixel."""

import stat

import numpy as np

from tf_dp2vae.evaluation.cache import Cache, digest

IMAGES = np.arange(8, dtype=np.uint8).reshape(2, 4)


def test_digest_tells_content_type_shape_and_settings_apart():
    changed = IMAGES.copy()
    changed[1, 3] ^= 1
    found = [digest(*parts) for parts in ((IMAGES, 1), (changed, 1), (IMAGES.astype(np.int8), 1), (IMAGES.T, 1))]
    found += [digest(IMAGES.reshape(4, 2), 1), digest(IMAGES, 2), digest(IMAGES[:1], IMAGES[1:], 1)]
    assert len(set(found)) == len(found)
    assert digest(IMAGES.copy(), 1) == found[0]


def test_entry_is_made_once_kept_closed_and_made_anew_when_damaged(tmp_path):
    cache, made = Cache(tmp_path / "cache"), []

    def make():
        made.append(1)
        return IMAGES

    for _ in range(2):
        np.testing.assert_array_equal(cache.array("a", make), IMAGES)
    assert len(made) == 1
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    (tmp_path / "cache" / "a.npy").write_bytes(b"damaged")
    np.testing.assert_array_equal(cache.array("a", make), IMAGES)
    assert len(made) == 2
