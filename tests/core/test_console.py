import io

import pytest
from rich.console import Console
from rich.text import Text

from tpokit.answers import Answer, Box, Call
from tpokit.parts import PartRow
from tpokit.reporting import console
from tpokit.reporting import progress as progress_module
from tpokit.reporting.progress import TrainingProgress

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
    with TrainingProgress("assign", 100, 64) as progress:
        progress.update(10, ROW)
        progress.update(20, ROW)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "assign 10/100  loss 2.5  language 1.25  region.l1 0.125  "
        "rate llm 1.0e-03 bridge 2.0e-04  gradient 0.5  "
    )
    assert "samples/s  left 0:00:0" in first
    assert second.startswith("assign 20/100  ")


def test_progress_shows_all_that_a_line_of_the_log_says(capsys):
    row = {
        "loss": 2.5,
        "grad_norm": 0.5,
        "gradient_norm.llm": 0.25,
        "task_gradient.region": 0.125,
        "task_gradient.language": 0.5,
        "task_cosine.region.language": -0.123,
        "calls.region": 12,
        "tokens.words": 1204,
        "tokens.triggers": 16,
        "padding": 0.12,
        "bad_samples": 3,
        "machine.samples_per_s": 71.23,
        "machine.tokens_per_s": 48123.4,
        "machine.waiting_for_data": 0.031,
        "machine.memory_gib": 7.31,
        "machine.worker_memory_gib": 2.1,
        "machine.gpu_memory_gib": 61.2,
        "machine.mfu": 0.413,
    }
    with TrainingProgress("joint", 100, 64) as progress:
        progress.update(10, row)
    shown = capsys.readouterr().out
    assert shown.startswith(
        "joint 10/100  loss 2.5  gradient 0.5 llm 0.25  tasks region 0.125 language 0.5  "
        "cosine region.language -0.12  counts region 12 words 1,204 triggers 16 bad_samples 3  "
        "71.2 samples/s  48,123 tokens/s  12% padding  3% waiting for data  41.3% MFU  "
        "memory 7.31 GiB worker 2.10 GiB GPU 61.20 GiB  left 0:00:0"
    )


def test_compared_tasks_are_a_table_and_nothing_is_printed_without_any(capsys):
    console.task_table({}, "stage heads")
    assert capsys.readouterr().out == ""
    region, language = {"norm": 0.5, "language": -0.123}, {"norm": 2.0, "region": -0.123}
    console.task_table({"region": region, "language": language}, "stage heads")
    title, head, *lines = capsys.readouterr().out.splitlines()
    assert title.strip() == "stage heads"
    assert head.split() == ["task", "norm", "region", "language"]
    assert [line.split() for line in lines] == [
        ["region", "0.5", "-", "-0.12"],
        ["language", "2", "-0.12", "-"],
    ]


def test_progress_of_other_ranks_is_silent(capsys):
    with TrainingProgress("assign", 100, 64, show=False) as progress:
        progress.update(10, ROW)
    assert capsys.readouterr().out == ""


def test_progress_on_a_terminal_shows_the_line_and_gives_the_terminal_back(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(progress_module, "open_console", lambda: screen)
    with pytest.raises(KeyboardInterrupt), TrainingProgress("assign", 100, 64) as progress:
        progress.update(10, ROW)
        raise KeyboardInterrupt
    shown = screen.file.getvalue()
    lines = [line.split() for line in Text.from_ansi(shown).plain.splitlines()]
    assert lines[0][:2] == ["assign", "10/100"]
    assert lines[0][-2] == "left"
    assert ["terms", "loss", "2.5", "language", "1.25", "region.l1", "0.125"] in lines
    assert ["rate", "llm", "1.0e-03", "bridge", "2.0e-04"] in lines
    assert shown.rstrip().endswith("\x1b[?25h")  # the cursor is visible again
