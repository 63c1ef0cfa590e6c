"""How often something slow is done beside training."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Keeps what is done again and again to a share of the time.

    Args:
        share: of the time since it was done last that doing it again may cost.
        guess: seconds that the first time is thought to cost.
        least: seconds between two times, whatever it costs.
    """

    def __init__(self, share: float = 0.05, guess: float = 1.0, least: float = 0.0) -> None:
        self.share, self.cost, self.least, self.since = share, guess, least, time.perf_counter()

    def due(self) -> bool:
        """Whether enough time has passed."""
        return time.perf_counter() - self.since >= max(self.least, self.cost / self.share)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Around the doing."""
        started = time.perf_counter()
        yield
        self.since = time.perf_counter()
        self.cost = self.since - started
