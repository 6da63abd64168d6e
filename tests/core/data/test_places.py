"""Places of entries are found once: by one process, until the file changes."""

import os
import pickle
import time

import numpy as np
import pytest

from tpokit import DataError
from tpokit.data import places
from tpokit.data.lines import JsonLines
from tpokit.data.places import places_in


@pytest.fixture(autouse=True)
def _small_files_are_kept_here(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "FOLDER", tmp_path / "kept")
    monkeypatch.setattr(places, "KEPT_BYTES", 0)


def settled(path, text, age_s=60):
    """A file that was written some time ago."""
    path.write_text(text)
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


class Finder:
    """Finds the length of a file, and counts how often."""

    count = 0

    def __call__(self, path):
        self.count += 1
        return np.array([[path.stat().st_size, 7]])


def found(path, find, kind="length"):
    return places_in(path, kind, find).tolist()


def test_places_are_found_once_for_a_file_of_the_same_size_and_time(tmp_path):
    path, find = settled(tmp_path / "a", "12345"), Finder()
    assert [found(path, find) for _ in range(3)] == [[[5, 7]]] * 3
    assert find.count == 1
    found(path, find, kind="other")
    found(settled(tmp_path / "b", "12345"), find)
    assert find.count == 3
    settled(path, "123456")
    assert found(path, find) == [[6, 7]]
    settled(path, "654321", age_s=50)
    found(path, find)
    assert find.count == 5


def test_what_was_just_written_may_change_unseen_and_is_not_kept(tmp_path):
    path, find = settled(tmp_path / "a", "12345", age_s=0), Finder()
    assert [found(path, find) for _ in range(2)] == [[[5, 7]]] * 2
    assert find.count == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-8], lambda data: b"", lambda _: b"x" * 56])
def test_a_damaged_file_of_places_is_made_anew(tmp_path, damage):
    path, find = settled(tmp_path / "a", "12345"), Finder()
    found(path, find)
    (kept,) = (tmp_path / "kept").glob("*.places")
    kept.write_bytes(damage(kept.read_bytes()))
    assert [found(path, find) for _ in range(2)] == [[[5, 7]]] * 2
    assert find.count == 2


def test_where_nothing_can_be_written_each_process_looks_itself(tmp_path, caplog):
    (tmp_path / "kept").write_text("a file in the place of the folder")
    path, find = settled(tmp_path / "a", "12345"), Finder()
    assert [found(path, find) for _ in range(2)] == [[[5, 7]]] * 2
    assert find.count == 2
    assert f"places of entries cannot be kept in {tmp_path / 'kept'}" in caplog.text


def test_of_processes_that_start_at_once_one_looks(tmp_path):
    path = settled(tmp_path / "a", "12345")

    def slow(path):
        with (tmp_path / "looked").open("a") as file:
            file.write("x")
        time.sleep(0.2)
        return np.array([[5, 7]])

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = int(found(path, slow) != [[5, 7]])
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert (tmp_path / "looked").read_text() == "x"


def test_lines_are_read_from_kept_places_in_a_copy_of_the_process_too(tmp_path):
    rows = "".join(f'{{"n": {n}}}\n\n' for n in range(100))
    path = settled(tmp_path / "a", rows)
    first, again = JsonLines(path), JsonLines(path)
    assert [again.read(index)["n"] for index in range(100)] == list(range(100))
    assert again.place(3) == first.place(3) == f"{path}, line 7"
    copied = pickle.loads(pickle.dumps(again))
    assert (len(copied), copied.read(99)) == (100, {"n": 99})
    assert list((tmp_path / "kept").glob("*.places"))


def test_a_file_that_changes_under_ones_eyes_is_noticed(tmp_path):
    path = settled(tmp_path / "a", '{"n": 1}\n{"n": 2}\n{"n": 3}\n')
    lines = JsonLines(path)
    path.write_text('{"n": 1000}\n{"n": 2}\n{"n": 3}\n')
    with pytest.raises(DataError, match="a, line 2: the file has changed since it was opened"):
        lines.read(1)
    path.write_text('{"n": 1}\n')
    with pytest.raises(DataError, match="a, line 3: the file has changed since it was opened"):
        lines.read(2)
