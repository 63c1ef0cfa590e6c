"""No statistics: the control that says what batch norm is worth."""

from hnetcl.bn.statistics.base import StatisticsMode


class FrozenStatistics(StatisticsMode):
    r"""Mean 0 and covariance I, in training and evaluation: only Gamma and beta act.

    .. math:: y = \Gamma x + \beta

    Nothing is whitened and no eps is added, so the layer is exactly affine, whatever row is chosen; `bn.BATCH` in place of a
    row changes nothing either. Only statistics that the caller gives are used.

    Rows: none.
    """

    name = "frozen"
    trains_by_batch = False
    uses_statistics = False
