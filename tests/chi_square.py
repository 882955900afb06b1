"""A goodness-of-fit test."""


def chi_square(counts, probabilities, z=4.0):
    """Pearson's statistic of counts [K] against probabilities [K], and the limit it should keep.

    Categories expected fewer than five times are left out. The limit is the quantile of the
    chi-square distribution which a standard normal passes at `z` (once in 30,000 for z = 4), by the
    approximation of Wilson and Hilferty (1931).
    """
    expected = probabilities * counts.sum()
    likely = expected >= 5
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum().item()
    freedom = int(likely.sum()) - 1
    shrink = 2 / (9 * freedom)
    return statistic, freedom * (1 - shrink + z * shrink**0.5) ** 3
