"""Early stopping: the end of a run whose validations do not get better."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from yolor_ray.evaluate.metrics import fitness

logger = logging.getLogger(__name__)


def ends_early(rows: Sequence[Mapping[str, Any]], tasks: Collection[str], patience: int) -> bool:
    """Return True, and log the reason, if the last validation is `patience` epochs or more after the best one.

    The wait begins with the first fitness above 0: a network that finds nothing yet may still be warming up, and a fitness without a
    value says nothing. The first of equal validations is the best, as it is for the published weights.

    Args:
        rows: metrics of the finished epochs, in order; validated epochs have `AP`.
        tasks: tasks of the network.
        patience: epochs without a better validation; 0 never ends a run.
    """
    validated = [(fitness(row, tasks), row["epoch"]) for row in rows if "AP" in row]
    if patience == 0 or not validated:
        return False
    best_fitness, best_epoch = max(validated, key=lambda pair: pair[0])
    epoch = validated[-1][1]
    if best_fitness <= 0 or epoch - best_epoch < patience:
        return False
    logger.info("event=early_stop epoch=%d best_epoch=%d fitness=%.4f", epoch, best_epoch, best_fitness)
    return True
