"""What is shown of data and of a dry run; printing is `tpokit.reporting.console`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tpokit.reporting.console import Marked, in_words, marked_text, rows_table, say
from tpokit.reporting.log_columns import is_term

if TYPE_CHECKING:
    from tpokit.data.checking import EntryReport
    from tpokit.data.showing import PromptPiece, ShownSample, ShownTarget
    from tpokit.training.dry_run import DryRun, StageEstimate, TriedStage

_MARKS = {
    "text": ("", ""),
    "media": ("dim", ""),
    "trigger": ("bold magenta", ""),
    "slot": ("cyan", "{}"),
    "given": ("yellow", "()"),
}
"""Kind of piece to its style on a terminal, and to its brackets elsewhere."""
_LEARNT = ("bold green", "[]")
_LEGEND = (
    Marked("learnt", *_LEARNT),
    Marked(" "),
    Marked("slot", *_MARKS["slot"]),
    Marked(" "),
    Marked("given", *_MARKS["given"]),
)
_LONGEST = 200
"""Characters of a value that are shown."""
_TIMES = 6
"""Times of frames that are shown."""


# ---- tpokit data check ----


def data_report(reports: Sequence[EntryReport]) -> None:
    """Print what was found in data entries: a line for each, then their problems by kind."""
    numbers = ("samples", "looked at", "problems", "conversation", "shortened")
    lengths = ("tokens p50", "p95", "max")
    rows_table(
        "",
        ("entry", *numbers, *lengths, "calls"),
        (
            (
                report.entry,
                *_counts(report.samples, report.looked_at, len(report.problems)),
                *_counts(report.conversations, report.shortened),
                *("-" if at is None else f"{at:,}" for at in report.tokens.values()),
                ", ".join(f"{task} {count:,}" for task, count in report.calls.items()) or "-",
            )
            for report in reports
        ),
        numbers=(*numbers, *lengths),
    )
    for report in reports:
        for kind in report.kinds():
            first, *others = kind.first
            say(f"data.{report.entry}: {kind.count:,} x {first.message}")
            if others:
                named = ", ".join(str(other.sample or other.index) for other in others)
                more = ", ..." if kind.count > len(kind.first) else ""
                say(f"    also {named}{more}")


# ---- tpokit data show ----


def sample_view(shown: ShownSample) -> None:
    """Print a sample as the model gets it: the prompt, its pieces, media and targets."""
    draw = shown.draw
    place = "" if shown.position is None else f"position {shown.position}: "
    say(f"{place}data.{draw.source}, sample {draw.index}, epoch {draw.epoch}; id {shown.sample}")
    if shown.shortened:
        say("  shortened, to fit")
    for bad in shown.replaced:
        say(f"  takes the place of sample {bad.index}: {bad.message}")
    say("")
    marked_text([_marked(piece) for piece in shown.pieces])
    say("")
    marked_text([Marked("marks: ", "dim"), *_LEGEND])
    say("")
    rows_table(
        f"{shown.tokens:,} tokens",
        ("from", "tokens", "kind", "learnt", "text"),
        (
            (
                f"{piece.start:,}",
                f"{piece.tokens:,}",
                piece.kind,
                "yes" if piece.learnt else "",
                _cut(repr(piece.text)[1:-1], 80),
            )
            for piece in shown.pieces
        ),
        numbers=("from", "tokens"),
    )
    say("")
    if shown.media:
        rows_table(
            "media",
            ("kind", "pixels", "seen by", "frames", "at seconds", "file"),
            (
                (
                    medium.info.kind,
                    f"{medium.info.width} x {medium.info.height}",
                    consumer,
                    str(len(times_s)),
                    _times(times_s) if medium.info.kind == "video" else "-",
                    str(medium.media.path),
                )
                for medium in shown.media
                for consumer, times_s in medium.times_s.items()
            ),
            numbers=("frames",),
        )
        say("")
    for target in shown.targets:
        _show_target(target)


def _show_target(target: ShownTarget) -> None:
    what = "given" if target.given else "target"
    say(f"{target.task} {what}: {_cut(target.value)}")
    if target.result is not None:
        say(f"    is {_cut(in_words(target.result))}")


def _marked(piece: PromptPiece) -> Marked:
    style, brackets = _MARKS[piece.kind]
    if piece.learnt:
        style, brackets = style or _LEARNT[0], _LEARNT[1]
    text = f"{piece.text} x {piece.tokens}" if piece.kind == "media" else piece.text
    return Marked(text, style, brackets)


def _times(times_s: Sequence[float]) -> str:
    shown = [f"{at:.2f}" for at in times_s]
    if len(shown) > _TIMES:
        shown = [*shown[: _TIMES - 1], "...", shown[-1]]
    return " ".join(shown)


# ---- tpokit train --dry-run ----


def dry_run_view(found: DryRun) -> None:
    """Print what a recipe would take: samples, then parts and memory of each stage."""
    numbers = ("samples", "looked at", "tokens from", "median", "to", "pixels to")
    rows_table(
        "what training reads first",
        ("entry", *numbers),
        (
            (
                entry.entry,
                *_counts(entry.samples, entry.looked_at, entry.shortest, entry.median),
                *_counts(entry.longest, entry.pixels),
            )
            for entry in found.lengths
        ),
        numbers=numbers,
    )
    say("")
    sizes = ("tokens", "pixels", "activations", "recomputed")
    rows_table(
        "the largest of them",
        ("by", "sample", *sizes),
        (
            (
                worst.by,
                f"{worst.looked_at.entry}/{worst.looked_at.sample}",
                *_counts(worst.looked_at.tokens, worst.looked_at.pixels),
                "-" if worst.memory is None else in_bytes(worst.memory.kept),
                "-" if worst.memory is None else in_bytes(worst.memory.recomputed),
            )
            for worst in found.worst
        ),
        numbers=sizes,
    )
    for stage in found.stages:
        _show_estimate(stage)


def _show_estimate(stage: StageEstimate) -> None:
    say("")
    numbers = ("parameters", "trained", "learning rate")
    rows_table(
        f"stage {stage.stage} at full size",
        ("part", "mode", *numbers),
        (
            (
                row.part,
                row.mode,
                *_counts(row.parameters, row.trained),
                "-" if row.learning_rate is None else f"{row.learning_rate:.1e}",
            )
            for row in stage.parts
        ),
        numbers=numbers,
    )
    say("")
    kept = stage.activations
    columns = ("weights", "gradients", "optimizer", "with activations", "recomputed")
    rows_table(
        "memory of a device",
        ("engine", "devices", *columns),
        (
            (
                state.engine,
                "any" if state.engine == "zero0" else str(state.devices),
                *(in_bytes(size) for size in (state.weights, state.gradients, state.optimizer)),
                "-" if kept is None else in_bytes(state.bytes + kept.kept),
                "-" if kept is None else in_bytes(state.bytes + kept.recomputed),
            )
            for state in stage.states
            if (state.devices == 1) == (state.engine == "zero0")
        ),
        numbers=("devices", *columns),
    )
    load = stage.load
    if kept is None:
        say("this backbone does not say how large its layers are: no estimate of activations")
    else:
        say(
            f"activations of {load.samples} samples as large as the largest, {load.tokens:,} "
            f"tokens and {load.pixels:,} pixels: {in_bytes(kept.kept)}, with "
            f"run.gradient_checkpointing {in_bytes(kept.recomputed)}"
        )


def tried_stage_view(tried: TriedStage) -> None:
    """Print the steps that a stage has done at small size."""
    for row in tried.rows:
        terms = "  ".join(f"{name} {value:.4g}" for name, value in _terms(row).items())
        say(f"stage {tried.stage} at small size, step {row['step']}: {terms}")


def in_bytes(size: float) -> str:
    """A number of bytes for people: ``1.25 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def _terms(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if is_term(name)}


def _counts(*numbers: int) -> tuple[str, ...]:
    return tuple(f"{number:,}" for number in numbers)


def _cut(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
