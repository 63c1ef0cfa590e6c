"""What a few runs say about a method: means, intervals, and differences."""

from itertools import product

import numpy as np

DRAWS = 2000  # of the bootstrap
EXACT = 14  # pairs up to which all signs are tried


def spread(values: np.ndarray) -> float:
    """The standard deviation over seeds, with n - 1; NaN for one."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def interquartile_mean(values: np.ndarray) -> float:
    """The mean of the middle half: the quarter of the values at each end is left out, in parts where n is no multiple of 4.

    Source: Agarwal et al. 2021 (arXiv:2108.13264), section 4.3.
    """
    ordered, n = np.sort(values), len(values)
    edges = np.arange(n + 1) / n
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    return float((ordered * weights).sum() / weights.sum())


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean over seeds; the same at every call. NaN for one value.

    Source: Agarwal et al. 2021 (arXiv:2108.13264), section 4.1.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    random = np.random.RandomState(0)
    means = values[random.randint(len(values), size=(DRAWS, len(values)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sign_test(differences: np.ndarray) -> tuple[float, float]:
    """The two-sided p-value of paired differences whose signs are exchangeable, and the least that so many pairs can reach.

    All 2^n signs are tried, or `DRAWS` random ones where n is above `EXACT`.

    Source: Fisher 1935, The design of experiments, section 21.
    """
    n = len(differences)
    if n == 0:
        return float("nan"), float("nan")
    found = abs(differences.sum())
    if n <= EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=n)))
    else:
        drawn = np.random.RandomState(0).choice((1.0, -1.0), size=(DRAWS - 2, n))
        signs = np.vstack([np.ones(n), -np.ones(n), drawn])  # those that were found, and their mirror
    sums = np.abs(signs @ differences)
    return float((sums >= found * (1 - 1e-12)).mean()), 2 / len(signs)
