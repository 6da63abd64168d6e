"""What a VideoChat2 has besides weights: its configuration and its tokenizers.

Shapes do not tell everything, such as how many attention heads there are. A ``videochat2.json``
(`tpokit_videochat2.config`) beside published weights says it, and is written when a model is
published. Without one the heads are as wide as in all models of the family.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tpokit.errors import CheckpointError
from tpokit_videochat2.build import INSTRUCTION_TOKENIZER
from tpokit_videochat2.config import (
    CONFIG_FILE,
    ConnectorEntry,
    VideoChat2Config,
    VisionOptions,
    read_config,
    write_config,
)
from tpokit_videochat2.tokenizer import convert_sentencepiece, load_tokenizer
from tpokit_videochat2.weights.sizes import LlmSizes, QFormerSizes, VisionSizes

if TYPE_CHECKING:
    from tpokit_videochat2.backbone import VideoChat2Backbone

_SENTENCEPIECE = "tokenizer.model"
_FAST = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_SIDE_PX = 224
_HEAD, _LLM_HEAD = 64, 128
"""Width of an attention head of vision tower and Q-Former, and of the LLM."""


@dataclass(frozen=True)
class Description:
    """All that is no weight.

    Attributes:
        config: Of the model.
        tokenizer: Of the LLM, without task tokens.
        instructions: Tokenizer of instructions, if it has one.
    """

    config: VideoChat2Config
    tokenizer: Any
    instructions: Any = None

    @classmethod
    def of_model(cls, backbone: VideoChat2Backbone) -> Description:
        """Of a model of ours."""
        plan = backbone._plan
        config, folder = plan.config, plan.folder
        if plan.foreign:  # a Q-Former that a recipe put there
            options = backbone.connector.options.model_dump(mode="json")
            config = config.model_copy(update={"connector": ConnectorEntry(options=options)})
        return cls(config, load_tokenizer(folder), find_instruction_tokenizer(folder))

    def check_words(self, rows: int, folder: Path, spare: bool = False) -> None:
        """See that the tokenizer is that of the word table.

        Args:
            rows: Of the table, without those of task tokens.
            folder: Where the tokenizer was, for messages.
            spare: Whether the table may be longer, as padded ones are.

        Raises:
            CheckpointError: It is not.
        """
        words = len(self.tokenizer)
        if words > rows or (words < rows and not spare):
            raise CheckpointError(
                f"the tokenizer in {folder} has {words} words, but the word table of these weights "
                f"has {rows} (besides task tokens): it is that of another LLM; put the one in its "
                "place that the weights were trained with"
            )

    def write(self, folder: Path) -> None:
        """Write all of it into a folder, in our form."""
        write_config(self.config, folder)
        self.tokenizer.save_pretrained(folder)
        if self.instructions is not None:
            self.instructions.save_pretrained(folder / INSTRUCTION_TOKENIZER)


def stated_config(folder: Path) -> VideoChat2Config | None:
    """The configuration beside published weights, if there is one.

    Raises:
        CheckpointError: It is wrong.
    """
    return read_config(folder) if (folder / CONFIG_FILE).is_file() else None


def usual_config(
    vision: VisionSizes, connector: QFormerSizes, llm: dict[str, Any], words: int
) -> VideoChat2Config:
    """The configuration of models of the family.

    Args:
        vision, connector: From shapes.
        llm: Of transformers.
        words: Of an instruction; 0: the connector reads none.

    Raises:
        CheckpointError: Widths are no multiples of the usual width of a head.
    """
    tower = VisionOptions(
        image_size=_SIDE_PX // vision.patch * vision.patch,
        patch_size=vision.patch,
        hidden_size=vision.width,
        layers=vision.layers,
        heads=usual_heads("vision tower", vision.width, _HEAD),
        intermediate_size=vision.inner,
        pretrained_grid=_SIDE_PX // vision.patch,
    )
    options = {
        "queries": connector.queries,
        "extra_queries": connector.extra,
        "layers": connector.layers,
        "width": connector.width,
        "heads": usual_heads("Q-Former", connector.width, _HEAD),
        "intermediate": connector.inner,
        "cross_attention_every": connector.every,
        "vocabulary": words,
    }
    if words:
        options["positions"] = connector.positions
    return VideoChat2Config(vision=tower, connector=ConnectorEntry(options=options), llm=llm)


def mistral_config(sizes: LlmSizes) -> dict[str, Any]:
    """Mistral-7B-Instruct-v0.2, with other sizes.

    Raises:
        CheckpointError: Widths are no multiples of the usual width of a head.
    """
    return {
        "model_type": "mistral",
        "vocab_size": sizes.words,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": usual_heads("LLM", sizes.query, _LLM_HEAD),
        "num_key_value_heads": usual_heads("LLM", sizes.key, _LLM_HEAD),
        "head_dim": _LLM_HEAD,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_window": None,
        "tie_word_embeddings": False,
    }


def usual_heads(what: str, width: int, head: int) -> int:
    """How many attention heads a part has.

    Raises:
        CheckpointError: ``width`` is no multiple of the usual width of a head.
    """
    if width % head:
        raise CheckpointError(
            f"the attention of the {what} is {width} wide, no multiple of {head}: how many heads "
            f"it has cannot be told from weights; put a {CONFIG_FILE} beside them that says it"
        )
    return width // head


def find_tokenizer(folder: Path, dropped: Collection[str] = ()) -> Any:
    """The tokenizer of a folder; a SentencePiece model counts more than what was made of it.

    Args:
        folder: With ``tokenizer.model``, or ``tokenizer.json`` and its settings.
        dropped: Added words that are taken away.

    Raises:
        CheckpointError: There is none, or it is broken.
    """
    if (folder / _SENTENCEPIECE).is_file():
        return convert_sentencepiece(folder / _SENTENCEPIECE)
    if not (folder / _FAST).is_file():
        raise CheckpointError(
            f"{folder} has neither {_SENTENCEPIECE} nor {_FAST}; put the tokenizer of the LLM there"
        )
    tokenizer = load_tokenizer(folder)
    if not set(dropped).intersection(tokenizer.get_added_vocab()):
        return tokenizer
    described = json.loads((folder / _FAST).read_text(encoding="utf-8"))
    kept = [token for token in described["added_tokens"] if token["content"] not in dropped]
    with TemporaryDirectory() as without:
        text = json.dumps({**described, "added_tokens": kept})
        Path(without, _FAST).write_text(text, encoding="utf-8")
        shutil.copy(folder / _SETTINGS, without)
        return load_tokenizer(Path(without))


def find_instruction_tokenizer(folder: Path) -> Any:
    """The tokenizer of instructions in a folder, or ``None``."""
    inner = folder / INSTRUCTION_TOKENIZER
    return load_tokenizer(inner) if inner.is_dir() else None
