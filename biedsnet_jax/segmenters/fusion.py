"""Fusion of K samples of one image into one probability map."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Samples = Float[Array, "n b h w k"]
Probability = Float[Array, "b h w k"]

# STAPLE's EM ends when its estimates move by no more than this, or after these rounds.
_CLOSE = 1e-7
_MOST_ROUNDS = 2000
# Stands for 0 under a logarithm.
_TINY = 1e-30


def mean(samples: Samples) -> Probability:
    """The mean, as BIEDSNet's reference implementation takes it."""
    return jnp.mean(samples, axis=0)


def majority(samples: Samples) -> Probability:
    """The share of samples above one half."""
    return jnp.mean((samples > 0.5).astype(jnp.float32), axis=0)


def mean_squared(samples: Samples) -> Probability:
    """The square of the mean.

    The published MedSegDiff calls this STAPLE and computes it as mean(s * mean(s)).
    """
    return jnp.square(jnp.mean(samples, axis=0))


def staple(samples: Samples) -> Probability:
    """STAPLE of the samples above one half, each image and class by itself.

    EM finds the sensitivity p and specificity q of every sample together with the
    probability of the hidden truth. As in ITK's filter, the first truth is the mean
    vote, the prior is the mean of all votes, and EM stops when no p or q moves by more
    than 1e-7. Samples that agree, or a single one, are the result themselves, empty and
    full ones included.
    Source: Warfield, Zou, Wells 2004, doi:10.1109/TMI.2004.828354.
    """
    n, b, h, w, k = samples.shape
    votes = jnp.transpose(samples > 0.5, (1, 4, 0, 2, 3))
    # One vmap over both axes is ten times faster than two.
    votes = votes.reshape(b * k, n, h, w)
    truth = jax.vmap(_staple)(votes)
    truth = truth.reshape(b, k, h, w)
    return jnp.moveaxis(truth, 1, -1)


FUSIONS = {
    "mean": mean,
    "majority": majority,
    "staple": staple,
    "mean_squared": mean_squared,
}


def uncertainty(samples: Samples) -> dict[str, Probability]:
    """Maps of how unsure the samples are, each in [0, 1].

    `entropy` is that of the mean probability, in bits. `mutual_information` is the part
    of it that the samples' disagreement explains, the entropy of the mean less the mean
    entropy (Houlsby et al. 2011, arXiv:1112.5745). `variance` is between the samples.
    """
    entropy = _entropy(mean(samples))
    explained = entropy - jnp.mean(_entropy(samples), axis=0)
    return {
        "entropy": entropy,
        "mutual_information": jnp.maximum(explained, 0.0),
        "variance": jnp.var(samples, axis=0),
    }


def uncertainty_by_model(samples: Samples, models: int) -> dict[str, Probability]:
    """Splits the mutual information of the samples of several models, in bits.

    `samples` are those of one model, then those of the next, as many of each.
    `within_models` is the mutual information among the samples of one model, the mean
    over models. `between_models` is the rest: the entropy of the mean of all less the
    mean over models of the entropy of each model's mean. With model m, sample n and
    label y it is the chain rule

        I(y; m, n) = E_m I(y; n | m) + I(y; m).

    Source: Depeweg et al. 2018, arXiv:1710.07283, which splits an entropy so.
    """
    of_model = samples.reshape(models, -1, *samples.shape[1:])
    means = jnp.mean(of_model, axis=1)
    within = _entropy(means) - jnp.mean(_entropy(of_model), axis=1)
    between = _entropy(mean(samples)) - jnp.mean(_entropy(means), axis=0)
    within = jnp.mean(within, axis=0)
    return {
        "within_models": jnp.maximum(within, 0.0),
        "between_models": jnp.maximum(between, 0.0),
    }


def _entropy(p):
    """Entropy of a coin, in bits; 0 where it is certain."""
    heads = jax.scipy.special.entr(p)
    tails = jax.scipy.special.entr(1.0 - p)
    return (heads + tails) / jnp.log(2.0)


def _staple(votes: Bool[Array, "n h w"]) -> Float[Array, "h w"]:
    """Probability of the truth, by EM over pixels or over patterns of votes.

    Pixels with the same votes share their truth, so EM runs over the 2^n patterns where
    these are fewer.
    """
    n, h, w = votes.shape
    if 2**n >= h * w:
        votes = votes.reshape(n, h * w)
        once = jnp.ones(h * w)
        truth = _expectation_maximisation(votes, once)
        return truth.reshape(h, w)
    # A pixel's votes, read as a binary number, say which pattern it has.
    pattern = 0
    for i, vote in enumerate(votes):
        pattern = pattern + (vote.astype(jnp.int32) << i)
    count = jnp.zeros(2**n).at[pattern.reshape(-1)].add(1.0)
    every_pattern = [jnp.arange(2**n) >> i & 1 == 1 for i in range(n)]
    truth = _expectation_maximisation(jnp.stack(every_pattern), count)
    return truth[pattern]


def _expectation_maximisation(
    votes: Bool[Array, "n m"], count: Float[Array, " m"]
) -> Float[Array, " m"]:
    """Probability that the truth is 1 for m patterns of votes.

    Each pattern occurs `count` times. `quality` holds log p, log (1 - p), log q and
    log (1 - q). Every complement is summed for itself: a difference would cancel in
    float32.
    """
    yes = votes.astype(jnp.float32)
    no = (~votes).astype(jnp.float32)

    def total(pick, weight):
        # It is no matrix product, whose factors GPU and TPU would round.
        return jnp.sum(pick * weight[None], axis=1)

    def maximise(w, not_w):
        p = _log_shares(total(yes, w), total(no, w))
        q = _log_shares(total(no, not_w), total(yes, not_w))
        return jnp.concatenate([p, q])

    def log_odds(quality):
        log_p, log_not_p, log_q, log_not_q = quality[..., None]
        evidence = jnp.where(votes, log_p - log_not_q, log_not_p - log_q)
        return prior + jnp.sum(evidence, axis=0)

    def one_round(state):
        quality, change, _, rounds = state
        odds = log_odds(quality)
        truth = jax.nn.sigmoid(odds)
        ones = count * truth
        zeros = count * jax.nn.sigmoid(-odds)
        new_quality = maximise(ones, zeros)
        moved = jnp.exp(new_quality) - jnp.exp(quality)
        new_change = jnp.max(jnp.abs(moved))
        # Float32 can stall just above `_CLOSE`, where rounding moves the estimates.
        stalled = (new_change < 3 * _CLOSE) & (new_change >= change)
        close = new_change <= _CLOSE
        done = close | stalled | (rounds >= _MOST_ROUNDS)
        return new_quality, new_change, done, rounds + 1

    def goes_on(state):
        _, _, done, _ = state
        return ~done

    all_yes = jnp.sum(total(yes, count))
    all_no = jnp.sum(total(no, count))
    log_yes, log_no = _log_shares(all_yes, all_no)
    prior = log_yes - log_no
    ones = count * jnp.mean(yes, axis=0)
    zeros = count * jnp.mean(no, axis=0)
    first = maximise(ones, zeros)
    start = (first, jnp.float32(jnp.inf), jnp.bool(False), 1)
    quality, *_ = jax.lax.while_loop(goes_on, one_round, start)
    return jax.nn.sigmoid(log_odds(quality))


def _log_shares(
    part: Float[Array, "*n"], rest: Float[Array, "*n"]
) -> Float[Array, "2 *n"]:
    """Logarithms of part / (part + rest) and of its complement.

    Where part and rest are 0, both are the logarithm of `_TINY`.
    """
    total = jnp.maximum(part + rest, _TINY)
    shares = jnp.stack([part / total, rest / total])
    return jnp.log(jnp.maximum(shares, _TINY))
