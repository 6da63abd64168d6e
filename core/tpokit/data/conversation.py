"""From a sample to token ids, labels and slot positions: one encoder for training and inference.

The text is rendered once by the backbone's own chat template, with a stand-in for each answer. So
every character of the prompt comes from the template, and the labels are exactly the answers with
their end of turn: joining the unlabelled and the labelled pieces gives the rendered text again.
How these become tokens: `tpokit.data.pieces`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tpokit.data.blank_media import blank_media
from tpokit.data.media import read_media
from tpokit.data.pieces import MEDIA_MARK, Piece, Tokens, mark_words, tokenize, unmarked
from tpokit.data.shortening import Shortener
from tpokit.errors import DataError, UsageError
from tpokit.interfaces import Processor, TaskHead
from tpokit.recipe_schema import TooLong
from tpokit.tokens import TokenTable, mark, marked_tasks
from tpokit.types import IGNORED, Example, MediaNeed, Sample, Seen, Turn, View

_OWN_MARKS = re.compile("[\ue000-\ue01f]")
"""Private characters that mark places in a prompt: here, in `pieces`, in templates of plugins."""
BACKBONE = "backbone"
"""Key of the backbone's own view among the views of a medium."""


@dataclass(frozen=True)
class Encoder:
    """Encodes samples for one model.

    Attributes:
        processor: Of the backbone.
        heads: By task; they check annotations and say which views they need.
        tokens: Ids of the task tokens.
        max_length: Longest sequence, in tokens. A longer sample is never cut, which could drop a
            slot or tear a medium.
        decode: False: frames of media are blank (`tpokit.data.blank_media`), to check annotations.
        device_tokens, device_pixels: What a micro-batch has room for; ``None``: anything.
        too_long: ``shorten`` a sample that is too long as far as that goes
            (`tpokit.data.shortening`), or ``drop`` it, with an error.
    """

    processor: Processor
    heads: Mapping[str, TaskHead]
    tokens: TokenTable
    max_length: int
    decode: bool = True
    device_tokens: int | None = None
    device_pixels: int | None = None
    too_long: TooLong = "drop"

    def encode(
        self,
        sample: Sample,
        source: str,
        answer_next: bool = False,
        random: np.random.Generator | None = None,
        answer_prefix: str = "",
    ) -> Example:
        """Encode a sample.

        Args:
            sample: Must end with an answer, or with a question if ``answer_next``.
            source: Name of its data entry, for messages.
            answer_next: Open an answer at the end and learn nothing: the form that generation goes
                on from. A final answer of the sample is left out.
            random: In training, for frames at random times; ``None``: the middles.
            answer_prefix: With ``answer_next``, words that the answer begins with.

        Raises:
            DataError: Marks and targets do not fit together, an annotation or a medium is wrong, or
                the sample is too long or has too many pixels.
            UsageError: There is a mark of a task in the ``answer_prefix``.
        """
        where = f"{source}/{sample.id}"
        turns = (
            sample.turns[:-1]
            if answer_next and sample.turns[-1].role == "assistant"
            else sample.turns
        )
        self._check(sample, turns, where, answer_next)
        views = self._views(sample, where, answer_next, random)
        self._check_pixels(views[BACKBONE], where)
        pieces = self._pieces(sample, turns, views[BACKBONE], where, answer_next)
        if answer_next and answer_prefix:
            pieces.append(self._prefix(answer_prefix))
        found = self._tokenize(pieces, sum(turn.role == "user" for turn in turns))
        too_long = len(found.ids) > min(self._limits)
        if too_long:
            length = len(found.ids)
            if answer_next or self.too_long == "drop":
                raise self._too_long(length, where)
            sample, views[BACKBONE], found = self._shortened(sample, views[BACKBONE], length, where)
            turns = sample.turns
        ids = self.tokens.from_tokenizer(found.ids)
        labels = [
            token if learnt else IGNORED for token, learnt in zip(ids, found.learnt, strict=True)
        ]
        slots, given = self._find(ids, labels, where)
        example = Example(
            sample=sample,
            source=source,
            ids=ids,
            labels=labels,
            slots=slots,
            given_positions=given,
            targets={},
            given={},
            views=views[BACKBONE],
            head_views={task: found for task, found in views.items() if task in sample.targets},
            questions=found.questions,
            shortened=too_long,
        )
        self._annotate(example, turns)
        return example

    def seen(self, example: Example, task: str, question: str) -> Seen:
        """What the head of a task may look at in a sample: its views and the sizes of the media.

        Args:
            example: The encoded sample.
            task: Whose head.
            question: The user's turn, as it stands in the sample.

        Raises:
            DataError: The head looks at media, and there are none.
        """
        sample = example.sample
        where = f"{example.source}/{sample.id}"
        if self.heads[task].context_need().looks and not sample.media:
            raise DataError(
                f"{where}: task {task!r} looks at an image or a video, but the sample has none"
            )
        return Seen(
            where=where,
            question=MEDIA_MARK.sub("", question).strip(),
            media=sample.media,
            info=tuple(example.media),
            views=tuple(example.head_views.get(task, ())),
            sample_id=sample.id,
        )

    def _check(self, sample: Sample, turns: Sequence[Turn], where: str, answer_next: bool) -> None:
        """Roles in order, and as many marks as annotations."""
        roles = [turn.role for turn in turns if turn.role != "system"]
        wanted = [("user", "assistant")[index % 2] for index in range(len(roles))]
        if not roles or roles != wanted or (roles[-1] == "user") != answer_next:
            raise DataError(
                f"{where}: turns are {', '.join(roles) or 'empty'}; they must alternate user, "
                f"assistant and end with {'a question' if answer_next else 'an answer'}"
            )
        for kind, found, role in (
            ("target", sample.targets, "assistant"),
            ("given value", sample.given, "user"),
        ):
            for task in found:
                if task not in self.heads:
                    raise DataError(
                        f"{where}: has a {kind} of task {task!r}, but the model's heads do "
                        f"{', '.join(sorted(self.heads)) or 'nothing'}"
                    )
            said = [turn.text for turn in sample.turns if turn.role == role]
            for task in self.heads:
                marks = sum(len(marked_tasks(text, (task,))) for text in said)
                count = len(found.get(task, ()))
                if marks != count:
                    place = "answers" if role == "assistant" else "questions"
                    raise DataError(
                        f"{where}: {mark(task)} stands {marks} times in the {place}, but there are "
                        f"{count} {kind}s of task {task!r}; one is needed for each"
                    )

    def _views(
        self, sample: Sample, where: str, answer_next: bool, random: np.random.Generator | None
    ) -> dict[str, list[View]]:
        """The views of every consumer, each medium decoded once."""
        needs: dict[str, MediaNeed] = {BACKBONE: self.processor.media_need()}
        for task in self.heads:
            need = self.heads[task].context_need()
            streams = answer_next and need.stream
            if need.media is not None and task in sample.targets and not streams:
                needs[task] = need.media
        views: dict[str, list[View]] = {consumer: [] for consumer in needs}
        for medium in sample.media:
            wanted = {
                consumer: need
                for consumer, need in needs.items()
                if consumer == BACKBONE or self.heads[consumer].wants_frames(medium)
            }
            try:
                read = read_media if self.decode else blank_media
                decoded = read(medium, wanted, random=random)
            except DataError as cause:
                raise DataError(f"{where}: {cause}") from cause
            for consumer, view in decoded.items():
                views[consumer].append(view)
        return views

    def _check_pixels(self, views: Sequence[View], where: str) -> None:
        if self.device_pixels is None:
            return
        pixels = self.processor.pixels(views)
        if pixels > self.device_pixels:
            raise DataError(
                f"{where}: {pixels} pixels of its media go through the vision tower, but a device "
                f"takes at most {self.device_pixels} at once (run.device_pixels); give fewer or "
                "smaller media or fewer frames, or allow more"
            )

    @property
    def _limits(self) -> dict[int, str]:
        """How many tokens there may be, and the keys of a recipe that say so."""
        limits = {self.max_length: "run.max_length"}
        if self.device_tokens is not None:
            limits.setdefault(self.device_tokens, "run.device_tokens")
        return limits

    def _shortened(
        self, sample: Sample, views: list[View], length: int, where: str
    ) -> tuple[Sample, list[View], Tokens]:
        """A sample that is too long, made to fit.

        Raises:
            DataError: It cannot be.
        """

        def write(short: Sample, fewer: list[View]) -> list[Piece]:
            return self._pieces(short, short.turns, fewer, where, answer_next=False)

        shorten = Shortener(min(self._limits), self.heads, write, self._tokenize)
        found = shorten(sample, views)
        if found is None:
            tried = ", without older turns and with one frame of each video, too"
            raise self._too_long(length, where, tried)
        return found

    def _too_long(self, length: int, where: str, tried: str = "") -> DataError:
        limit = min(self._limits)
        return DataError(
            f"{where}: {length} tokens, but at most {limit} fit ({self._limits[limit]}){tried}; "
            "a cut would drop a slot or tear a medium: shorten the conversation or give fewer or "
            "smaller media"
        )

    def _tokenize(self, pieces: list[Piece], turns: int) -> Tokens:
        return tokenize(pieces, self.processor.tokenizer, self.processor.whole_text, turns)

    def _pieces(
        self,
        sample: Sample,
        turns: Sequence[Turn],
        views: Sequence[View],
        where: str,
        answer_next: bool,
    ) -> list[Piece]:
        """The rendered text, cut into pieces that are learnt and pieces that are not."""
        answers: list[str] = []
        asked = 0
        messages: list[dict[str, Any]] = []
        front = [] if _has_media_marks(turns) else [medium.kind for medium in sample.media]
        for turn in turns:
            text = self._spelled_out(turn, where)
            if turn.role == "assistant":
                answers.append(text)
                text = f"\ue000{len(answers) - 1}\ue001"
            parts = [{"type": kind} for kind in front] if turn.role == "user" else []
            front = front if turn.role != "user" else []
            content = _content(text)
            for part in content:
                if turn.role == "user" and "text" in part and self._words_wanted:
                    part["text"] = mark_words(part["text"], asked)
            asked += turn.role == "user"
            messages.append({"role": turn.role, "content": parts + content})
        marks = sum(part["type"] != "text" for message in messages for part in message["content"])
        if marks != len(sample.media):
            raise DataError(
                f"{where}: {marks} media marks in the turns, but {len(sample.media)} media"
            )
        try:
            text = self.processor.expand(self.processor.render(messages, answer_next), views)
        except DataError as cause:
            raise DataError(f"{where}: {cause}") from cause
        return self._cut(text, answers)

    def _spelled_out(self, turn: Turn, where: str) -> str:
        """A turn with task tokens in the place of marks."""
        answer = turn.role == "assistant"
        for words in [turn.text] if answer else MEDIA_MARK.split(turn.text)[::2]:
            self._refuse_reserved(words, where)
        try:
            return self.tokens.spell_out(turn.text, turn.role, where)
        except UsageError as cause:
            raise DataError(str(cause)) from cause

    def _cut(self, rendered: str, answers: Sequence[str]) -> list[Piece]:
        """Put the answers in the place of their stand-ins, each with what else the model writes of
        its turn.
        """
        written = re.compile(
            f"({re.escape(self.processor.start_of_turn)})?\ue000(\\d+)\ue001"
            f"( *{re.escape(self.processor.end_of_turn)})?"
        )
        pieces: list[Piece] = []
        start = 0
        for found in written.finditer(rendered):
            before, number, behind = found.groups(default="")
            pieces.append(unmarked(rendered[start : found.start()]))
            pieces.append(Piece(before + answers[int(number)] + behind, learnt=True))
            start = found.end()
        pieces.append(unmarked(rendered[start:]))
        return [piece for piece in pieces if piece.text]

    def _prefix(self, text: str) -> Piece:
        """The first words of an answer that is still to be written."""
        self._refuse_reserved(text, "answer prefix")
        if self.tokens.spell_out(text, "assistant", "answer prefix") != text:
            raise UsageError(
                f"answer prefix {text!r}: a head is called by what the model writes, so no mark of "
                "a task can stand in it"
            )
        return Piece(self.processor.start_of_turn + text, learnt=True)

    def _refuse_reserved(self, text: str, where: str) -> None:
        own = _OWN_MARKS.search(text)
        if own is not None:
            raise DataError(
                f"{where}: the text holds the private character U+{ord(own.group()):04X}, by which "
                "places in prompts are marked; take it out"
            )
        for word in self.processor.reserved:
            if word in text:
                raise DataError(
                    f"{where}: the text holds {word!r}, the word in whose place the backbone puts "
                    "media; take it out, or mark a medium by <image> or <video>"
                )

    @property
    def _words_wanted(self) -> bool:
        return any(head.context_need().question for head in self.heads.values())

    def _find(
        self, ids: list[int], labels: list[int], where: str
    ) -> tuple[dict[str, list[list[int]]], dict[str, list[int]]]:
        """Positions of slots and given tokens; slots lose their labels, as they are never
        predicted.
        """
        special = {index: at for index, at in enumerate(ids) if at >= self.tokens.rows}
        slots: dict[str, list[list[int]]] = {}
        given: dict[str, list[int]] = {}
        for task in self.heads:
            slot_ids = self.tokens.slot_ids(task)
            first = [position for position, found in special.items() if found == slot_ids[0]]
            slots[task] = [[start + k for k in range(len(slot_ids))] for start in first]
            for call in slots[task]:
                if tuple(ids[position] for position in call) != slot_ids:
                    raise DataError(f"{where}: the slots of task {task!r} are torn apart")
                for position in call:
                    labels[position] = IGNORED
            given_id = self.tokens.given_id(task)
            given[task] = [position for position, found in special.items() if found == given_id]
        return slots, given

    def _annotate(self, example: Example, turns: Sequence[Turn]) -> None:
        """Annotations checked by their heads, and what those prepare; of calls that are in the
        encoded turns only.
        """
        sample = example.sample
        asked = [turn.text for turn in turns if turn.role == "user"]
        said = [turn.text for turn in turns if turn.role == "assistant"]
        for task, head in self.heads.items():
            places = [turn for turn, text in enumerate(said) for _ in marked_tasks(text, (task,))]
            calls = [self.seen(example, task, asked[turn]) for turn in places]
            calls = [replace(seen, prepared=head.prepare(seen)) for seen in calls]
            annotations = sample.targets.get(task, ())[: len(places)]
            example.prepared[task] = [seen.prepared for seen in calls]
            example.question_of[task] = places
            example.targets[task] = [
                head.read_target(annotation, seen)
                for annotation, seen in zip(annotations, calls, strict=True)
            ]
            givers = [
                self.seen(example, task, text)
                for text in asked
                for _ in marked_tasks(text, (task,))
            ]
            example.given[task] = [
                head.read_given(value, seen)
                for value, seen in zip(sample.given.get(task, ()), givers, strict=True)
            ]


def _has_media_marks(turns: Sequence[Turn]) -> bool:
    return any(MEDIA_MARK.search(turn.text) for turn in turns)


def _content(text: str) -> list[dict[str, str]]:
    """A turn in transformers' form: text parts and media parts in their order."""
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(MEDIA_MARK.split(text)):
        if index % 2:
            parts.append({"type": piece})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts
