"""The cache of features: what is found, what is not, and what several processes do to it."""

import logging
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from tpokit import Media
from tpokit.data.content import ContentHashes
from tpokit.data.feature_cache import FeatureCache

MAKER = {"model": "abc", "step_s": 0.5, "size": 224}


def video(folder, content=b"a video", name="v.mp4", settled=True):
    """A file; unless said otherwise it looks as if it had been there for a while."""
    path = folder / name
    path.write_bytes(content)
    if settled:
        os.utime(path, (1_000_000, 1_000_000))
    return Media("video", path)


def some(*shape, seed=0):
    return {"x": torch.randn(shape or (5, 4), generator=torch.Generator().manual_seed(seed))}


def opened(folder, format=1):
    return FeatureCache(folder / "cache", format)


def cached_files(cache):
    return sorted(cache.folder.rglob("*.safetensors"))


# ---- what is found ----


def test_tensors_come_back_to_the_last_bit_in_their_own_formats(tmp_path):
    cache = opened(tmp_path)
    key = cache.key(video(tmp_path), MAKER)
    assert cache.get(key) is None
    assert not cache.has(key)
    whole = torch.randn(6, 4, requires_grad=True)
    put = {
        "half": whole.half(),
        "brain": whole.bfloat16()[:, 1],
        "turned": whole.T,
        "again": whole,
        "spread": whole[:1].expand(3, 4),
        "none": torch.zeros(0, 3),
        "one": torch.tensor(7),
        "yes": whole > 0,
    }
    cache.put(key, put, {"length": "1.9999999", "check": "é"})
    found = opened(tmp_path).get(key)  # as a later run does
    assert cache.has(key)
    assert found.facts == {"length": "1.9999999", "check": "é"}
    assert set(found.tensors) == set(put)
    for name, tensor in put.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor), name


def test_what_is_found_can_be_changed_and_stays_the_same_on_disk(tmp_path):
    cache = opened(tmp_path)
    key = cache.key(video(tmp_path), MAKER)
    cache.put(key, some())
    cache.get(key).tensors["x"].zero_()
    assert torch.equal(cache.get(key).tensors["x"], some()["x"])
    assert cache.get(key).facts == {}


def test_the_same_content_is_found_under_another_name(tmp_path):
    cache = opened(tmp_path)
    assert cache.key(video(tmp_path), MAKER) == cache.key(video(tmp_path, name="w.avi"), MAKER)


def test_another_format_misses_in_the_same_folder(tmp_path):
    old, new = opened(tmp_path), opened(tmp_path, format=2)
    medium = video(tmp_path)
    old.put(old.key(medium, MAKER), some())
    assert new.get(new.key(medium, MAKER)) is None
    assert old.get(old.key(medium, MAKER)) is not None


@pytest.mark.parametrize("name", sorted(MAKER))
def test_a_changed_option_misses(tmp_path, name):
    cache = opened(tmp_path)
    medium = video(tmp_path)
    cache.put(cache.key(medium, MAKER), some())
    assert cache.get(cache.key(medium, {**MAKER, name: "other"})) is None
    assert cache.get(cache.key(medium, {**MAKER, "more": 1})) is None
    assert cache.get(cache.key(medium, dict(reversed(MAKER.items())))) is not None


def test_another_part_of_the_video_misses(tmp_path):
    cache = opened(tmp_path)
    medium = video(tmp_path)
    cache.put(cache.key(medium, MAKER), some())
    for part in ({"start_s": 1.0}, {"end_s": 9.0}, {"start_s": 0.0}):
        assert cache.get(cache.key(Media("video", medium.path, **part), MAKER)) is None


def test_a_folder_of_frames_is_known_by_all_its_images_and_its_rate(tmp_path):
    cache = opened(tmp_path)

    def key(name, rate=24.0):
        return cache.key(Media("video", tmp_path / name, rate=rate), MAKER)

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for frame, ending in enumerate((".jpg", ".JPEG", ".png")):
            video(tmp_path / name, bytes([frame]), f"{frame:05}{ending}")
    first = key("one")
    assert key("two") == first
    assert key("one", rate=12.0) != first
    video(tmp_path / "one", b"", "notes.txt")
    assert key("one") == first
    video(tmp_path / "one", b"another", "00001.JPEG")
    assert key("one") != first
    (tmp_path / "two" / "00002.png").unlink()
    assert key("two") != first
    with pytest.raises(OSError, match="gone"):
        key("gone")


def test_a_changed_file_misses_even_if_its_size_and_second_are_the_same(tmp_path):
    cache = opened(tmp_path)
    cache.put(cache.key(video(tmp_path, b"first one", settled=False), MAKER), some())
    for content in (b"other one", b"longer than that"):
        changed = cache.key(video(tmp_path, content, settled=False), MAKER)
        assert cache.get(changed) is None


# ---- a file is read once ----


def test_an_unchanged_file_is_read_once_by_all_processes(tmp_path):
    path = video(tmp_path, b"first").path
    hashes = ContentHashes(tmp_path / "index.jsonl")
    first = hashes.of(path)
    video(tmp_path, b"other")  # same size and time of change: who looks into it would notice
    assert hashes.of(path) == first
    assert ContentHashes(tmp_path / "index.jsonl").of(path) == first
    assert ContentHashes(None).of(path) != first


def test_a_file_with_a_new_time_of_change_is_read_again(tmp_path):
    path = video(tmp_path, b"first").path
    hashes = ContentHashes(tmp_path / "index.jsonl")
    first = hashes.of(path)
    video(tmp_path, b"other")
    os.utime(path, (2_000_000, 2_000_000))
    assert hashes.of(path) != first


def test_what_one_process_learns_another_takes_over_while_it_runs(tmp_path):
    index = tmp_path / "index.jsonl"
    one, other = ContentHashes(index), ContentHashes(index)
    first = video(tmp_path, b"first").path
    found = one.of(first)
    assert other.of(first) == found
    second = video(tmp_path, b"second", "w.mp4").path
    found = other.of(second)
    video(tmp_path, b"secund", "w.mp4")
    assert one.of(second) == found


def test_torn_and_foreign_lines_of_the_index_are_passed_over(tmp_path):
    index = tmp_path / "index.jsonl"
    path = video(tmp_path, b"first").path
    found = ContentHashes(index).of(path)
    line = index.read_bytes()
    index.write_bytes(b'\xff\n[1]\n{"path": 3}\n' + line[: len(line) // 2] + b"\n" + line)
    video(tmp_path, b"other")
    assert ContentHashes(index).of(path) == found
    index.write_bytes(line[:-5])  # a process was stopped while it wrote
    assert ContentHashes(index).of(path) != found


def test_an_index_that_was_emptied_is_read_from_its_start(tmp_path):
    index = tmp_path / "index.jsonl"
    hashes = ContentHashes(index)
    for name in ("a", "b", "c"):
        hashes.of(video(tmp_path, b"x", name).path)
    index.unlink()
    path = video(tmp_path, b"first", "d").path
    found = ContentHashes(index).of(path)
    video(tmp_path, b"other", "d")
    assert hashes.of(path) == found


def test_several_files_have_one_name_that_follows_all_of_them(tmp_path):
    hashes = ContentHashes(None)
    one, two = video(tmp_path, b"1", "one").path, video(tmp_path, b"2", "two").path
    found = hashes.of_all([one, two])
    assert hashes.of_all([two, one]) == found
    assert hashes.of_all([one]) != found
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    assert hashes.of_all([video(moved, b"1", "one").path, two]) == found
    assert hashes.of_all([video(moved, b"1", "renamed").path, two]) != found


# ---- broken files ----


def test_a_file_cut_off_anywhere_is_a_miss_and_is_replaced(tmp_path):
    cache = opened(tmp_path)
    key = cache.key(video(tmp_path), MAKER)
    cache.put(key, some())
    (path,) = cached_files(cache)
    whole = path.read_bytes()
    for kept in (0, 1, 7, 8, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        assert cache.get(key) is None
    cache.put(key, some())
    assert torch.equal(cache.get(key).tensors["x"], some()["x"])


def test_a_byte_changed_anywhere_never_gives_other_numbers(tmp_path):
    cache = opened(tmp_path)
    key = cache.key(video(tmp_path), MAKER)
    kept = some(2, 3)
    cache.put(key, kept, {"length": "2.0"})
    (path,) = cached_files(cache)
    whole = path.read_bytes()
    for place, byte in enumerate(whole):
        path.write_bytes(whole[:place] + bytes([byte ^ 1]) + whole[place + 1 :])
        found = cache.get(key)
        same = found is not None and torch.equal(found.tensors["x"], kept["x"])
        assert found is None or (same and found.facts == {"length": "2.0"})
    assert cache.get(key) is None  # the last byte is one of a number


def test_a_file_under_a_wrong_name_is_a_miss(tmp_path):
    cache = opened(tmp_path)
    mine, other = (cache.key(video(tmp_path), {**MAKER, "size": size}) for size in (1, 2))
    cache.put(other, some())
    (path,) = cached_files(cache)
    wrong = cache.folder / mine.digest[:2] / f"{mine.digest}.safetensors"
    wrong.parent.mkdir(exist_ok=True)
    path.rename(wrong)
    assert cache.get(mine) is None


def test_a_folder_where_a_file_should_be_is_a_miss(tmp_path):
    cache = opened(tmp_path)
    key = cache.key(video(tmp_path), MAKER)
    (cache.folder / key.digest[:2] / f"{key.digest}.safetensors").mkdir(parents=True)
    assert cache.get(key) is None
    assert not cache.has(key)


# ---- several processes ----


def _writes_and_reads(folder, medium, seed, failures):
    cache = opened(folder)
    key = cache.key(medium, MAKER)
    for _ in range(40):
        cache.put(key, {"x": torch.full((200, 50), seed)}, {"seed": str(seed)})
        found = cache.get(key)
        whole = found is not None and bool((found.tensors["x"] == int(found.facts["seed"])).all())
        if not whole:
            failures.put(seed)


def test_processes_that_write_the_same_key_never_see_half_a_file(tmp_path):
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    medium = video(tmp_path)
    work = [
        context.Process(target=_writes_and_reads, args=(tmp_path, medium, seed, failures))
        for seed in range(1, 5)
    ]
    for process in work:
        process.start()
    for process in work:
        process.join()
    assert [process.exitcode for process in work] == [0] * 4
    assert failures.empty()
    cache = opened(tmp_path)
    assert len(cached_files(cache)) == 1
    assert not list(cache.folder.rglob("*.partial"))


def _writes_for_ever(folder, medium):
    cache = opened(folder)
    key = cache.key(medium, MAKER)
    while True:
        cache.put(key, {"x": torch.full((2000, 500), 3.0)})


def test_a_process_killed_while_it_writes_leaves_nothing_that_is_read(tmp_path):
    medium = video(tmp_path)
    cache = opened(tmp_path)
    key = cache.key(medium, MAKER)
    for wait_s in (0.02, 0.05, 0.09):
        process = multiprocessing.get_context("fork").Process(
            target=_writes_for_ever, args=(tmp_path, medium)
        )
        process.start()
        time.sleep(wait_s)
        process.kill()
        process.join()
        found = cache.get(key)
        assert found is None or bool((found.tensors["x"] == 3.0).all())
    cache.put(key, some())
    assert torch.equal(cache.get(key).tensors["x"], some()["x"])


# ---- a disk that takes no more ----


def test_a_folder_that_cannot_be_written_gives_one_warning(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file is in the way")
    cache = opened(tmp_path)
    medium = video(tmp_path)
    key = cache.key(medium, MAKER)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            cache.put(key, some())
    assert len(caplog.records) == 1
    said = caplog.records[0].getMessage()
    assert said.startswith(f"features cannot be kept in {tmp_path / 'cache'} (")
    assert said.endswith("they are worked out anew each time")
    assert cache.get(key) is None
    assert cache.key(medium, MAKER) == key  # hashing goes on without an index


def _fills_the_disk(folder, medium, report):
    """With a limit on the size of files, writing fails half way, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("tpokit").addHandler(handler)
    cache = opened(folder)
    small, large = (cache.key(medium, {**MAKER, "size": size}) for size in (1, 2))
    cache.put(small, some(2, 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    cache.put(large, {"x": torch.zeros(1000, 1000)})
    cache.put(large, {"x": torch.zeros(1000, 1000)})
    report.put((said, cache.get(large) is None, cache.get(small) is not None))


def test_a_full_disk_gives_one_warning_and_leaves_what_was_there(tmp_path):
    context = multiprocessing.get_context("fork")
    report = context.SimpleQueue()
    process = context.Process(target=_fills_the_disk, args=(tmp_path, video(tmp_path), report))
    process.start()
    said, absent, kept = report.get()
    process.join()
    assert len(said) == 1
    assert "File too large" in said[0]
    assert absent
    assert kept
    assert not list((tmp_path / "cache").rglob("*.partial"))


# ---- how much ----


def test_the_size_of_a_cache_is_told(tmp_path):
    cache = opened(tmp_path)
    assert (cache.size().files, cache.size().size_bytes) == (0, 0)
    medium = video(tmp_path)
    for size in (1, 2):
        cache.put(cache.key(medium, {**MAKER, "size": size}), {"x": torch.zeros(500, 500)})
    found = cache.size()
    files = [path for path in cache.folder.rglob("*") if path.is_file()]
    assert found.files == len(files) == 3  # the index is one of them
    assert found.size_bytes == sum(path.stat().st_size for path in files)
    assert str(found) == f"{tmp_path / 'cache'}: 3 files, 2.0 MB"


def test_a_cache_folder_appears_only_when_something_is_kept(tmp_path):
    cache = opened(tmp_path)
    cache.key(video(tmp_path, settled=False), MAKER)
    assert not Path(cache.folder).exists()
