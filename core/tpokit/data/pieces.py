"""A rendered conversation in pieces, learnt or not, and how it becomes tokens.

With most tokenizers a text is cut at the answers, and every piece is tokenised on its own. With
some, the tokens of a turn depend on what stands before it (`Processor.whole_text`); then all pieces
are tokenised as one text, with one exception: a token that would reach from the words that open an
answer into the answer is parted there. It must be: in generation these words are all there is, so
the model never gets to write the second half of such a token. So the ids of a training sample are
always those of its prompt and then those that the model has to write.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tpokit.errors import UsageError

_WORDS = re.compile("\ue002(\\d+)\ue003(.*?)\ue004", re.DOTALL)
MEDIA_MARK = re.compile(r"<(image|video)>")
"""What stands in a turn where a medium is shown."""
_PARTINGS = ("\n", "\0")
"""Characters that most tokenizers join with nothing: a line break, and one that no text has."""


@dataclass(frozen=True)
class Piece:
    """Text that is learnt or not.

    Attributes:
        text: As rendered.
        learnt: Written by the model.
        questions: First character, character behind the last one, and number of the user turn of
            the words of each question in it.
    """

    text: str
    learnt: bool = False
    questions: tuple[tuple[int, int, int], ...] = ()


@dataclass
class Tokens:
    """A tokenised conversation.

    Attributes:
        ids: Of the tokenizer.
        learnt: Whether the model has to write each.
        questions: Positions of the words of each user turn, if they were marked.
    """

    ids: list[int] = field(default_factory=list)
    learnt: list[bool] = field(default_factory=list)
    questions: list[list[int]] = field(default_factory=list)


def mark_words(text: str, turn: int) -> str:
    """Mark the words of a question, to find them in a filled-in template."""
    return f"\ue002{turn}\ue003{text}\ue004"


def unmarked(text: str) -> Piece:
    """A piece that is not learnt, with the marks taken out."""
    whole, places, start = "", [], 0
    for found in _WORDS.finditer(text):
        words = found.group(2)
        whole += text[start : found.start()]
        places.append((len(whole), len(whole) + len(words), int(found.group(1))))
        whole += words
        start = found.end()
    return Piece(whole + text[start:], questions=tuple(places))


def tokenize(pieces: Sequence[Piece], tokenizer: Any, whole: bool, turns: int) -> Tokens:
    """Pieces to tokens.

    Args:
        pieces: In order.
        tokenizer: Of transformers.
        whole: Tokenise all pieces as one text.
        turns: How many user turns there are.

    Raises:
        UsageError: The tokenizer does not say where its tokens stand, and that is needed.
    """
    tokens = Tokens(questions=[[] for _ in range(turns)])
    if whole:
        _tokenize_whole(pieces, tokenizer, tokens)
        return tokens
    for piece in pieces:
        if piece.questions:
            ids, places = _with_places(tokenizer, piece.text)
            _note_questions(piece, places, len(tokens.ids), tokens.questions)
        else:
            ids = tokenizer(piece.text, add_special_tokens=False)["input_ids"]
        tokens.ids += ids
        tokens.learnt += [piece.learnt] * len(ids)
    return tokens


def _tokenize_whole(pieces: Sequence[Piece], tokenizer: Any, tokens: Tokens) -> None:
    text = "".join(piece.text for piece in pieces)
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece.text))
    answers = [start for start, piece in zip(starts, pieces, strict=False) if piece.learnt]
    tokens.ids, places = _with_places(tokenizer, text)
    torn = _torn(places, answers)
    if torn:
        tokens.ids, places = _parted(tokenizer, text, torn)
    # a token belongs to the piece in which it begins
    tokens.learnt = [pieces[bisect_right(starts, begin) - 1].learnt for begin, _ in places]
    for start, piece in zip(starts, pieces, strict=False):
        moved = tuple((first + start, last + start, turn) for first, last, turn in piece.questions)
        _note_questions(Piece(text, questions=moved), places, 0, tokens.questions)


def _torn(places: Sequence[tuple[int, int]], borders: Sequence[int]) -> list[int]:
    """Borders that a token reaches over."""
    found = set()
    for begin, end in places:
        after = bisect_right(borders, begin)
        if after < len(borders) and borders[after] < end:
            found.add(borders[after])
    return sorted(found)


def _parted(
    tokenizer: Any, text: str, borders: Sequence[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and places of a text in which no token reaches over some borders.

    A character that is joined with nothing stands at each border while the text is tokenised. The
    two sides cannot simply be tokenised one by one: the second would get a blank in front.

    Raises:
        UsageError: The tokenizer joins each of these characters with others.
    """
    cuts = [0, *borders, len(text)]
    for parting in _PARTINGS:
        parted = parting.join(text[a:b] for a, b in pairwise(cuts))
        ids, places = _with_places(tokenizer, parted)
        marks = [border + index for index, border in enumerate(borders)]
        edges = sorted([*marks, *(at + 1 for at in marks)])
        if _torn(places, edges):
            continue
        kept = [
            (found, (begin - before, end - before))
            for found, (begin, end) in zip(ids, places, strict=True)
            if begin not in marks
            for before in [bisect_right(marks, begin)]
        ]
        return [found for found, _ in kept], [place for _, place in kept]
    raise UsageError(
        f"{type(tokenizer).__name__} joins the first characters of an answer with what stands "
        "before it, and cannot be kept from it; choose another template"
    )


def _with_places(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids, and the first character of each and the one behind its last."""
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"{type(tokenizer).__name__} does not tell where its tokens stand in the text (it is "
            "no fast tokenizer), so the words of questions and answers cannot be found; choose a "
            "fast one, or, if it is for a head, other text features"
        )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return found["input_ids"], found["offset_mapping"]


def _note_questions(
    piece: Piece, places: Sequence[tuple[int, int]], before: int, questions: list[list[int]]
) -> None:
    """Note the positions of tokens that hold words of a question, ``before`` tokens further on."""
    for first, last, turn in piece.questions:
        questions[turn] += [
            before + index
            for index, (begin, end) in enumerate(places)
            if begin < last and first < end
        ]
