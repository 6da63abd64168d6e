import io

import pytest
from rich.console import Console

from tpokit.answers import Answer, Box, Call
from tpokit.parts import PartRow
from tpokit.reporting import console

ROW = {
    "loss": 2.5,
    "language": 1.25,
    "region.l1": 0.125,
    "learning_rate.llm": 1e-3,
    "learning_rate.bridge": 2e-4,
    "grad_norm": 0.5,
}


def test_parts_are_shown_with_what_is_trained(capsys):
    rows = [
        PartRow("vision", "frozen", 1234567, 0, None),
        PartRow("llm", "lora", 2000, 100, 1e-3),
    ]
    console.part_table(rows, "assign")
    title, head, vision, llm = capsys.readouterr().out.splitlines()
    assert title.strip() == "stage assign"
    assert head.split() == ["part", "mode", "parameters", "trained", "learning", "rate"]
    assert vision.split() == ["vision", "frozen", "1,234,567", "0", "-"]
    assert llm.split() == ["llm", "lora", "2,000", "100", "1.0e-03"]


def test_scores_stand_side_by_side_and_gaps_are_shown(capsys):
    console.score_table(
        {"before": {"a": 0.25}, "after": {"a": 0.5, "[b]": 1.0}, "best constant": {}}
    )
    head, a, b = capsys.readouterr().out.splitlines()
    assert head.split() == ["measure", "before", "after", "best", "constant"]
    assert a.split() == ["a", "0.250", "0.500", "-"]
    assert b.split() == ["[b]", "-", "1.000", "-"]


def test_an_answer_is_its_text_and_its_results(capsys):
    answer = Answer("where?", "it is [here] <region>", (Call("region", Box(1, 2, 3, 4)),))
    console.show_answer(answer)
    text, head, call = capsys.readouterr().out.splitlines()
    assert text == "it is [here] <region>"
    assert head.split() == ["task", "result"]
    assert call.strip().split(maxsplit=1) == ["region", "box [1, 2, 3, 4]"]


def test_progress_without_a_terminal_is_one_line_for_each_update(capsys):
    with console.TrainingProgress("assign", 100, 64) as progress:
        progress.update(10, ROW)
        progress.update(20, ROW)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "assign 10/100  loss 2.5  language 1.25  region.l1 0.125  "
        "rate llm 1.0e-03 bridge 2.0e-04  gradient 0.5  "
    )
    assert "samples/s  left 0:00:0" in first
    assert second.startswith("assign 20/100  ")


def test_progress_of_other_ranks_is_silent(capsys):
    with console.TrainingProgress("assign", 100, 64, show=False) as progress:
        progress.update(10, ROW)
    assert capsys.readouterr().out == ""


def test_progress_on_a_terminal_shows_the_line_and_gives_the_terminal_back(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(console, "_console", lambda: screen)
    with pytest.raises(KeyboardInterrupt), console.TrainingProgress("assign", 100, 64) as progress:
        progress.update(10, ROW)
        raise KeyboardInterrupt
    shown = screen.file.getvalue()
    assert "assign 10/100  loss 2.5" in shown
    assert shown.rstrip().endswith("\x1b[?25h")  # the cursor is visible again
