"""The loader's worker processes: the same pixels when they are killed, hang or meet damage; none stays behind."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phenomhpc.crops import Loader, Sampler, StepBatch, workers
from phenomhpc.crops.ahead import ReadAhead, share_size
from phenomhpc.crops.corpus import Corpus, CropsOf
from phenomhpc.crops.mending import Mending, Replaced
from phenomhpc.crops.prefetch import next_depth
from phenomhpc.crops.workers import MOST_A_MINUTE, MOST_IN_A_ROW, MOST_OF_A_SHARE, Deaths
from phenomhpc.errors import PhenomError, UsageError, WorkError
from phenomhpc.jobs.here import run_here
from phenomhpc.jobs.processes import children, is_alive
from phenomhpc.plates.illumination import estimate
from phenomhpc.progress import silent
from phenomhpc.store.fill import fill
from phenomhpc.store.seal import seal
from phenomhpc.store.shardfiles import Traffic
from phenomhpc.train.metrics import read_metrics
from tests.conftest import REPOSITORY
from tests.unit.crop_store import add_plate, new_store, pixels_of
from tests.unit.train_store import convert, settings, write_plate

CROP, CHANNELS, BATCH = 16, 2, 600
SOON_S = 20.0


def corpus_at(root: Path, fields: int = 8, seed: int = 1) -> Corpus:
    store = new_store(root)
    add_plate(store, "P", pixels_of(seed, fields, CHANNELS, 40, 40))
    seal(store, silent())
    return Corpus.open([str(root)])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus_at(tmp_path_factory.mktemp("workers") / "store")


def loader_of(corpus: Corpus, *, source: CropsOf | None = None, flips: bool = True, **given: Any) -> Loader:
    sampler = Sampler(corpus.tables, seed=3, crop_px=CROP, flips=flips)
    chosen: dict[str, Any] = {
        "global_batch": BATCH,
        "micro_batch": 250,
        "num_patches": 4,
        "num_channels": CHANNELS,
    } | given
    return Loader(source or corpus.crops_of("keep"), sampler, dtype=corpus.dtype, **chosen)


def pixels_in(step: StepBatch) -> list[bytes]:
    return [micro.pixels.tobytes() for micro in step.micro]


def read(loader: Loader, count: int) -> list[list[bytes]]:
    with loader:
        return [pixels_in(next(loader)) for _ in range(count)]


def pids_of(loader: Loader) -> list[int]:
    """Its workers, as the kernel has them."""
    return [pid for pid in children(os.getpid()) if b"phenomhpc.crops.worker" in command_of(pid)]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def soon(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + SOON_S
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def descriptors() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except OSError:
            continue  # that of the listing itself
    return found


@pytest.fixture
def nothing_stays() -> Iterator[None]:
    """No process, descriptor or mapping of a test is left behind it."""
    gc.collect()
    before = descriptors(), set(children(os.getpid()))
    yield
    gc.collect()
    assert (descriptors(), set(children(os.getpid()))) == before
    assert "memfd:crops" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("world", [1, 7])
@pytest.mark.parametrize("number", [1, 3])
def test_uneven_ranks_with_and_without_flips(corpus: Corpus, world: int, number: int, nothing_stays: None) -> None:
    for flips in (True, False):
        given: dict[str, Any] = {"flips": flips, "world": world, "rank": world - 1, "start_step": 5, "micro_batch": 37}
        plain = read(loader_of(corpus, **given), 4)
        assert read(loader_of(corpus, **given, workers=number, prefetch_steps=3), 4) == plain
        assert len(set(map(tuple, plain))) == 4


def test_several_stores(corpus: Corpus, tmp_path: Path) -> None:
    corpus_at(tmp_path / "other", 5, seed=9)
    both = Corpus.open([corpus.crops_of("keep").stores[0], str(tmp_path / "other")])
    assert read(loader_of(both, workers=2), 3) == read(loader_of(both), 3) != read(loader_of(corpus), 3)


def test_light_is_divided_out_and_caches_are_used(tmp_path: Path) -> None:
    corpus = corpus_at(tmp_path / "store")
    metadata = corpus.snapshots[0].store.paths.images("P") / "zarr.json"
    said = json.loads(metadata.read_bytes())
    grid = {"kind": "grid", **estimate([np.random.default_rng(0).uniform(1, 2, (40, 40)).astype(np.float32)])}
    said["attributes"]["illumination"] = {"applied": False, "from": "estimate", "profiles": [grid, None]}
    metadata.write_text(json.dumps(said))
    fill(corpus.snapshots[0], corpus.caches(tmp_path / "caches")[0])
    given: dict[str, Any] = {"global_batch": 20, "micro_batch": 20}
    applied, cached = corpus.crops_of("apply"), corpus.crops_of("apply", tmp_path / "caches")
    plain = read(loader_of(corpus, source=applied, **given), 3)
    assert read(loader_of(corpus, source=applied, workers=2, **given), 3) == plain
    assert read(loader_of(corpus, workers=2, **given), 3) != plain
    for number in (0, 2):
        with loader_of(corpus, source=cached, workers=number, **given) as loader:
            steps = [next(loader) for _ in range(3)]
            assert pixels_in(steps[-1]) == plain[-1]
        assert all(step.traffic.from_cache == step.traffic.crops == 20 and not step.traffic.reads for step in steps)


def test_a_rank_without_crops_gets_padding(corpus: Corpus, nothing_stays: None) -> None:
    with loader_of(corpus, global_batch=3, micro_batch=2, rank=4, world=5, workers=1) as loader:
        seen = [next(loader).micro[0] for _ in range(10)]
        assert {float(micro.weight.sum()) for micro in seen} == {0.0, 1.0}


def test_workers_killed_in_the_middle_of_steps_change_no_pixel(corpus: Corpus, nothing_stays: None) -> None:
    steps, large = 6, {"global_batch": 4000, "micro_batch": 500}
    plain = read(loader_of(corpus, **large), steps)
    said: list[str] = []
    found = []
    with loader_of(corpus, **large, workers=2, prefetch_steps=1, say=said.append) as loader:

        def kill(number: int) -> bool:
            """A worker, as soon as there is work; is it gone?"""
            victim = pids_of(loader)[number]
            if not soon(lambda: bool(ahead_of(loader)._filling)):
                return False
            os.kill(victim, signal.SIGKILL)
            return soon(lambda: not is_alive(victim))

        with ThreadPoolExecutor(1) as killer:
            for step in range(steps):
                # The step behind this one is read when this one is asked for.
                killed = killer.submit(kill, step % 2) if step in (1, 3, 4) else None
                batch = next(loader)
                assert batch.step == step
                found.append(pixels_in(batch))
                assert killed is None or killed.result()
    assert found == plain
    assert len(said) == 3
    pattern = r"data: worker [01] \(pid \d+\) was killed by SIGKILL; another one reads its (\d+) crop\(s\)"
    lost = [re.fullmatch(pattern, text) for text in said]
    assert all(lost) and any(int(match[1]) > 0 for match in lost if match)


def ahead_of(loader: Loader) -> ReadAhead:
    assert isinstance(loader._steps, ReadAhead)
    return loader._steps


def test_a_worker_that_hangs_is_killed_and_its_crops_are_read(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, nothing_stays: None
) -> None:
    monkeypatch.setattr(workers, "SILENCE_LIMIT_S", 5.0)  # more than it takes to start one
    plain = read(loader_of(corpus), 4)
    said: list[str] = []
    with loader_of(corpus, workers=2, say=said.append) as loader:
        found = [pixels_in(next(loader))]
        stopped = pids_of(loader)[0]
        os.kill(stopped, signal.SIGSTOP)
        found += [pixels_in(next(loader)) for _ in range(3)]
        assert not is_alive(stopped)
    assert found == plain and len(said) == 1
    assert f"(pid {stopped}) gave no sign of life for 5 s and was killed; another one reads its" in said[0]


def test_workers_that_keep_dying_end_with_one_line(corpus: Corpus, nothing_stays: None) -> None:
    said: list[str] = []
    loader = loader_of(corpus, global_batch=60_000, micro_batch=60_000, workers=1, say=said.append)
    killed = set()
    while not ahead_of(loader)._fatal:
        for pid in set(pids_of(loader)) - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.01)
    with pytest.raises(
        WorkError, match=r"keep dying; the last, worker 0 \(pid \d+\), was killed by SIGKILL\. Want"
    ) as raised:
        next(loader)
    assert "\n" not in str(raised.value) and "data.workers=1" in str(raised.value)
    assert len(killed) == MOST_IN_A_ROW and len(said) == MOST_IN_A_ROW - 1


def test_what_counts_as_too_many_deaths() -> None:
    chance = Deaths()
    for minute in range(20):
        assert not chance.are_too_many(61.0 * minute, share=minute)
        chance.share_read(minute + 1000)
    often = Deaths()
    for number in range(MOST_A_MINUTE):
        assert often.are_too_many(float(number), share=number) == (number == MOST_A_MINUTE - 1)
        often.share_read(number + 1000)
    # The same share each time, with others read between: a poisoned one.
    poison = Deaths()
    for number in range(MOST_OF_A_SHARE):
        assert poison.are_too_many(100.0 * number, share=7) == (number == MOST_OF_A_SHARE - 1)
        poison.share_read(number + 1000)


PROGRAM = """
import os, sys, time
from phenomhpc.crops import Loader, Sampler
from phenomhpc.crops.corpus import Corpus
corpus = Corpus.open([sys.argv[1]])
sampler = Sampler(corpus.tables, seed=3, crop_px=16)
loader = Loader(corpus.crops_of("keep"), sampler, num_channels=2, dtype="uint8", num_patches=4,
                global_batch=600, micro_batch=600, workers=2)
print(hash(next(loader).micro[0].pixels.tobytes()) is not None, flush=True)
if sys.argv[2] == "leave":
    loader.close()
else:
    if sys.argv[2] == "fork" and not os.fork():
        time.sleep(60)  # it has the loader's ends of the sockets
        os._exit(0)
    print("ready", flush=True)
    time.sleep(60)
"""


def program(corpus: Corpus, how: str, *words: str, **given: Any) -> subprocess.Popen[str]:
    """A program that uses a loader at its top level, without `if __name__`."""
    command = [sys.executable, "-W", "error", *words, corpus.crops_of("keep").stores[0], how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **given)


@pytest.mark.parametrize("main", ["-c", "file", "-"])
def test_any_main_program_will_do(corpus: Corpus, tmp_path: Path, main: str) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    words = {"-c": ("-c", PROGRAM), "file": (str(tmp_path / "train.py"),), "-": ("-",)}[main]
    process = program(corpus, "leave", *words, stdin=subprocess.PIPE, cwd=REPOSITORY)
    out, err = process.communicate(PROGRAM if main == "-" else None, timeout=60)
    assert (process.returncode, out, err) == (0, "True\n", "")


def test_a_worker_finds_modules_where_its_loader_does(corpus: Corpus) -> None:
    """An interpreter that knows of nothing, and a program that has put together its own path."""
    path = [str(REPOSITORY), str(Path(np.__file__).parents[1])]
    text = f"import sys\nsys.path += {path!r}\n{PROGRAM}"
    alone = Path(sys._base_executable)  # type: ignore[attr-defined]
    command = [alone, "-c", text, corpus.crops_of("keep").stores[0], "leave"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.parametrize("how", ["stay", "fork"])
def test_workers_go_with_a_parent_that_is_killed(corpus: Corpus, how: str) -> None:
    with program(corpus, how, "-c", PROGRAM, start_new_session=True) as process:
        try:
            assert process.stdout is not None and [process.stdout.readline() for _ in range(2)][1] == "ready\n"
            below = [pid for pid in children(process.pid) if b"crops.worker" in command_of(pid)]
            assert len(below) == 2
            process.kill()
            process.wait()
            began = time.monotonic()
            assert soon(lambda: not any(map(is_alive, below)))
            assert time.monotonic() - began < 2
        finally:
            os.killpg(process.pid, signal.SIGKILL) if how == "fork" else None


def test_a_signal_to_the_whole_group_ends_no_worker(corpus: Corpus, nothing_stays: None) -> None:
    """Ctrl-C and Slurm's SIGTERM reach everybody: the loader's process decides what to do."""
    said: list[str] = []
    with loader_of(corpus, workers=2, say=said.append) as loader:
        assert soon(lambda: len(pids_of(loader)) == 2)
        for number in range(4):  # the first ones while they start
            for pid in pids_of(loader):
                os.kill(pid, signal.SIGINT)
                os.kill(pid, signal.SIGTERM)
            assert next(loader).step == number
    assert not said


def test_leaving_in_the_middle_takes_less_than_a_second(corpus: Corpus, nothing_stays: None) -> None:
    with loader_of(corpus, global_batch=20_000, micro_batch=2000, workers=3, prefetch_steps=2) as loader:
        next(loader)
        pids = pids_of(loader)
        began = time.monotonic()
    assert time.monotonic() - began < 1 and len(pids) == 3 and not any(map(is_alive, pids))


def test_a_worker_that_takes_long_to_end_is_reaped_later(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_END_LIMIT_S", 0.0)
    with loader_of(corpus, workers=2) as loader:
        next(loader)
    gc.collect()  # a process that nobody remembers would be warned about here
    assert workers._HELD and soon(lambda: all(process.poll() is not None for process in workers._HELD))


@pytest.mark.parametrize("number", [0, 2])
def test_damage_is_replaced_and_told_alike(tmp_path: Path, number: int, nothing_stays: None) -> None:
    corpus = corpus_at(tmp_path / "store")
    corpus.snapshots[0].store.paths.shard("P", 1).unlink()  # fields 2 and 3
    told: list[Replaced] = []
    mending = Mending(max_damaged=0.5, tell=told.append)
    found = read(loader_of(corpus, mending=mending, workers=number), 2)
    assert sorted(entry.field_no for entry in told) == [2, 3]
    by = {entry.field_no: entry.by for entry in told}
    whole = corpus_at(tmp_path / "whole")
    # Fields that stand in for others are as large: the same crop of them.
    swapped = Swapped(whole, by)
    with whole.reader("keep") as reader:
        swapped.reader = reader
        sampler = Sampler(whole.tables, seed=3, crop_px=CROP)
        plain = Loader(
            swapped, sampler, num_channels=2, dtype="uint8", global_batch=BATCH, micro_batch=250, num_patches=4
        )
        assert found == read(plain, 2)


class Swapped:
    """Reads some fields in place of others."""

    def __init__(self, corpus: Corpus, by: dict[int, int]) -> None:
        self.corpus, self.by, self.reader = corpus, by, None

    def read(self, field_no: int, y: int, x: int, out: Any) -> None:
        assert self.reader is not None
        self.reader.read(self.by.get(field_no, field_no), y, x, out)

    @property
    def traffic(self) -> Traffic:
        assert self.reader is not None
        return self.reader.traffic


def test_too_much_damage_is_judged_over_all_workers(tmp_path: Path, nothing_stays: None) -> None:
    corpus = corpus_at(tmp_path / "store", fields=40)
    corpus.snapshots[0].store.paths.shard("P", 1).unlink()  # a twentieth
    mending = Mending(max_damaged=0.01, tell=lambda replaced: None)
    line = r"data: \d+ of \d+ crops read here are of damaged fields, more than"
    loader = loader_of(corpus, global_batch=300, mending=mending, workers=2)
    with loader, pytest.raises(WorkError, match=line) as raised:
        for _ in range(3):
            next(loader)
    assert re.search(r"max_damaged=0.01 allows \(last: store .*plate P, shard 1: cannot be read", str(raised.value))


def test_a_store_that_vanishes(tmp_path: Path, nothing_stays: None) -> None:
    corpus = corpus_at(tmp_path / "store")
    source = corpus.crops_of("keep")
    errors: list[PhenomError] = []
    with loader_of(corpus, workers=1) as loader:
        next(loader)
        (tmp_path / "store").rename(tmp_path / "away")
        # The shards that are open are read on; a worker that starts anew finds nothing.
        os.kill(pids_of(loader)[0], signal.SIGKILL)
        with pytest.raises(UsageError, match="does not exist") as raised:
            for _ in range(9):
                next(loader)
        errors.append(raised.value)
    for number in (0, 2):
        with pytest.raises(UsageError) as refused, loader_of(corpus, source=source, workers=number) as loader:
            next(loader)
        errors.append(refused.value)
    assert len(set(map(str, errors))) == 1


def test_what_nobody_foresaw_comes_with_the_workers_traceback(corpus: Corpus, nothing_stays: None) -> None:
    table = np.concatenate([corpus.snapshots[0].table] * 2)  # numbers fields that are not there
    sampler = Sampler(table, seed=3, crop_px=CROP)
    loader = Loader(
        corpus.crops_of("keep"),
        sampler,
        num_channels=2,
        dtype="uint8",
        num_patches=4,
        global_batch=64,
        micro_batch=64,
        workers=1,
    )
    with pytest.raises(RuntimeError, match="IndexError: ") as raised:
        for _ in range(9):
            next(loader)
    assert "in a worker that reads crops:\nTraceback" in raised.value.__notes__[0]
    assert "store/reader.py" in raised.value.__notes__[0]


def test_workers_are_small_and_know_no_torch(corpus: Corpus, nothing_stays: None) -> None:
    import phenomhpc.store.frames  # noqa: F401  # compiled once for all: that takes more memory than its use

    with loader_of(corpus, global_batch=8000, micro_batch=8000, workers=2) as loader:
        next(loader)
        for pid in pids_of(loader):
            own, maps = own_bytes(pid, Path(corpus.crops_of("keep").stores[0])), Path(f"/proc/{pid}/maps").read_text()
            assert "torch" not in maps and "memfd:crops" in maps
            assert 10e6 < own < 150e6


def own_bytes(pid: int, store: Path) -> int:
    """A process' part of the memory (Pss), libraries and all, but for the store's files and the loader's buffers: those are the
    kernel's pages, and the loader's."""
    total, counts = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counts = str(store) not in line and "memfd:crops" not in line
        elif counts and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_buffers_take_memory_only_when_they_are_needed(corpus: Corpus, nothing_stays: None) -> None:
    with loader_of(corpus, workers=2, prefetch_steps=50) as loader:
        shared = ahead_of(loader)._shared
        one = shared.size / 51
        for _ in range(4):
            next(loader)
            time.sleep(0.2)  # nothing is waited for
        assert ahead_of(loader)._depth <= 2
        taken = os.fstat(shared.descriptor).st_blocks * 512
        assert one / 2 < taken <= 3 * one + 2**16


def test_depth_grows_only_where_it_helps() -> None:
    assert next_depth(1, 4, wait_s=0.5, idle_s=0.5) == 2
    assert next_depth(4, 4, wait_s=0.5, idle_s=0.5) == 4
    assert next_depth(2, 4, wait_s=0.5, idle_s=0.0) == 2  # all workers were busy: they are too few
    assert next_depth(2, 4, wait_s=0.0001, idle_s=9.0) == 2  # they were ahead
    assert next_depth(0, 0, wait_s=9.0, idle_s=9.0) == 0


def test_shares_are_small_and_enough_for_everybody() -> None:
    assert share_size(600, 2) == share_size(4096, 16) == 16
    assert share_size(64, 16) == 2 and share_size(8, 16) == share_size(0, 3) == 1


def test_a_run_with_workers_is_the_run_without(tmp_path: Path) -> None:
    write_plate(tmp_path / "raw")
    store = convert(tmp_path / "raw", tmp_path / "store", tmp_path / "runs")
    losses = []
    for number in (0, 2):
        config = settings(store, tmp_path / f"runs{number}", optim__steps=6, data__workers=number)
        paths, summary = run_here(config, command=["pretrain"], progress=silent(), fresh=True)
        assert not summary.set_aside
        rows = read_metrics(paths.metrics)
        losses.append((rows["loss"].to_pylist(), rows["index_digest"].to_pylist()))
    assert losses[0] == losses[1] and len(losses[0][0]) == 6
