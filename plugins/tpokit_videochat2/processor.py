"""Template, tokenizer and pixels of a VideoChat2."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

import tpokit
from tpokit_videochat2.pixels import Look
from tpokit_videochat2.templates import Prompt, Template, Timestamps

InstructionSource = Literal["none", "system", "question"]

_MEDIA_MARK = re.compile(r"<(image|video)>")
_LONGEST_INSTRUCTION = 512  # words of the release's Q-Former
_SPARE_ROWS, _SPARE_SHARE = 64, 50  # rows without a word that a table may have: see `_compare`


@dataclass(kw_only=True, eq=False, repr=False)
class VideoChat2Processor(tpokit.Processor):
    """Has no weights and can be pickled.

    Text is tokenised as a whole, as released: there is no blank in front of an answer that follows
    ``[/INST]`` directly.

    Attributes:
        tokenizer: Of the LLM.
        template, timestamps: See `tpokit_videochat2.templates`.
        media_token: The word whose place a token of a medium takes.
        image_size: Side of a frame, in pixels.
        mean, std: Of pixels by channel, values in [0, 1].
        rows: Of the LLM's word table.
        max_length: Longest sequence, in tokens.
        need: Which frames of a video are seen.
        connector: Says how many tokens a clip gives, and what it stands between.
        instruction: What a connector that reads an instruction is given: the ``system`` turn, or
            that and the first ``question``.
        instruction_tokenizer: Of the connector; needed unless ``instruction`` is ``none``.
        media_id: Id of the media token.
    """

    tokenizer: PreTrainedTokenizerFast
    template: Template = "chat"
    timestamps: Timestamps = "asked"
    media_token: str = "<unk>"
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rows: int
    max_length: int
    need: tpokit.MediaNeed
    connector: tuple[tpokit.ConnectorChoice, tpokit.ConnectorHost]
    instruction: InstructionSource = "none"
    instruction_tokenizer: PreTrainedTokenizerFast | None = None
    media_id: int = field(init=False)

    whole_text = True

    def __post_init__(self) -> None:
        """Check that tokenizer and model fit together.

        Raises:
            CheckpointError: The tokenizer is of another vocabulary, or lacks a token.
            UsageError: An instruction is wanted, but there is no tokenizer for it.
        """
        _compare(self.tokenizer, self.rows)
        self.end_of_turn = _end_of(self.tokenizer)
        self.media_id = _single_id(self.tokenizer, self.media_token)
        self._prompt = Prompt(
            self.template,
            self.timestamps,
            self.tokenizer.bos_token or "",
            self.end_of_turn,
            self.media_token,
        )
        self.start_of_turn = self._prompt.start_of_turn
        self.reserved = (self.media_token,)
        self._look = Look(self.image_size, self.mean, self.std)
        if self.instruction != "none" and self.instruction_tokenizer is None:
            raise tpokit.UsageError(
                f"instruction: {self.instruction!r} needs a tokenizer of the connector, but the "
                "model has none; leave it out"
            )

    def media_need(self) -> tpokit.MediaNeed:
        """As the recipe says."""
        return self.need

    def render(self, messages: Sequence[Mapping[str, Any]], answer_next: bool) -> str:
        """Apply the template."""
        return self._prompt.render(messages, answer_next)

    def expand(self, text: str, views: Sequence[tpokit.View]) -> str:
        """Repeat the token of media as often as each gives tokens, and say when the frames of a
        video were taken, where the template wants that.

        Raises:
            DataError: There is not one placeholder for each medium, or the connector cannot take a
                video of that many frames.
        """
        return self._prompt.expand(text, views, [self._tokens_of(view) for view in views])

    def pixels(self, views: Sequence[tpokit.View]) -> int:
        """Those of all frames, at the size in which the tower sees them."""
        return sum(len(view.frames) for view in views) * self.image_size**2

    def collate_media(self, views: Sequence[Sequence[tpokit.View]]) -> dict[str, Any]:
        """Pixels of a batch: all frames of all clips, in the order of samples and of their media.

        Returns:
            Empty without media, else ``pixels`` float32 ``[f, 3, side, side]`` (f: frames) and
            numbers for each clip that need no look at the GPU: ``frames``, and ``tokens`` that
            `expand` promised.
        """
        clips = [view for sample in views for view in sample]
        if not clips:
            return {}
        return {
            "pixels": self._look.pixels(clips),
            "frames": [len(view.frames) for view in clips],
            "tokens": [self._tokens_of(view) for view in clips],
        }

    def collate_frames(self, views: Sequence[tpokit.View]) -> Tensor:
        """Every frame of every view: float32 ``[frames, 3, side, side]``."""
        return self._look.pixels(views)

    def collate_instructions(
        self, turns: Sequence[Sequence[tpokit.Turn]], views: Sequence[Sequence[tpokit.View]]
    ) -> dict[str, Any]:
        """What the connector is told to look for.

        Returns:
            Empty if nothing; else ``instruction_ids`` int64 and ``instruction_mask`` bool, both
            ``[clips, w]``; w: longest instruction, padded and, if too long, cut on the left.
        """
        if self.instruction_tokenizer is None or self.instruction == "none":
            return {}
        rows: list[Tensor] = []
        for said, clips in zip(turns, views, strict=True):
            if clips:
                rows += [self._instruction_ids(said)] * len(clips)
        ids = pad_sequence(rows, batch_first=True, padding_value=-1, padding_side="left")
        pad = self.instruction_tokenizer.pad_token_id or 0
        mask = ids >= 0
        return {"instruction_ids": ids.where(mask, pad), "instruction_mask": mask}

    # ---- inside ----

    def _tokens_of(self, view: tpokit.View) -> int:
        choice, host = self.connector
        return choice.tokens(host, len(view.frames))

    def _instruction_ids(self, turns: Sequence[tpokit.Turn]) -> Tensor:
        """Ids of the instruction of one sample, with the special tokens of its tokenizer.

        Source: OpenGVLab/Ask-Anything, it_dataset_mistral.py: process_qa.
        """
        wanted = ("system", "user") if self.instruction == "question" else ("system",)
        texts = [next((turn.text for turn in turns if turn.role == role), "") for role in wanted]
        words = " ".join(_MEDIA_MARK.sub(" ", text).strip() for text in texts).strip()
        tokenizer = self.instruction_tokenizer
        assert tokenizer is not None
        tokenizer.truncation_side = "left"
        longest = min(_LONGEST_INSTRUCTION, tokenizer.model_max_length)
        found = tokenizer(words, truncation=True, max_length=longest)["input_ids"]
        return torch.tensor(found, dtype=torch.long)


def _compare(tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    """Refuse a tokenizer of another model.

    Tables are often a little longer than the vocabulary, rounded up for speed; 2 % cover those
    known to us. The word table of another release is not that close: Mistral v0.2 has 32000 words
    and v0.3 32768.
    """
    words = max(tokenizer.get_vocab().values()) + 1
    if not words <= rows <= words + max(_SPARE_ROWS, words // _SPARE_SHARE):
        raise tpokit.CheckpointError(
            f"tokenizer and model do not fit together: the tokenizer has {words} words, but the "
            f"word table of the LLM has {rows} rows; take both from the same release (VideoChat-TPO"
            " names Mistral v0.3 with 32768 words in its configuration, but its weights and its "
            "tokenizer are of v0.2, with 32000)"
        )


def _end_of(tokenizer: PreTrainedTokenizerFast) -> str:
    """The token that ends an answer."""
    end = tokenizer.eos_token
    if not end:
        raise tpokit.CheckpointError(
            "the tokenizer names no eos_token, so the model could not learn to end an answer; "
            "add it to tokenizer_config.json"
        )
    _single_id(tokenizer, end)
    return str(end)


def _single_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Id of a special token, which is cut out of any text."""
    ids = tokenizer(f"a{token}{token}", add_special_tokens=False)["input_ids"]
    index = tokenizer.convert_tokens_to_ids(token)
    if token not in tokenizer.get_vocab() or ids[-2:] != [index, index]:
        raise tpokit.CheckpointError(
            f"{token!r} is no special token of the tokenizer, so it cannot be told from text"
        )
    return int(index)
