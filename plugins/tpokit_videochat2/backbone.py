"""VideoChat2 as a backbone: video ViT, connector, and any causal LM of transformers.

Source: arXiv 2311.17005 (VideoChat2) and 2412.19326; OpenGVLab/Ask-Anything, video_chat2;
OpenGVLab/TPO, modeling_videochate.py. We differ: images and videos of any length may share a batch
and go through tower and connector in one call each; the connector is exchangeable; embeddings of
words get a gradient where a stage trains the LLM in full (the release detaches them).
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

import tpokit
from tpokit.attention import attention_ends, chosen_attention, tells_samples_apart
from tpokit.batch import SequenceIndex
from tpokit.connectors import build_connector, save_connector
from tpokit.interfaces import Connector, ConnectorChoice, Instruction, LayerStack
from tpokit.pretrained import hash_of_files, hash_of_random, revision_of
from tpokit_videochat2.build import Plan, make_llm, plan_of
from tpokit_videochat2.checkpoint import dtype_of, fill, weight_files, write_weights
from tpokit_videochat2.config import write_config
from tpokit_videochat2.options import VideoChat2Options
from tpokit_videochat2.processor import VideoChat2Processor
from tpokit_videochat2.sizes import layer_stacks, without_weights
from tpokit_videochat2.start import balance
from tpokit_videochat2.vision import VisionTower

_CONNECTOR = "connector."


class VideoChat2Backbone(tpokit.Backbone):
    """Any VideoChat2 in our format.

    Attributes:
        vision: The tower.
        connector: Features to tokens of the LLM.
        llm: A causal LM of transformers.
    """

    Options = VideoChat2Options
    processor: VideoChat2Processor
    vision: VisionTower
    connector: Connector
    llm: Any

    def __init__(
        self, plan: Plan, vision: VisionTower, connector: Connector, llm: nn.Module, weights: str
    ) -> None:
        """Put a model together; `build` is the usual way.

        Args:
            plan: What it is made after.
            vision, connector, llm: Its parts.
            weights: Hash of the weights, see `identity`.
        """
        super().__init__()
        self.vision, self.connector, self.llm = vision, connector, llm
        self.processor = plan.processor
        self.width = plan.host.hidden
        self.rows = plan.rows
        self.packs = tells_samples_apart(llm.base_model)
        self.vision_width = plan.host.vision
        self._plan = plan
        self._layers = plan.choice.feature_need().layers
        name = plan.options.model
        self._identity = {"name": name, "hash": weights, **revision_of(plan.folder)}
        self._counted = False
        self._lora_targets = _linear_layers(llm, plan.options.lora_output)

    @classmethod
    def build(
        cls, options: tpokit.Options, folder: Path, connector: ConnectorChoice | None = None
    ) -> VideoChat2Backbone:
        """Load or make the model that the options name.

        Raises:
            UsageError: The model cannot be found, or the connector does not fit it.
            CheckpointError: What was found is not a whole VideoChat2.
        """
        assert isinstance(options, VideoChat2Options)
        return cls._build(plan_of(options, folder, connector))

    @classmethod
    def build_empty(
        cls, options: tpokit.Options, folder: Path, connector: ConnectorChoice | None = None
    ) -> VideoChat2Backbone:
        """See `tpokit.Backbone.build_empty`; raises as `build`."""
        with torch.device("meta"):  # accelerate's way would part weights that are shared
            return cls.build(without_weights(options), folder, connector)

    @classmethod
    def build_small(
        cls, options: tpokit.Options, folder: Path, connector: ConnectorChoice | None = None
    ) -> VideoChat2Backbone:
        """See `tpokit.Backbone.build_small`; raises as `build`."""
        return cls._build(plan_of(without_weights(options), folder, connector, small=True))

    @classmethod
    def _build(cls, plan: Plan) -> VideoChat2Backbone:
        options = plan.options
        pretrained = options.weights == "pretrained"
        found = weight_files(plan.folder) if pretrained else []
        dtype = plan.dtype or (dtype_of(found[0]) if found else None)
        attention = chosen_attention(options.attention, dtype)
        with init_empty_weights(include_buffers=False) if pretrained else nullcontext():
            vision = VisionTower(plan.config.vision, attention)
            llm = make_llm(plan.config.llm, attention)
            own = None if plan.foreign else plan.choice.build(plan.host)
        if own is None:
            own = build_connector(plan.choice, plan.host, plan.folder)
        model = cls(plan, vision, own, llm, "")
        if pretrained:
            fill(model, plan.folder, plan.dtype, skipped=_CONNECTOR if plan.foreign else "")
            llm.tie_weights()
            weights = hash_of_files(weight_files(plan.folder))
        else:
            if options.start == "balanced":
                balance(vision, llm, plan.config.llm["num_hidden_layers"])
            weights = hash_of_random(plan.config.model_dump_json(), model)
        model._identity["hash"] = weights
        return model if plan.dtype is None else model.to(plan.dtype)

    def layer_stacks(self, tokens: int, pixels: int) -> list[LayerStack]:
        """See `tpokit.Backbone.layer_stacks`."""
        return layer_stacks(self.vision.sizes, self.llm.config, tokens, pixels)

    def parts(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """Its three modules."""
        return {"vision": [self.vision], "connector": [self.connector], "llm": [self.llm]}

    def lora_targets(self) -> str:
        """Every linear layer of the LLM's blocks, and with ``lora_output`` its output layer."""
        return self._lora_targets

    def embed(self, batch: tpokit.Batch, idle_vision: bool) -> Tensor:
        """Input embeddings ``[b, l, d]`` with the tokens of media in place.

        Raises:
            DataError: The media give another number of tokens than there are placeholders.
        """
        embeds = self.embed_ids(batch.ids)
        if batch.media:
            tokens = self._media_tokens(batch.media)
            places = (batch.ids == self.processor.media_id) & batch.mask
            self._compare_counts(batch, places, len(tokens))
            embeds = embeds.masked_scatter(places[..., None], tokens.to(embeds.dtype))
        elif idle_vision:
            tokens = self._media_tokens({"pixels": self._idle_pixels(), "frames": [1]})
            embeds = embeds + 0.0 * tokens.sum().to(embeds.dtype)
        return embeds

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Table lookup ``[b, q]`` to ``[b, q, d]``; task tokens get the last row."""
        embedded: Tensor = self.llm.get_input_embeddings()(ids.clamp(max=self.rows - 1))
        return embedded

    def decode(
        self,
        embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: Any = None,
        use_cache: bool = False,
        sequences: SequenceIndex | None = None,
    ) -> tuple[Tensor, Any]:
        """Run the LLM; the cache is changed in place and handed back."""
        output = self.llm.base_model(
            inputs_embeds=embeds,
            attention_mask=mask if sequences is None else None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=use_cache,
            **attention_ends(self.llm.base_model, sequences),
        )
        return output.last_hidden_state, output.past_key_values if use_cache else None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., rows]`` of hidden states ``[..., d]``."""
        words: Tensor = self.llm.get_output_embeddings()(hidden)
        return words

    def encode_frames(self, pixels: Tensor | None, grid: int) -> Tensor:
        """Frames ``[t, 3, side, side]`` to ``[t, grid * grid * vision_width]``: each alone, as an
        image; features of the last block, averaged over the cells of a grid.
        """
        frames = self._idle_pixels() if pixels is None else pixels
        with self._vision_gradient():
            states = self.vision.encode_frames(frames.to(self._dtype))
        rows, columns = self._plan.host.grid
        squares = states.transpose(1, 2).unflatten(2, (rows, columns))  # [t, c, rows, columns]
        cells = nn.functional.adaptive_avg_pool2d(squares, grid)  # [t, c, grid, grid]
        return cells.permute(0, 2, 3, 1).flatten(1)

    def without_gradient(self) -> tuple[str, ...]:
        """Of the tower the blocks behind those that are read; and the bias of keys, which changes
        nothing behind a softmax.
        """
        last = max(self._layers)
        count = len(self.vision.blocks)
        return (
            r"\.k_proj\.bias$",
            *(rf"^vision\.blocks\.{block}\." for block in range(count + last + 1, count)),
            *(rf"^connector\..*?(?:{own})" for own in self.connector.without_gradient()),
        )

    def gradient_checkpointing_enable(self) -> None:
        """Recompute activations of tower and LLM in the backward pass instead of keeping them."""
        self.vision.gradient_checkpointing_enable()
        # transformers 5.23 renamed it and warns of the old name
        enable = getattr(self.llm, "activation_checkpointing_enable", None)
        enable = self.llm.gradient_checkpointing_enable if enable is None else enable
        enable({"use_reentrant": False})

    def identity(self) -> dict[str, str]:
        """``name`` as the recipe has it, and ``hash`` of the weights as they were loaded."""
        return dict(self._identity)

    def save(self, folder: Path) -> None:
        """Write configuration, tokenizer and weights; `build` loads them again from that folder.

        Raises:
            CheckpointError: There are adapters that were not merged, or writing failed.
        """
        if any(".lora_" in name for name, _ in self.named_parameters()):
            raise tpokit.CheckpointError(
                "the model has LoRA adapters; merge them before it is saved as a whole"
            )
        plan = self._plan
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_config(plan.config, folder)
            plan.copy_tokenizers(folder)
        except OSError as cause:
            raise tpokit.CheckpointError(f"{folder} cannot be written: {cause}") from cause
        write_weights(self, folder, skipped=_CONNECTOR if plan.foreign else "")
        if plan.foreign:
            save_connector(self.connector, plan.choice, folder)

    # ---- vision ----

    @property
    def _dtype(self) -> torch.dtype:
        return self.vision.patch_embed.weight.dtype

    def _vision_gradient(self) -> Any:
        """A frozen tower keeps no activations."""
        trained = any(parameter.requires_grad for parameter in self.vision.parameters())
        return torch.set_grad_enabled(trained and torch.is_grad_enabled())

    def _media_tokens(self, media: dict[str, Any]) -> Tensor:
        """Tokens of all clips of a batch ``[tokens, d]``: one call of the tower, one of the
        connector.
        """
        with self._vision_gradient():
            features = self.vision(media["pixels"].to(self._dtype), media["frames"], self._layers)
        instruction = None
        if "instruction_ids" in media:
            instruction = Instruction(media["instruction_ids"], media["instruction_mask"])
        tokens: Tensor = self.connector(features, media["frames"], instruction)
        return tokens

    def _idle_pixels(self) -> Tensor:
        """One black frame, the smallest input of the tower."""
        side = self._plan.config.vision.image_size
        return torch.zeros(
            1, 3, side, side, dtype=self._dtype, device=self.vision.patch_embed.weight.device
        )

    def _compare_counts(self, batch: tpokit.Batch, places: Tensor, found: int) -> None:
        """Compare tokens with what the processor promised, and with the placeholders in the ids.

        Looking at ids on a GPU makes the host wait, so that is done for the first batch only.
        """
        look = batch.ids.device.type == "cpu" or not self._counted
        self._counted = True
        promised = sum(batch.media["tokens"])
        placed = int(places.sum()) if look else promised
        if not found == promised == placed:
            unknown = (
                " (words that the tokenizer does not know count as placeholders, if that is what "
                "stands for media)"
                if placed > promised
                else ""
            )
            raise tpokit.DataError(
                f"tokens of media and placeholders do not match: the media give {found} tokens, "
                f"{promised} were expected from their frames, and the text has {placed} "
                f"placeholders{unknown}; samples: {', '.join(batch.samples)}"
            )


def _linear_layers(llm: Any, with_output: bool) -> str:
    """A regular expression for the linear layers of an LLM, by their full names in the backbone."""
    output = llm.get_output_embeddings()
    names = {
        name.rpartition(".")[2]
        for name, module in llm.base_model.named_modules()
        if isinstance(module, nn.Linear)
    }
    inner = rf"llm\.{re.escape(llm.base_model_prefix)}\.(.+\.)?({'|'.join(sorted(names))})"
    last = next(name for name, module in llm.named_modules() if module is output)
    return rf"{inner}|llm\.{re.escape(last)}" if with_output else inner
