"""The order in which autograd will come to the weights, read from the graph before it runs.

Autograd takes, of the operations whose gradients are all there, the one that was computed last. So
the order follows from the graph alone, and can be compared between ranks before any gradient is on
its way to another rank.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from typing import Any

from torch import Tensor


def visited(total: Tensor) -> Iterator[Any]:
    """The operations of a graph in the order in which a backward pass comes to them.

    Args:
        total: Where the backward pass begins, a scalar.

    Yields:
        Nodes of autograd. One with a ``variable`` adds up the gradient of that weight.
    """
    start: Any = total.grad_fn
    waiting = _incoming(start)
    arrivals = count()
    ready = [(0, next(arrivals), start)]
    while ready:
        _, _, node = heapq.heappop(ready)
        yield node
        for following, _ in node.next_functions:
            if following is None:
                continue
            waiting[following] -= 1
            if not waiting[following]:
                heapq.heappush(ready, (-following._sequence_nr(), next(arrivals), following))


def weights_of(total: Tensor) -> list[Tensor]:
    """Weights that a backward pass reaches, in its order."""
    return [node.variable for node in visited(total) if hasattr(node, "variable")]


def _incoming(start: Any) -> dict[Any, int]:
    """How many gradients each operation of a graph waits for."""
    found = {start: 0}
    unseen = [start]
    while unseen:
        for following, _ in unseen.pop().next_functions:
            if following is None:
                continue
            if following not in found:
                found[following] = 0
                unseen.append(following)
            found[following] += 1
    return found
