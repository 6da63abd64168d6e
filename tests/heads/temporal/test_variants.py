"""The temporal head, small."""

import pytest
import torch

from tpokit import Host
from tpokit_temporal.head import TemporalHead
from tpokit_temporal.options import TemporalOptions


@pytest.mark.parametrize("more", [{}, {"heads": 5, "width": 100}, {"released_quirks": True}])
def test_small_it_runs_and_keeps_queries_and_features(more):
    options = TemporalOptions(queries=7, **more)
    head = TemporalHead.build_small(options, Host(hidden=16, vision=8))
    assert (head.options.queries, head.options.features) == (7, options.features)
    prediction = head(**head.idle_inputs())
    assert prediction.output.moments.shape[-2:] == (7, 2)
    assert sum(p.numel() for p in head.parameters()) < 1.5e6
    assert torch.isfinite(prediction.output.logits).all()
