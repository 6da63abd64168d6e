"""Task tokens: the words by which an LLM calls a head, and their ids.

A head owns three kinds of tokens (`TaskTokens`): a **trigger** that the model writes, **slots**
that follow it and whose hidden states the head reads, and optionally a **given** token that carries
something of the user into the prompt.

`TokenTable` gives each of them an id *behind* the backbone's embedding table, so that the
vocabulary is never resized: with ``rows`` rows in the table, the triggers get ``rows, rows + 1,
...`` (the order of the logits that the bridge appends), then come the slots, then the given tokens.
The tokenizer learns the same strings as added tokens; its own ids for them may lie inside the table
(published tables have spare rows), so ids are translated on the way in and out.

In a text of a data set a task is named by its **mark** ``<task>``, such as ``<region>``: in an
answer it stands for the trigger and its slots, in a question for the given token. So a data set
does not depend on the tokens of one head.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpokit.errors import PluginError, UsageError


@dataclass(frozen=True)
class TaskTokens:
    """The tokens of one task.

    Attributes:
        trigger: Written by the model to call the head, such as ``<box_begin>``.
        slots: Follow the trigger, inserted and never predicted; the head reads their hidden states.
            At least one.
        given: Stands in a question for something the user gives, such as a box to follow; ``None``
            if the task has none.
    """

    trigger: str
    slots: tuple[str, ...]
    given: str | None = None

    def __post_init__(self) -> None:
        names = [self.trigger, *self.slots] + ([self.given] if self.given is not None else [])
        if not self.slots:
            raise PluginError(f"task tokens of {self.trigger!r}: at least one slot is needed")
        if len(set(names)) != len(names):
            raise PluginError(f"task tokens {names} must all differ")
        for name in names:
            if re.fullmatch(r"<[A-Za-z0-9_]+>", name) is None:
                raise PluginError(f"task token {name!r} must look like <word>")


@dataclass(frozen=True)
class TokenTable:
    """Ids of all task tokens of a model.

    Attributes:
        rows: Number of rows of the backbone's input embedding; ids from ``rows`` on are task
            tokens.
        tasks: Tokens by task, sorted by task name.
        ids: Token string to id, in the order of the ids.
    """

    rows: int
    tasks: Mapping[str, TaskTokens]
    ids: Mapping[str, int]
    _to_table: Mapping[int, int] = field(default_factory=dict, repr=False)
    _texts: Mapping[int, str] = field(default_factory=dict, repr=False)

    @classmethod
    def build(cls, rows: int, tasks: Mapping[str, TaskTokens], tokenizer: Any) -> TokenTable:
        """Number the tokens and teach them to the tokenizer.

        Args:
            rows: Rows of the input embedding of the backbone.
            tasks: Tokens by task name.
            tokenizer: A transformers tokenizer; gets the strings as added special tokens.

        Raises:
            PluginError: Two tasks claim one token, or the tokenizer's own vocabulary already has
                one of them.
        """
        ordered = dict(sorted(tasks.items()))
        names = [tokens.trigger for tokens in ordered.values()]
        names += [slot for tokens in ordered.values() for slot in tokens.slots]
        names += [tokens.given for tokens in ordered.values() if tokens.given is not None]
        owners: dict[str, str] = {}
        for task, tokens in ordered.items():
            for name in [tokens.trigger, *tokens.slots, *([tokens.given] if tokens.given else [])]:
                if name in owners:
                    raise PluginError(
                        f"tasks {owners[name]!r} and {task!r} both claim the token {name!r}"
                    )
                owners[name] = task
        known = tokenizer.get_vocab()
        taken = [
            name
            for name in names
            if name in known and known[name] < rows and name not in tokenizer.get_added_vocab()
        ]
        if taken:
            raise PluginError(
                f"the backbone's tokenizer already has {', '.join(taken)} as ordinary words"
            )
        if names:
            tokenizer.add_tokens(names, special_tokens=True)
        ids = {name: rows + index for index, name in enumerate(names)}
        to_table = {tokenizer.convert_tokens_to_ids(name): ids[name] for name in names}
        return cls(rows, ordered, ids, to_table, {index: name for name, index in ids.items()})

    @property
    def triggers(self) -> tuple[str, ...]:
        """Triggers in the order of their ids (and of the appended logits)."""
        return tuple(tokens.trigger for tokens in self.tasks.values())

    def trigger_task(self, token_id: int) -> str | None:
        """The task that a token id calls, or ``None`` if it is no trigger."""
        index = token_id - self.rows
        return list(self.tasks)[index] if 0 <= index < len(self.tasks) else None

    def slot_ids(self, task: str) -> tuple[int, ...]:
        """Ids of the slots of a task, in reading order."""
        return tuple(self.ids[slot] for slot in self.tasks[task].slots)

    def given_id(self, task: str) -> int | None:
        """Id of the given token of a task, or ``None``."""
        given = self.tasks[task].given
        return None if given is None else self.ids[given]

    def from_tokenizer(self, ids: Iterable[int]) -> list[int]:
        """Tokenizer ids to ids of this table."""
        return [self._to_table.get(index, index) for index in ids]

    def decode(self, ids: Sequence[int], tokenizer: Any) -> str:
        """Text of generated ids: triggers become marks such as ``<region>``, slots and special
        tokens vanish.
        """
        pieces: list[str] = []
        words: list[int] = []
        for index in [*ids, None]:
            if index is not None and index < self.rows:
                words.append(index)
                continue
            if words:
                pieces.append(tokenizer.decode(words, skip_special_tokens=True).strip())
                words = []
            task = None if index is None else self.trigger_task(index)
            if task is not None:
                pieces.append(mark(task))
        return " ".join(piece for piece in pieces if piece)

    def spell_out(self, text: str, role: str, where: str) -> str:
        """Replace the marks in a text by task tokens.

        Args:
            text: A turn, such as ``it is here <region>``.
            role: ``assistant`` (a mark becomes trigger and slots) or another (a mark becomes the
                given token).
            where: Named in errors, such as the sample.

        Raises:
            UsageError: The text holds a task token itself, or mentions a given token that the task
                does not have.
        """
        for name in self.ids:
            if name in text:
                task = next(
                    t
                    for t, tokens in self.tasks.items()
                    if name in (tokens.trigger, *tokens.slots, tokens.given)
                )
                if name != mark(task):
                    raise UsageError(
                        f"{where}: the text holds the task token {name!r}; "
                        f"write {mark(task)} instead"
                    )
        for task, tokens in self.tasks.items():
            if mark(task) not in text:
                continue
            if role == "assistant":
                text = text.replace(mark(task), tokens.trigger + "".join(tokens.slots))
            elif tokens.given is not None:
                text = text.replace(mark(task), tokens.given)
            else:
                raise UsageError(
                    f"{where}: {mark(task)} stands in a question, "
                    f"but task {task!r} takes nothing given"
                )
        return text


def mark(task: str) -> str:
    """How a task is mentioned in the texts of a data set: ``<region>`` for ``region``."""
    return f"<{task}>"


def marked_tasks(text: str, tasks: Collection[str]) -> list[str]:
    """Tasks whose marks stand in a text, in reading order: ``["region"]`` for ``it is here
    <region>``.
    """
    return [name for name in re.findall(r"<([a-z][a-z0-9_]*)>", text) if name in tasks]
