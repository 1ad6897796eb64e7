"""Fusion of samples against SimpleITK and a plain EM; uncertainty by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from biedsnet_jax.segmenters import fusion

STAPLE = jax.jit(fusion.staple)


def raters(seed: int, n: int, shape=(40, 52), noise=0.6) -> np.ndarray:
    """Masks "n h w" that agree on the middle of blobs and differ along their borders."""
    rng = np.random.default_rng(seed)

    def field(sigma):
        smooth = gaussian_filter(rng.normal(size=shape), sigma)
        return smooth / smooth.std()

    truth = field(4)
    return np.stack([truth + noise * field(2) > 0.8 for _ in range(n)])


def staple(votes: np.ndarray) -> np.ndarray:
    """Probability "h w" of votes "n h w", given as samples on either side of one half."""
    return np.asarray(STAPLE(samples(votes)))[0, :, :, 0]


def samples(votes: np.ndarray) -> jax.Array:
    """Votes "n h w" as samples "n 1 h w 1" on either side of one half."""
    return jnp.where(votes, 0.8, 0.3)[:, None, :, :, None]


def plain_staple(votes: np.ndarray) -> np.ndarray:
    """Warfield, Zou, Wells 2004, section II, as products of float64 over every pixel.

    Start, prior and stop are ITK's.
    """
    d = votes.reshape(len(votes), -1)
    w = d.mean(axis=0)
    prior = d.mean()
    last = np.full((2, len(d), 1), -10.0)
    for _ in range(1000):
        p = (d * w).sum(axis=1, keepdims=True) / w.sum()
        q = (~d * (1 - w)).sum(axis=1, keepdims=True) / (1 - w).sum()
        a = prior * np.where(d, p, 1 - p).prod(axis=0)
        b = (1 - prior) * np.where(d, 1 - q, q).prod(axis=0)
        w = a / (a + b)
        if (np.abs([p, q] - last) <= 1e-7).all():
            return w.reshape(votes.shape[1:])
        last = np.array([p, q])
    raise AssertionError("EM has not converged. Choose votes that agree more.")


@pytest.mark.parametrize("seed", range(3))
# With 12 samples there are more patterns of votes than pixels.
@pytest.mark.parametrize("n", [1, 2, 3, 5, 9, 12])
def test_staple_is_simple_itks(n, seed):
    sitk = pytest.importorskip("SimpleITK")
    votes = raters(seed, n)
    image = sitk.STAPLEImageFilter().Execute(
        [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in votes]
    )
    expected, found = sitk.GetArrayFromImage(image), staple(votes)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(found > 0.5, expected > 0.5)


@pytest.mark.parametrize(
    ("n", "shape"), [(3, (40, 52)), (4, (16, 20)), (7, (16, 20)), (9, (16, 20))]
)
def test_staple_is_a_plain_em(n, shape):
    # In the last case there are fewer pixels than patterns of votes.
    votes = raters(2, n, shape)
    np.testing.assert_allclose(staple(votes), plain_staple(votes), atol=1e-4)


def test_each_image_and_class_is_fused_by_itself():
    # "n h w (b k)"
    votes = np.stack([raters(seed, 5) for seed in range(6)], axis=-1)
    given = jnp.asarray(votes, jnp.float32).reshape(5, 40, 52, 2, 3)
    together = np.asarray(STAPLE(jnp.moveaxis(given, 3, 1)))
    assert together.shape == (2, 40, 52, 3)
    for i in range(6):
        np.testing.assert_allclose(
            together[i // 3, :, :, i % 3], staple(votes[..., i]), atol=1e-6
        )


@pytest.mark.parametrize("n", [1, 2, 5, 12])
@pytest.mark.parametrize("votes", ["none", "all", "the same"])
def test_agreeing_samples_come_back(n, votes):
    # ITK itself gives NaN where every vote is 0, or every vote 1.
    mask = {
        "none": np.zeros((9, 9), bool),
        "all": np.ones((9, 9), bool),
        "the same": raters(0, 1, (9, 9))[0],
    }[votes]
    np.testing.assert_allclose(staple(np.stack([mask] * n)), mask, atol=1e-6)


@pytest.mark.parametrize("odd", ["empty", "full", "opposite"])
def test_one_useless_sample_of_five_spoils_nothing(odd):
    votes = raters(1, 5)
    votes[4] = {"empty": False, "full": True, "opposite": ~votes[0]}[odd]
    found = staple(votes)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, plain_staple(votes), atol=1e-4)


def test_two_good_samples_outvote_three_bad_ones():
    rng = np.random.default_rng(0)
    truth = np.hypot(*np.ogrid[-20:20, -20:20]) < 12
    votes = np.stack([truth, truth, *(rng.random((3, 40, 40)) < 0.5)])
    majority = np.asarray(fusion.majority(samples(votes)))[0, :, :, 0] > 0.5
    # An eighth of the pixels have all three bad votes against them.
    assert (majority != truth).mean() > 0.1
    np.testing.assert_array_equal(staple(votes) > 0.5, truth)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mean", 0.5), ("majority", 2 / 3), ("mean_squared", 0.25), ("staple", 2 / 3)],
)
def test_three_samples_of_one_pixel(name, expected):
    pixel = jnp.array([0.2, 0.6, 0.7]).reshape(3, 1, 1, 1, 1)
    # In STAPLE w = 2/3 gives p = (0, 1, 1) and q = (1, 0, 0), which explain a true pixel
    # and a false one alike. So the odds are those of the prior, 2 to 1, and stay.
    assert float(fusion.FUSIONS[name](pixel)[0, 0, 0, 0]) == pytest.approx(
        expected, abs=1e-6
    )


# ---- Uncertainty

# Entropy of (1/3, 2/3) in bits.
THIRD = 0.9182958340544896


@pytest.mark.parametrize(
    ("samples", "entropy", "mutual_information", "variance"),
    [
        # every sample unsure: nothing to learn from their disagreement
        ([0.5, 0.5, 0.5], 1.0, 0.0, 0.0),
        # each sure, of the opposite
        ([0.0, 1.0], 1.0, 1.0, 0.25),
        ([0.0, 0.0, 1.0], THIRD, THIRD, 2 / 9),
        ([0.25, 0.75], 1.0, 1.0 - 0.8112781244591328, 1 / 16),
        ([0.0, 0.0], 0.0, 0.0, 0.0),
        ([1.0, 1.0, 1.0], 0.0, 0.0, 0.0),
        # one sample
        ([1 / 3], THIRD, 0.0, 0.0),
    ],
)
def test_uncertainty_by_hand(samples, entropy, mutual_information, variance):
    maps = fusion.uncertainty(jnp.array(samples).reshape(-1, 1, 1, 1, 1))
    assert list(maps) == ["entropy", "mutual_information", "variance"]
    assert [float(m[0, 0, 0, 0]) for m in maps.values()] == pytest.approx(
        [entropy, mutual_information, variance], abs=1e-6
    )


@pytest.mark.parametrize("n", [1, 2, 7])
def test_uncertainty_keeps_its_bounds(n):
    rng = np.random.default_rng(n)
    samples = rng.beta(0.3, 0.3, (n, 2, 16, 16, 3)).astype(np.float32)
    samples[:, 0, 0] = samples[:, 0, 0].round()
    maps = jax.tree.map(np.asarray, fusion.uncertainty(jnp.asarray(samples)))
    for m in maps.values():
        assert m.shape == samples.shape[1:]
        assert np.isfinite(m).all() and (m >= 0).all()
    assert (maps["entropy"] <= 1 + 1e-6).all() and (maps["variance"] <= 0.25).all()
    assert (maps["mutual_information"] <= maps["entropy"]).all()
    if n == 1:
        assert not maps["mutual_information"].any() and not maps["variance"].any()


@pytest.mark.parametrize(
    ("models", "within", "between"),
    [
        # Two models that are sure of the opposite.
        ([[0.0, 0.0], [1.0, 1.0]], 0.0, 1.0),
        # Two models alike, whose samples are sure of the opposite.
        ([[0.0, 1.0], [0.0, 1.0]], 1.0, 0.0),
        # One of each: means 1/2 and 1, of all 3/4.
        ([[0.0, 1.0], [1.0, 1.0]], 0.5, 0.8112781244591328 - 0.5),
        # One sample a model: all of it is between them.
        ([[0.0], [0.0], [1.0]], 0.0, THIRD),
        # Every sample unsure: nothing to learn from their disagreement.
        ([[0.5, 0.5], [0.5, 0.5]], 0.0, 0.0),
        ([[0.25, 0.75], [0.25, 0.75]], 1.0 - 0.8112781244591328, 0.0),
    ],
)
def test_uncertainty_within_and_between_models_by_hand(models, within, between):
    samples = jnp.array(models).reshape(-1, 1, 1, 1, 1)
    maps = fusion.uncertainty_by_model(samples, len(models))
    assert list(maps) == ["within_models", "between_models"]
    assert [float(m[0, 0, 0, 0]) for m in maps.values()] == pytest.approx(
        [within, between], abs=1e-6
    )


@pytest.mark.parametrize(("models", "of_each"), [(2, 3), (5, 1), (3, 2)])
def test_both_parts_make_up_the_mutual_information(models, of_each):
    rng = np.random.default_rng(models)
    drawn = rng.beta(0.3, 0.3, (models * of_each, 2, 16, 16, 3)).astype(np.float32)
    parts = fusion.uncertainty_by_model(jnp.asarray(drawn), models)
    whole = fusion.uncertainty(jnp.asarray(drawn))["mutual_information"]
    np.testing.assert_allclose(sum(parts.values()), whole, atol=1e-5)
    if of_each == 1:
        np.testing.assert_allclose(parts["within_models"], 0.0, atol=1e-6)
    else:
        # Whatever the models are, one by one.
        alone = [
            fusion.uncertainty(jnp.asarray(of_model))["mutual_information"]
            for of_model in drawn.reshape(models, of_each, 2, 16, 16, 3)
        ]
        within = np.mean(alone, axis=0)
        np.testing.assert_allclose(parts["within_models"], within, atol=1e-5)
