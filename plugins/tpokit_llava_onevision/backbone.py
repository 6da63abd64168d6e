"""LLaVA-OneVision as a backbone: transformers' own model, its pieces called one by one.

Source: arXiv 2408.03326; transformers ``LlavaOnevisionForConditionalGeneration``, whose numbers the
tests compare with. We differ in one point: images and videos of a batch go through the vision tower
and the connector in *one* call, so that ranks with different media call the same modules.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration

import tpokit
from tpokit.pretrained import quiet_transformers
from tpokit_llava_onevision.checkpoint import (
    find_folder,
    hash_of_files,
    hash_of_random,
    load_model,
    read_config,
    weight_files,
)
from tpokit_llava_onevision.options import LlavaOnevisionOptions
from tpokit_llava_onevision.processor import OnevisionProcessor, load_library


class NewlineVector(nn.Module):
    """The vector at the end of a row of image features, as a module of its own.

    In transformers it is a bare parameter of a module whose ``forward`` is not used here, and
    ZeRO-3 gathers a parameter only around a call of its module.
    """

    def __init__(self, vector: nn.Parameter) -> None:
        """Share the parameter ``[d]`` of the model."""
        super().__init__()
        self.weight = vector

    def forward(self) -> Tensor:
        """The vector ``[d]``; a copy, as ZeRO-3 takes the parameter away again."""
        return self.weight.clone()


class LlavaOnevisionBackbone(tpokit.Backbone):
    """Any checkpoint of the class, from a folder, a package or the hub.

    Attributes:
        model: transformers' model; its parameters stand under ``model.`` in the names of this one.
    """

    Options = LlavaOnevisionOptions
    processor: OnevisionProcessor

    def __init__(
        self,
        model: LlavaOnevisionForConditionalGeneration,
        processor: OnevisionProcessor,
        folder: Path,
        identity: dict[str, str],
    ) -> None:
        """Wrap a loaded model; `build` is the usual way.

        Args:
            model, processor: Of one checkpoint.
            folder: Where the processor's files are.
            identity: See `identity`.
        """
        super().__init__()
        self.model = model
        self.newline = NewlineVector(model.model.image_newline)
        self.processor = processor
        self.width = int(model.config.text_config.hidden_size)
        self.rows = int(model.config.text_config.vocab_size)
        self._folder = folder
        self._identity = identity
        self._counted = False
        layers = model.config.vision_feature_layer
        self._feature_layers = [layers] if isinstance(layers, int) else list(layers)
        self.vision_width = model.config.vision_config.hidden_size * len(self._feature_layers)
        # transformers 5.23 keeps the one layer that is named; 5.17 takes any number but 0 as "all"
        self._recorded: int | bool = layers if isinstance(layers, int) and layers else True

    @classmethod
    def build(cls, options: tpokit.Options, folder: Path) -> LlavaOnevisionBackbone:
        """Load or make the model that the options name.

        Raises:
            UsageError: The model cannot be found.
            CheckpointError: What was found is not a whole LLaVA-OneVision.
        """
        assert isinstance(options, LlavaOnevisionOptions)
        found = find_folder(options, folder)
        config = read_config(found, options.model)
        processor = OnevisionProcessor.load(found, config, options.frames, options.crops)
        model = load_model(found, config, options)
        if options.weights == "random":
            weights = hash_of_random(config, model)
        else:
            weights = hash_of_files(weight_files(found))
        return cls(model, processor, found, {"name": options.model, "hash": weights})

    def parts(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """The vision tower; projector and newline vector; language model and output layer."""
        inner = self.model.model
        return {
            "vision": [inner.vision_tower],
            "connector": [inner.multi_modal_projector, inner.image_newline],
            "llm": [inner.language_model, self.model.lm_head],
        }

    def lora_targets(self) -> str:
        """The seven linear layers of each block of the language model, and none of SigLIP's, whose
        attention has a ``q_proj`` too.
        """
        return (
            r"model\.model\.language_model\.layers\.\d+\."
            r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
        )

    def embed(self, batch: tpokit.Batch, idle_vision: bool) -> Tensor:
        """Input embeddings ``[b, l, d]`` with the vision features in place.

        Raises:
            DataError: The media give another number of features than there are placeholders.
        """
        embeds = self.embed_ids(batch.ids)
        if batch.media:
            images, videos = self._media_features(batch.media)
            self._compare_counts(batch, len(images), len(videos))
            config = self.model.config
            for token, features in (
                (config.image_token_id, images),
                (config.video_token_id, videos),
            ):
                if len(features):
                    places = (batch.ids == token)[..., None]
                    embeds = embeds.masked_scatter(places, features.to(embeds.dtype))
        elif idle_vision:
            embeds = embeds + self._idle_vision().to(embeds.dtype)
        return embeds

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Table lookup ``[b, q]`` to ``[b, q, d]``; task tokens get the last row."""
        embedded: Tensor = self.model.get_input_embeddings()(ids.clamp(max=self.rows - 1))
        return embedded

    def decode(
        self,
        embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: Any = None,
        use_cache: bool = False,
    ) -> tuple[Tensor, Any]:
        """Run the language model; the cache is changed in place and handed back."""
        output = self.model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=use_cache,
        )
        return output.last_hidden_state, output.past_key_values if use_cache else None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., rows]`` of hidden states ``[..., d]``."""
        words: Tensor = self.model.lm_head(hidden)
        return words

    def identity(self) -> dict[str, str]:
        """``name`` as the recipe has it, and ``hash`` of the weights as they were loaded."""
        return dict(self._identity)

    def save(self, folder: Path) -> None:
        """Write model and processor; `build` loads them again from that folder.

        The tokenizer is the checkpoint's own, without the task tokens that a model has taught it.

        Raises:
            CheckpointError: There are adapters that were not merged, or writing failed.
        """
        if any(".lora_" in name for name, _ in self.model.named_parameters()):
            raise tpokit.CheckpointError(
                "the model has LoRA adapters; merge them before it is saved as a whole"
            )
        try:
            with quiet_transformers():
                self.model.save_pretrained(folder)
                load_library(self._folder).save_pretrained(folder)
        except OSError as cause:
            raise tpokit.CheckpointError(f"{folder} cannot be written: {cause}") from cause

    def encode_frames(self, pixels: Tensor | None, grid: int) -> Tensor:
        """Frames ``[t, 3, side, side]`` to ``[t, grid * grid * vision_width]``: states of the layer
        that the connector reads, averaged over the cells of a grid.
        """
        states = self._tower_states(self._idle_pixels() if pixels is None else pixels)
        rows = math.isqrt(states.shape[1])  # SigLIP has no class token: patches form a square
        squares = states.transpose(1, 2).unflatten(2, (rows, rows))  # [t, c, rows, rows]
        cells = nn.functional.adaptive_avg_pool2d(squares, grid)  # [t, c, grid, grid]
        return cells.permute(0, 2, 3, 1).flatten(1)

    def gradient_checkpointing_enable(self) -> None:
        """Recompute activations in the backward pass instead of keeping them; the non-reentrant
        way, because with the other one LoRA behind frozen embeddings gets no gradient.
        """
        # transformers 5.23 renamed it and warns of the old name
        enable = getattr(self.model, "activation_checkpointing_enable", None)
        enable = self.model.gradient_checkpointing_enable if enable is None else enable
        enable({"use_reentrant": False})

    # ---- vision ----

    def _media_features(self, media: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Features of all images ``[tokens, d]`` and of all videos ``[tokens, d]`` of a batch."""
        inner = self.model.model
        features = self._tile_features(media["pixels"])
        newline = self.newline()
        nothing = features.new_empty(0, self.width)
        tiles = sum(media["image_tiles"])
        images, videos = nothing, nothing
        if tiles:
            packed, _ = inner.pack_image_features(
                torch.split(features[:tiles], media["image_tiles"]),
                media["image_sizes"],
                image_newline=newline,
                vision_aspect_ratio=self.model.config.vision_aspect_ratio,
            )
            images = torch.cat(packed)
        if media["video_frames"]:
            pooled = inner.apply_pooling(features[tiles:])
            pieces = [
                piece
                for clip in torch.split(pooled, media["video_frames"])
                for piece in (clip.flatten(0, 1), newline[None].to(pooled))
            ]
            videos = torch.cat(pieces)
        return images, videos

    def _tile_features(self, pixels: Tensor) -> Tensor:
        """Tiles ``[t, 3, side, side]`` to features ``[t, patches, d]``: one call of the tower, one
        of the connector.
        """
        features: Tensor = self.model.model.multi_modal_projector(self._tower_states(pixels))
        return features

    def _tower_states(self, pixels: Tensor) -> Tensor:
        """Tiles ``[t, 3, side, side]`` to states of the tower ``[t, patches, c]``."""
        tower = self.model.model.vision_tower
        trained = any(parameter.requires_grad for parameter in tower.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            seen = tower(
                pixels.to(self.model.dtype), output_hidden_states=self._recorded, return_dict=True
            )
        layers = [seen.hidden_states[layer] for layer in self._feature_layers]
        states: Tensor = layers[0] if len(layers) == 1 else torch.cat(layers, dim=-1)
        if trained:
            # The norm behind the last layer (and a pooling head) is not used; with no gradient at
            # all it would stop DDP, so it takes part with a gradient of zero.
            states = states + 0.0 * seen.last_hidden_state[0, 0].sum()
            if seen.pooler_output is not None:
                states = states + 0.0 * seen.pooler_output[0].sum()
        return states

    def _idle_pixels(self) -> Tensor:
        """One black tile, the smallest input of the tower."""
        side = self.model.config.vision_config.image_size
        return torch.zeros(1, 3, side, side, dtype=self.model.dtype, device=self.model.device)

    def _idle_vision(self) -> Tensor:
        """Zero, by way of every parameter that media would use."""
        features = self._tile_features(self._idle_pixels())
        nothing: Tensor = 0.0 * (features[0, 0].sum() + self.newline().sum())
        return nothing

    def _compare_counts(self, batch: tpokit.Batch, images: int, videos: int) -> None:
        """Compare features with what the processor promised, and with the placeholders in the ids.

        Looking at ids on a GPU makes the host wait, so that is done for the first batch only.
        """
        tokens = self.model.config.image_token_id, self.model.config.video_token_id
        look = batch.ids.device.type == "cpu" or not self._counted
        self._counted = True
        for kind, token, features in zip(("image", "video"), tokens, (images, videos), strict=True):
            promised = sum(batch.media[f"{kind}_tokens"])
            placed = int((batch.ids == token).sum()) if look else promised
            if not features == promised == placed:
                raise tpokit.DataError(
                    f"{kind} features and placeholders do not match: the media give {features} "
                    f"features, {promised} were expected from their sizes, and the text has "
                    f"{placed} placeholders; settings: {self.processor.settings()}; "
                    f"samples: {', '.join(batch.samples)}"
                )
