"""The format ``llava_onevision``: LLaVA-OneVision as the hub has it, older and newer spelling.

Source: transformers, conversion_mapping.py: what its class makes of older names. A model is
published under the older names, as transformers itself writes them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, cast

from torch import nn

import tpokit
from tpokit.interfaces import Place, Published, Shapes
from tpokit_llava_onevision.backbone import LlavaOnevisionBackbone
from tpokit_llava_onevision.checkpoint import read_config
from tpokit_llava_onevision.processor import load_library

_OURS = "backbone.model."
_SPELLINGS = (
    (r"language_model\.lm_head\.", "lm_head."),
    (r"lm_head\.", "lm_head."),
    (r"language_model\.model\.", "model.language_model."),
    (r"(model\.)?vision_tower\.(vision_model\.)?", "model.vision_tower."),
    (r"model\.language_model\.", "model.language_model."),
    (r"(model\.)?multi_modal_projector\.", "model.multi_modal_projector."),
    (r"(model\.)?image_newline$", "model.image_newline"),
)
"""What names begin with, and what stands there in the class."""
_WRITTEN = {
    "lm_head.": "language_model.lm_head.",
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.image_newline": "image_newline",
}
"""The same from the class to the older spelling."""
_DESCRIPTION = ("*.json", "*.jinja", "*.txt", "*.model")
"""Files of configuration, tokenizer and processor."""
_MARK = "multi_modal_projector.linear_1.weight"


class LlavaOnevisionWeights(tpokit.BackboneWeightRules):
    """Rules of the backbone; the files hold no heads."""

    def __init__(
        self, shapes: Shapes, names: dict[str, str], backbone: LlavaOnevisionBackbone | None = None
    ) -> None:
        """Make them; `from_published` and `from_model` are the usual ways.

        Args:
            shapes: By published name.
            names: Published name to that in transformers' class.
            backbone: That is to be published.
        """
        self._shapes, self._names, self._backbone = shapes, names, backbone

    @classmethod
    def from_published(cls, shapes: Shapes) -> Self | None:
        """See `WeightRules.from_published`."""
        plain = {name.removeprefix("model.") for name in shapes}
        if _MARK not in plain or "image_newline" not in plain:
            return None
        names = {name: name_in_class(name) for name in shapes}
        known = {name: ours for name, ours in names.items() if ours is not None}
        return cls(shapes, known)

    @classmethod
    def from_model(cls, part: nn.Module) -> Self:
        """See `WeightRules.from_model`."""
        backbone = cast(LlavaOnevisionBackbone, part)
        shapes: dict[str, tuple[int, ...]] = {}
        names: dict[str, str] = {}
        for ours, parameter in backbone.model.named_parameters():
            if ".lora_" in ours:
                raise tpokit.UsageError(
                    "the format llava_onevision holds no adapters; merge them first, with "
                    "`tpokit weights merge`"
                )
            before = next(start for start in _WRITTEN if ours.startswith(start))
            name = _WRITTEN[before] + ours.removeprefix(before)
            shapes[name], names[name] = tuple(parameter.shape), ours
        if _MARK not in shapes:
            raise tpokit.UsageError(
                "the format llava_onevision holds the model's own connector, but this model has "
                f"another, a {type(backbone.connector).__name__} (backbone.connector)"
            )
        return cls(shapes, names, backbone)

    def options(self) -> dict[str, Any]:
        """Number format as published."""
        return {"dtype": "auto"}

    def lora(self) -> None:
        """There are no adapters."""
        return

    def tensors(self, tokens: tpokit.TokenTable) -> Iterable[Published]:
        """See `WeightRules.tensors`; whether all are there is seen by our model, which has the same
        ones.

        Raises:
            UsageError: The model has task tokens, which the format cannot hold.
        """
        if tokens.tasks:
            raise tpokit.UsageError(
                "the format llava_onevision holds no task tokens; this model has heads of "
                f"{', '.join(tokens.tasks)}"
            )
        for name, ours in self._names.items():
            yield Published(name, self._shapes[name], (Place(_OURS + ours),))

    def prepare(self, source: Path, backbone: Path, llm: Path | None = None) -> None:
        """Copy configuration, tokenizer and processor; see `BackboneWeightRules.prepare`."""
        read_config(source, str(source))
        for pattern in _DESCRIPTION:
            for path in source.glob(pattern):
                if not path.name.endswith(".index.json"):  # of shards that are not copied
                    shutil.copy(path, backbone)

    def write_files(self, published: Path) -> None:
        """See `BackboneWeightRules.write_files`."""
        assert self._backbone is not None, "made by from_model"
        self._backbone.model.config.save_pretrained(published)
        load_library(self._backbone._folder).save_pretrained(published)


def name_in_class(name: str) -> str | None:
    """A published name as transformers' class has it; ``None``: it is of no such model."""
    for before, ours in _SPELLINGS:
        found = re.match(before, name)
        if found is not None:
            return ours + name[found.end() :]
    return None
