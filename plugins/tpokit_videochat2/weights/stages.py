"""The format ``videochat2``: VideoChat2's own files, without task heads.

They hold what was trained: stage 2 without adapters, stage 3 with adapters on the LLM, whose own
weights lie in the folder from which it was published (``--llm``). The LLM may be any causal LM of
transformers. Source: OpenGVLab/Ask-Anything, video_chat2/models/videochat_mistra.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from torch import nn

from tpokit import TokenTable
from tpokit.errors import CheckpointError, UsageError
from tpokit.interfaces import OF_LLM, BackboneWeightRules, Place, Published, Shapes
from tpokit_videochat2.config import VideoChat2Config
from tpokit_videochat2.weights.description import (
    Description,
    find_instruction_tokenizer,
    find_tokenizer,
    stated_config,
    usual_config,
)
from tpokit_videochat2.weights.llm import OURS
from tpokit_videochat2.weights.names import connector_tensors, vision_tensors
from tpokit_videochat2.weights.sizes import LoraSizes, QFormerSizes, VisionSizes, shape_of

FAMILIES = ("mistral", "llama", "phi")
"""What the LLM is called in names: ``mistral_proj``, ``mistral_model``."""
_BEFORE = "base_model.model."
"""What PEFT puts before the names of transformers."""


class VideoChat2Weights(BackboneWeightRules):
    """Rules of the backbone; there are no heads in these files.

    Attributes:
        text_side: Whether the Q-Former keeps what only instructions need; these models were trained
            with them.
    """

    text_side = True

    def __init__(self, family: str, shapes: Shapes) -> None:
        """Make them; `from_published` is the usual way.

        Args:
            family: One of `FAMILIES`.
            shapes: Of the files and of the LLM.

        Raises:
            CheckpointError: Something is missing.
        """
        self._llm = {name: s for name, s in shapes.items() if name.startswith(OF_LLM)}
        if not self._llm:
            raise CheckpointError(
                "files of VideoChat2 hold only what was trained, not the LLM: give the folder of "
                f"the {family} that it was trained with: --llm FOLDER"
            )
        theirs = f"{family}_model.{_BEFORE}"
        self._adapters = {name: s for name, s in shapes.items() if name.startswith(theirs)}
        self._theirs = theirs
        self._lora = LoraSizes.of_names(self._adapters)
        self._projection = f"{family}_proj"
        self._hidden = shape_of(shapes, f"{self._projection}.weight", 2)[0]
        self._vision = VisionSizes.of_published(shapes)
        self._connector = QFormerSizes.of_published(shapes)

    @classmethod
    def from_published(cls, shapes: Shapes) -> Self | None:
        """See `WeightRules.from_published`."""
        for family in FAMILIES:
            if f"{family}_proj.weight" in shapes:
                return cls(family, shapes)
        return None

    @classmethod
    def from_model(cls, part: nn.Module) -> Self:
        """Refuse: these files hold no LLM.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "the format videochat2 holds no LLM, so a model cannot be published in it; "
            "videochat_tpo holds all of it"
        )

    def options(self) -> dict[str, Any]:
        """Number format as published; adapters where they were."""
        return {"dtype": "auto", "lora_output": self._lora is None or self._lora.output}

    def lora(self) -> dict[str, Any] | None:
        """See `BackboneWeightRules.lora`."""
        return None if self._lora is None else self._lora.recipe()

    def tensors(self, tokens: TokenTable) -> Iterable[Published]:
        """See `WeightRules.tensors`."""
        yield from vision_tensors(self._vision)
        yield from connector_tensors(
            self._connector, self._projection, self._hidden, self.text_side
        )
        yield from _whole(self._adapters, self._theirs)
        yield from _whole(self._llm, OF_LLM)

    def prepare(self, source: Path, backbone: Path, llm: Path | None = None) -> None:
        """See `BackboneWeightRules.prepare`.

        Raises:
            CheckpointError: Configuration or tokenizer of the LLM are missing or of another model.
        """
        assert llm is not None, "from_published has seen tensors of it"
        tokenizer, instructions = find_tokenizer(llm), find_instruction_tokenizer(source)
        description = Description(self._config(source, llm), tokenizer, instructions)
        rows = int(description.config.llm["vocab_size"])
        description.check_words(rows, llm, spare=True)
        description.write(backbone)

    def _config(self, source: Path, llm: Path) -> VideoChat2Config:
        stated = stated_config(source)
        if stated is not None:
            return stated
        words = self._connector.words if self.text_side else 0
        return usual_config(self._vision, self._connector, _read_llm_config(llm), words)


def _whole(shapes: Shapes, prefix: str) -> Iterator[Published]:
    """Tensors of the LLM, under the names of transformers behind a prefix."""
    for name, shape in shapes.items():
        yield Published(name, shape, (Place(OURS + name.removeprefix(prefix)),))


def _read_llm_config(folder: Path) -> dict[str, Any]:
    """Transformers' configuration of the LLM.

    Raises:
        CheckpointError: It is missing or broken.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise CheckpointError(
            f"{path}, the configuration of the LLM, cannot be read: {cause}"
        ) from cause
    if not isinstance(config, dict) or not {"model_type", "vocab_size"} <= set(config):
        raise CheckpointError(f"{path} is no configuration of an LLM of transformers")
    return config
