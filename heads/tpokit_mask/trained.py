"""SAM 2 beside a head: which of its parts belong to the head's trained parameters.

A frozen SAM 2 is no part of a head: its weights come from a file, and belong into no checkpoint and
no table of parameters. What of it learns is registered here and saved with the head. The modules
are the very same objects, so training the one changes the other.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tpokit.errors import UsageError
from tpokit.pretrained import PACKAGE, find_folder
from tpokit_mask.options import RANDOM, Sam2Options
from tpokit_mask.sam2_port import Sam2, build

_MEMORY_PARTS = (
    *("image_encoder", "memory_attention", "memory_encoder", "obj_ptr_proj", "obj_ptr_tpos_proj"),
)
_LOOSE = ("maskmem_tpos_enc", "no_mem_embed", "no_obj_ptr", "no_obj_embed_spatial")
"""Parameters that are in no module. Left out, as no prompt token ever reaches them: the embeddings
of clicks and of given masks, and the position of a memory that is not there."""


class TrainedParts(nn.Module):
    """The parts of a SAM 2 that learn, by their names there; none if nothing does.

    They are cast with the head, as an engine may want it; `Sam2.run` computes in float32 anyway.
    """

    def __init__(self, sam2: Sam2, what: str) -> None:
        """Register what learns.

        Args:
            sam2: All of it is frozen but this.
            what: ``nothing``, ``decoder`` or ``everything``; of that, whatever a prompt token can
                reach.
        """
        super().__init__()
        sam2.set_trained("nothing")
        if what != "nothing":
            self.sam_mask_decoder = sam2.model.sam_mask_decoder
        if what == "everything":
            for name in _MEMORY_PARTS:
                part = getattr(sam2.model, name, None)
                if isinstance(part, nn.Module) and list(part.parameters()):
                    self.add_module(name, part)
            for name in _LOOSE:
                if (parameter := getattr(sam2.model, name, None)) is not None:
                    self.register_parameter(name, parameter)
        self.requires_grad_(True)

    def check_whole(self) -> None:
        """See that no engine has taken the parameters apart.

        Raises:
            UsageError: ZeRO-3 has. It gathers a module's weights whenever that runs, on all ranks
                at once, but SAM 2 runs once for each frame, and ranks have different frames.
        """
        first = next(self.parameters(), None)
        if first is not None and hasattr(first, "ds_id"):
            raise UsageError(
                "parts of SAM 2 cannot be trained under ZeRO-3 (run.engine: zero3): ranks would "
                "run them a different number of times; use zero2, or sam2.trained: nothing"
            )


def build_sam2(options: Sam2Options, folder: Path) -> Sam2:
    """The SAM 2 that the options name, frozen.

    Args:
        options: Of the recipe.
        folder: Relative paths start there.

    Raises:
        UsageError: The size is impossible, or a package is not installed.
        CheckpointError: There is no such checkpoint, it is broken, or of another size.
    """
    sam2 = build(
        options.size,
        image_size=options.image_size,
        checkpoint=checkpoint_file(options.checkpoint, folder),
        postprocessing=options.postprocessing,
    )
    return sam2.set_trained("nothing")


def checkpoint_file(name: str, folder: Path) -> Path | None:
    """The file of a checkpoint; ``None`` for random weights.

    Raises:
        UsageError: It is to be in a package that is not installed.
    """
    if name == RANDOM:
        return None
    if not name.startswith(PACKAGE):
        return folder / Path(name).expanduser()
    inner, _, file = name.rpartition("/")
    if inner.count("/") < PACKAGE.count("/") or not file:
        raise UsageError(f"sam2.checkpoint {name!r} must be {PACKAGE}PACKAGE/FOLDER/FILE")
    return find_folder(inner, "sam2.checkpoint", folder) / file
