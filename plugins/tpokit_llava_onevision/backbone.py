"""LLaVA-OneVision as a backbone: transformers' own model, its pieces called one by one.

Source: arXiv 2408.03326; transformers ``LlavaOnevisionForConditionalGeneration``, whose numbers the
tests compare with. We differ in one point: images and videos of a batch go through the vision tower
and the connector in *one* call, so that ranks with different media call the same modules. And the
connector is exchangeable.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

import tpokit
from tpokit.attention import attention_ends, tells_samples_apart
from tpokit.batch import SequenceIndex
from tpokit.connectors import build_connector, save_connector
from tpokit.interfaces import ConnectorChoice, LayerStack
from tpokit.pretrained import hash_of_files, hash_of_random, quiet_transformers, revision_of
from tpokit_llava_onevision.checkpoint import (
    find_folder,
    load_model,
    read_config,
    weight_files,
)
from tpokit_llava_onevision.options import LlavaOnevisionOptions
from tpokit_llava_onevision.processor import OnevisionProcessor, load_library
from tpokit_llava_onevision.sizes import layer_stacks, small_config, without_weights
from tpokit_llava_onevision.visual import NewlineVector, OwnConnector, VisualPath, host_of


class LlavaOnevisionBackbone(tpokit.Backbone):
    """Any checkpoint of the class, from a folder, a package or the hub.

    Attributes:
        model: transformers' model; its parameters stand under ``model.`` in the names of this one.
        connector: In place of the model's own, if a recipe names one.
    """

    Options = LlavaOnevisionOptions
    processor: OnevisionProcessor

    def __init__(
        self,
        model: LlavaOnevisionForConditionalGeneration,
        processor: OnevisionProcessor,
        folder: Path,
        identity: dict[str, str],
        choice: ConnectorChoice | None = None,
    ) -> None:
        """Wrap a loaded model; `build` is the usual way.

        Args:
            model, processor: Of one checkpoint.
            folder: Where the processor's files are.
            identity: See `identity`.
            choice: A connector in place of the model's own.
        """
        super().__init__()
        self.model = model
        self.processor = processor
        self.width = int(model.config.text_config.hidden_size)
        self.rows = int(model.config.text_config.vocab_size)
        self.packs = tells_samples_apart(model.model.language_model)
        self._folder = folder
        self._identity = identity
        self._choice = choice
        self._counted = False
        if choice is None:
            self.newline = NewlineVector(model.model.image_newline)
            visual = VisualPath(model, self.newline, None, None)
        else:
            self.connector = build_connector(choice, host_of(model.config, folder), folder)
            object.__setattr__(self, "_own", OwnConnector.taken_out(model.model))  # no part of it
            visual = VisualPath(model, None, self.connector, choice.feature_need().layers)
        self._visual = visual
        self.vision_width = visual.width

    @classmethod
    def build(
        cls, options: tpokit.Options, folder: Path, connector: ConnectorChoice | None = None
    ) -> LlavaOnevisionBackbone:
        """Load or make the model that the options name.

        Raises:
            UsageError: The model cannot be found, or the connector does not fit it.
            CheckpointError: What was found is not a whole LLaVA-OneVision.
        """
        assert isinstance(options, LlavaOnevisionOptions)
        found = find_folder(options, folder)
        return cls._build(options, found, read_config(found, options.model), connector)

    @classmethod
    def build_empty(
        cls, options: tpokit.Options, folder: Path, connector: ConnectorChoice | None = None
    ) -> LlavaOnevisionBackbone:
        """See `tpokit.Backbone.build_empty`; raises as `build`."""
        with torch.device("meta"):  # accelerate's way would part weights that are shared
            return cls.build(without_weights(options), folder, connector)

    @classmethod
    def build_small(
        cls, options: tpokit.Options, folder: Path, connector: ConnectorChoice | None = None
    ) -> LlavaOnevisionBackbone:
        """See `tpokit.Backbone.build_small`; raises as `build`."""
        random = without_weights(options)
        found = find_folder(random, folder)
        choice = None if connector is None else connector.small()
        layers = () if choice is None else choice.feature_need().layers
        config = small_config(read_config(found, random.model), layers)
        return cls._build(random, found, config, choice)

    @classmethod
    def _build(
        cls,
        options: LlavaOnevisionOptions,
        found: Path,
        config: LlavaOnevisionConfig,
        connector: ConnectorChoice | None,
    ) -> LlavaOnevisionBackbone:
        place = None if connector is None else (connector, host_of(config, found))
        processor = OnevisionProcessor.load(found, config, options.frames, options.crops, place)
        model = load_model(found, config, options)
        if options.weights == "random":
            weights = hash_of_random(config.to_json_string(use_diff=False), model)
        else:
            weights = hash_of_files(weight_files(found))
        identity = {"name": options.model, "hash": weights, **revision_of(found)}
        return cls(model, processor, found, identity, connector)

    def layer_stacks(self, tokens: int, pixels: int) -> list[LayerStack]:
        """See `tpokit.Backbone.layer_stacks`."""
        return layer_stacks(self.model, tokens, pixels)

    def parts(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """The vision tower; projector and newline vector, or the connector in their place; language
        model and output layer.
        """
        inner = self.model.model
        own = [inner.multi_modal_projector, inner.image_newline] if self._choice is None else []
        return {
            "vision": [inner.vision_tower],
            "connector": own or [self.connector],
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
            images, videos = self._visual.tokens(batch.media)
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
            embeds = embeds + self._visual.idle().to(embeds.dtype)
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
        sequences: SequenceIndex | None = None,
    ) -> tuple[Tensor, Any]:
        """Run the language model; the cache is changed in place and handed back."""
        llm = self.model.model.language_model
        output = llm(
            inputs_embeds=embeds,
            attention_mask=mask if sequences is None else None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=use_cache,
            **attention_ends(llm, sequences),
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
        whole = nullcontext() if self._choice is None else self._own.put_back(self.model.model)
        try:
            with quiet_transformers(), whole:
                self.model.save_pretrained(folder)
                load_library(self._folder).save_pretrained(folder)
        except OSError as cause:
            raise tpokit.CheckpointError(f"{folder} cannot be written: {cause}") from cause
        if self._choice is not None:
            save_connector(self.connector, self._choice, folder)

    def encode_frames(self, pixels: Tensor | None, grid: int) -> Tensor:
        """Frames ``[t, 3, side, side]`` to ``[t, grid * grid * vision_width]``: states of the layer
        that the model's own connector reads, averaged over the cells of a grid.
        """
        frames = self._visual.idle_pixels() if pixels is None else pixels
        return self._visual.encode_frames(frames, grid)

    def without_gradient(self) -> tuple[str, ...]:
        """Of the tower what stands behind the layers that are read; and the bias of keys, which
        changes nothing behind a softmax.
        """
        connector = () if self._choice is None else self.connector.without_gradient()
        return (
            r"\.k_proj\.bias$",
            r"^model\.model\.vision_tower\..*(post_layernorm|\bhead)\.",
            *(
                rf"^model\.model\.vision_tower\..*layers\.{layer}\."
                for layer in self._visual.unread_layers()
            ),
            *(rf"^connector\..*?(?:{pattern})" for pattern in connector),
        )

    def gradient_checkpointing_enable(self) -> None:
        """Recompute activations in the backward pass instead of keeping them; the non-reentrant
        way, because with the other one LoRA behind frozen embeddings gets no gradient.
        """
        # transformers 5.23 renamed it and warns of the old name
        enable = getattr(self.model, "activation_checkpointing_enable", None)
        enable = self.model.gradient_checkpointing_enable if enable is None else enable
        enable({"use_reentrant": False})

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
