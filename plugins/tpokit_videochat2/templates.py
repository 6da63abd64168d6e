"""The prompts of VideoChat2 and VideoChat-TPO.

Sources: OpenGVLab/Ask-Anything, video_chat2/dataset/it_dataset_mistral.py (``videochat2``);
OpenGVLab/TPO, modeling_videochate.py (``chat``) and app.py (``app``). ``{V}``: the tokens of a
medium. Tags such as ``<Video>`` and ``[INST]`` are ordinary text.

==========  ========================================================================================
chat        ``<s>{instruction} [INST] <Video>{V}<s></Video>[/INST] [INST] q [/INST]a</s> [INST] q2
            [/INST]a2</s>``
app         ``<s>[INST] <Video>{V}<s></Video>[/INST]<s> [INST] q [/INST] a</s> [INST] q2 [/INST]``
            and a blank behind it
videochat2  ``<s>{instruction} [INST] <Video>{V}</Video> [/INST] [INST] q [/INST] a </s> [INST] q2
            [/INST] a2 </s>``
==========  ========================================================================================

The releases cut a text at its media and begin every part anew, which is where the further ``<s>``
come from. What they leave open, and we chose: media of a turn stand side by side in one ``[INST]``,
a blank apart; media of a later turn stand in front of its question; a question without words is
left out behind media, as in captions, and a question without media has its ``[INST]`` alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tpokit

Template = Literal["chat", "app", "videochat2"]
Timestamps = Literal["asked", "always", "never"]

_TIMES = "\ue010"
"""Where the times of a video go, until they are known."""
_ASKS_FOR_TIMES = "timestamp"
"""The word by which the demo of TPO knows a question that is about them."""


@dataclass(frozen=True)
class _Form:
    """Where templates differ.

    Attributes:
        restarts: Text begins anew behind the tokens of a medium.
        question_apart: It also begins anew behind the turn of the media.
        media_end: Closes the turn of the media.
        opening: Stands between a question and its answer; the model does not write it.
        start_of_turn: Stands in front of an answer; the model writes it.
        before_end: Stands between an answer and the end of its turn; the model writes it.
    """

    restarts: bool = True
    question_apart: bool = False
    media_end: str = "[/INST]"
    opening: str = ""
    start_of_turn: str = ""
    before_end: str = ""


_FORMS: dict[Template, _Form] = {
    "chat": _Form(),
    "app": _Form(question_apart=True, opening=" "),
    "videochat2": _Form(restarts=False, media_end=" [/INST]", start_of_turn=" ", before_end=" "),
}


@dataclass(frozen=True)
class Prompt:
    """One template with the words of one tokenizer.

    Attributes:
        template: Which one.
        timestamps: Whether it is said when the frames of a video were taken: if the question
            ``asked``, which is if the turn that shows the video has the word "timestamp" in it (as
            in the demo of TPO), ``always`` or ``never``.
        begin: ``<s>``; may be empty.
        end: ``</s>``.
        media_token: The word whose place a token of a medium takes.
    """

    template: Template
    timestamps: Timestamps
    begin: str
    end: str
    media_token: str

    @property
    def start_of_turn(self) -> str:
        """What the model writes in front of an answer."""
        return self._form.start_of_turn

    def render(self, messages: Sequence[Mapping[str, Any]], answer_next: bool) -> str:
        """The text of a conversation, with one placeholder for each medium.

        Args:
            messages: In transformers' form.
            answer_next: End with what opens an answer.
        """
        text = self.begin
        for message in messages:
            words = " ".join(part["text"] for part in message["content"] if part["type"] == "text")
            if message["role"] == "assistant":
                form = self._form
                text += form.opening + form.start_of_turn + words + form.before_end + self.end
                continue
            gap = "" if text == self.begin else " "
            if message["role"] == "system":
                text += gap + words
                continue
            kinds = [part["type"] for part in message["content"] if part["type"] != "text"]
            text += self._user_turn(kinds, words, gap)
        return text + (self._form.opening if answer_next else "")

    def expand(self, text: str, views: Sequence[tpokit.View], counts: Sequence[int]) -> str:
        """Put the tokens of the media, and their times, into a text from `render`.

        Args:
            text: With one placeholder for each medium.
            views: Media, in the order of their placeholders.
            counts: How many tokens each of them gives.

        Raises:
            DataError: There is not one placeholder for each medium.
        """
        found = text.count(self.media_token)
        if found != len(views):
            names = ", ".join(view.path.name for view in views) or "none"
            raise tpokit.DataError(
                f"the text has {found} placeholders {self.media_token}, but the sample has "
                f"{len(views)} media ({names})"
            )
        media = zip(views, counts, strict=True)
        shown: list[tpokit.View] = []

        def fill(place: re.Match[str]) -> str:
            if place.group() == _TIMES:
                return _message(shown[-1])
            view, count = next(media)
            shown.append(view)
            return self.media_token * count

        return re.sub(f"{re.escape(self.media_token)}|(?<=</Video>){_TIMES}", fill, text)

    @property
    def _form(self) -> _Form:
        return _FORMS[self.template]

    def _user_turn(self, kinds: Sequence[str], words: str, gap: str) -> str:
        question = f"[INST] {words} [/INST]"
        if not kinds:
            return gap + question
        tags = " ".join(self._tag(kind, words) for kind in kinds)
        media = f"{gap}[INST] {tags}{self._form.media_end}"
        apart = self.begin if self._form.question_apart else ""
        return media + apart + (f" {question}" if words else "")

    def _tag(self, kind: str, words: str) -> str:
        name = kind.capitalize()
        again = self.begin if self._form.restarts else ""
        told = self.timestamps == "always" or (
            self.timestamps == "asked" and _ASKS_FOR_TIMES in words
        )
        times = _TIMES if told and kind == "video" else ""
        return f"<{name}>{self.media_token}{again}</{name}>{times}"


def _message(view: tpokit.View) -> str:
    """How many frames there are and when they were taken, in seconds with one decimal."""
    times = ", ".join(f"{time_s:.1f}" for time_s in view.times_s)
    return f" The video contains {len(view.frames)} frames sampled at {times} seconds."
