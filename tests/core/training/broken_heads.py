"""Script: a step with heads that break the rule for idle passes, as two ranks.

``broken_heads.py FOLDER`` writes ``FOLDER/messages-<rank>.json``: head and engine to what the guard
said, and ``FOLDER/<head>-<engine>.safetensors`` where it said nothing.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.core.training.one_step import change
from tests.core.training.tiny import MassHead
from tpokit import TrainingError
from tpokit.training.rank_guard import RankGuard
from tpokit.training.ranks import Ranks

IDLE = "idle"


class MarkedMass(MassHead):
    """Can tell an idle pass."""

    def idle_inputs(self):
        inputs = super().idle_inputs()
        return {**inputs, "context": inputs["context"]._replace(prepared=IDLE)}


class UntouchedMass(MarkedMass):
    """Does nothing when idle."""

    def forward(self, slots, context):
        return slots.sum((1, 2)) if context.prepared == IDLE else super().forward(slots, context)


class HalfMass(MarkedMass):
    """Leaves out a layer when idle."""

    def forward(self, slots, context):
        if context.prepared == IDLE:
            return self.inner(slots)[:, 0, 0]
        return super().forward(slots, context)


class TurnedMass(MarkedMass):
    """Comes to its layers in another order when idle."""

    def forward(self, slots, context):
        if context.prepared == IDLE:
            last = self.outer(slots[..., : self.outer.in_features])
            return last[:, 0, 0] + self.inner(slots)[:, 0, 0]
        return super().forward(slots, context)


HEADS = {"untouched": UntouchedMass, "half": HalfMass, "turned": TurnedMass}
TRIED = {
    "ddp": ("untouched", "half"),
    "zero1": ("untouched",),
    "zero2": ("untouched", "half", "turned"),
    "zero3": ("untouched", "half", "turned"),
}


def one_step(folder, engine, name):
    """The gradients of a step of which rank 0 calls the head and rank 1 does not."""

    def broken(model):
        own = model.head("mass")
        model.heads["mass"] = HEADS[name](own.options, own.host)
        model.heads["mass"].load_state_dict(own.state_dict())
        return RankGuard(model, engine, "all", Ranks.here())

    return change(folder, engine, changed=broken)


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    Ranks.here().join(60)
    messages = {}
    for engine, heads in TRIED.items():
        for head in heads:
            try:
                gradients = one_step(place, engine, head)
            except TrainingError as cause:
                messages[f"{head} {engine}"] = str(cause)
                continue
            if Ranks.here().first:
                save_file(gradients, place / f"{head}-{engine}.safetensors")
    (place / f"messages-{Ranks.here().rank}.json").write_text(json.dumps(messages))
