"""Files of annotations: what is found again, what is kept in memory, and every message."""

import json
import pickle

import pytest

from tpokit import DataError
from tpokit.data.lines import JsonLines, JsonList, TextLines, json_document, json_entries


def written(folder, content):
    path = folder / "entries"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_lines_are_the_same_one_by_one_and_in_a_row(tmp_path):
    rows = [{"n": n, "text": "é" * (n * 97)} for n in range(50)]
    text = "\n \n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    lines = JsonLines(written(tmp_path, text))
    assert len(lines) == 50
    assert list(lines) == rows
    assert [lines.read(index) for index in (49, 0, 25)] == [rows[49], rows[0], rows[25]]
    assert lines.place(2) == f"{tmp_path / 'entries'}, line 5"


def test_text_is_read_without_blanks_line_ends_and_byte_order_mark(tmp_path):
    lines = TextLines(written(tmp_path, b"\xef\xbb\xbfone  \r\n\r\n  two ##x\n"))
    assert list(lines) == ["one", "two ##x"]
    assert lines.read(1) == "two ##x"
    assert lines.place(1).endswith("line 3")


def test_a_million_lines_would_cost_16_megabytes(tmp_path):
    lines = JsonLines(written(tmp_path, '{"text": "' + "x" * 500 + '"}\n'))
    many = JsonLines(written(tmp_path, ('{"text": "' + "x" * 500 + '"}\n') * 1000))
    assert len(pickle.dumps(many)) - len(pickle.dumps(lines)) < 1000 * 17


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'[{"a": 1}]', JsonList),
        (b'\n  [\n{"a": 1}]', JsonList),
        (b'\xef\xbb\xbf[{"a": 1}]', JsonList),
        (b'{"a": 1}', JsonLines),
        (b'\xef\xbb\xbf{"a": 1}\n', JsonLines),
    ],
)
def test_a_list_and_lines_are_told_apart(tmp_path, content, kind):
    entries = json_entries(written(tmp_path, content))
    assert isinstance(entries, kind)
    assert list(entries) == [entries.read(0)] == [{"a": 1}]
    assert len(entries) == 1


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (JsonLines, "\n\n", "entries: the file is empty; it needs one JSON object a line"),
        (TextLines, "", "entries: the file is empty; it needs one entry a line"),
        (lambda path: list(JsonLines(path)), '{"a": 1}\n{', r"entries, line 2: this is not JSON"),
        (lambda path: list(JsonLines(path)), "3", "line 1: expected a JSON object, found int"),
        (lambda path: list(TextLines(path)), b"a\n\xff", "entries, line 2: this is not UTF-8"),
        (JsonList, "{}", "entries: expected a JSON list, found dict"),
        (JsonList, "[]", "entries: the list is empty"),
        (
            lambda path: list(JsonList(path)),
            "[{}, 3]",
            "entry 2: expected a JSON object, found int",
        ),
        (json_document, "{", "entries: this is not JSON"),
        (json_document, b"\xff", "entries: this is not JSON"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, read, content, message):
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, content))


@pytest.mark.parametrize("read", [JsonLines, TextLines, JsonList, json_entries, json_document])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(DataError, match="nowhere: there is no such file"):
        read(tmp_path / "nowhere")
