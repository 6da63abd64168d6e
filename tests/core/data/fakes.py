"""A processor and a head through the public contracts, small enough to see through."""

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tpokit import ContextNeed, DataError, LossTerm, MediaNeed, Processor, TaskHead, TaskTokens

WORDS = (
    "<unk> <pad> <user> <answer> <end> <image> <video> it is here and where the ring square no yes"
)
ROWS = 32


def words_tokenizer():
    vocabulary = {word: index for index, word in enumerate(WORDS.split())}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<user>", "<answer>", "<end>", "<image>", "<video>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=special,
    )


class WordProcessor(Processor):
    """Template ``<user> question <answer> answer <end>``; an image is 3 tokens, a frame 2."""

    end_of_turn = "<end>"
    max_length = 200

    def __init__(self):
        self.tokenizer = words_tokenizer()

    def media_need(self):
        return MediaNeed(frames=2)

    def render(self, messages, answer_next):
        text = ""
        for message in messages:
            said = " ".join(part.get("text", f"<{part['type']}>") for part in message["content"])
            opening = {"user": "<user>", "assistant": "<answer>", "system": "<user>"}
            text += f"{opening[message['role']]} {said}"
            text += self.end_of_turn if message["role"] == "assistant" else " "
        return text + ("<answer> " if answer_next else "")

    def expand(self, text, views):
        pieces = []
        views = list(views)
        for piece in (
            text.replace("<image>", "\0<image>\0").replace("<video>", "\0<video>\0").split("\0")
        ):
            if piece in ("<image>", "<video>"):
                view = views.pop(0)
                pieces.append(piece * (3 if view.kind == "image" else 2 * len(view.frames)))
            else:
                pieces.append(piece)
        if views:
            raise DataError("more media than placeholders")
        return "".join(pieces)

    def collate_media(self, views):
        return {
            "pixels": torch.tensor([float(view.frames.mean()) for row in views for view in row])
        }


class PointHead(TaskHead):
    """A number from two slots; takes a given number."""

    task = "point"
    tokens = TaskTokens("<point_begin>", ("<point_x>", "<point_y>"), given="<point_given>")
    terms = ("error",)

    def read_target(self, annotation, seen):
        if not isinstance(annotation, float):
            raise DataError(f"{seen.where}: {annotation!r} is not a number")
        return annotation

    def read_given(self, annotation, seen):
        return [annotation]

    def forward(self, slots, context):
        return slots.flatten(1).sum(1)

    def loss(self, prediction, targets):
        return {"error": LossTerm((prediction - targets).abs().sum(), float(len(targets)))}

    def decode(self, prediction, media):
        return prediction.tolist()


class SeeingHead(PointHead):
    """The same for another task, and it looks at four frames itself."""

    task = "sight"
    tokens = TaskTokens("<sight_begin>", ("<sight_slot>",))

    def context_need(self):
        return ContextNeed(media=MediaNeed(frames=4))


class StreamingHead(SeeingHead):
    """The same, and in inference it goes through the medium itself."""

    task = "flow"
    tokens = TaskTokens("<flow_begin>", ("<flow_slot>",))

    def context_need(self):
        return ContextNeed(media=MediaNeed(frames=4), stream=True)


def write_image(path, value=0, size=(8, 6)):
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)
    return path
