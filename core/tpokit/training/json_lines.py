"""Files of a run that grow row by row: the log, scores, bad samples, skipped steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpokit.atomic import write_text
from tpokit.errors import CheckpointError


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows behind those that are there.

    Raises:
        CheckpointError: They cannot be written; a resumed run takes away what stands there of them.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
    except OSError as cause:
        raise CheckpointError(
            f"cannot write {path}: {cause}; checkpoints are untouched, go on with --resume"
        ) from cause


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows, oldest first; a last one that was cut off is left out."""
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the run was stopped while it wrote this line
    return rows


def replace_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all rows anew, whole or not at all; without any there is no file."""
    if rows:
        write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        path.unlink(missing_ok=True)


def forget_rows(path: Path, stage: str, after_step: int) -> None:
    """Take away the rows of a stage behind a step, which are about to be written again."""
    rows = read_rows(path)
    replace_rows(path, [row for row in rows if row["stage"] != stage or row["step"] <= after_step])
