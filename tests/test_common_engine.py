import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from common import engine
from common.engine import Engine
from common.errors import InputError
from common.processes import available_cores

ITEMS = list(range(40))


def square(item: int) -> int:
    return item * item


def square_unless_crash(item: int) -> int:
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)  # as a decoder that crashes, or a system without memory
    return item * item


def refuse(item: int) -> int:
    raise InputError(f"item {item} is refused; give another")


def square_and_tell(folder: Path, item: int) -> int:
    """Note which process computed an item, slowly."""
    with (folder / str(os.getpid())).open("a") as stream:
        stream.write(f"{item}\n")
    time.sleep(0.05)
    return item * item


@pytest.fixture
def with_ray() -> None:
    """Skip without Ray; send this file's functions to its workers, which cannot import it."""
    pytest.importorskip("ray").cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_item_that_ends_its_worker_gets_its_own_result_and_the_others_theirs():
    results = list(Engine().map(square_unless_crash, ITEMS, 4, crashed=lambda item: -item))
    assert results == [-item if item == 5 else item * item for item in ITEMS]


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_results_arrive_in_order_or_as_soon_as_they_are_finished():
    seconds = [1.5, 0.01, 0.02, 0.03]
    assert list(Engine().map(sleep, seconds, 1, sleep)) == seconds
    results = list(Engine().map(sleep, seconds, 1, sleep, in_order=False))
    assert sorted(results) == sorted(seconds)
    if available_cores() > 1:
        assert results[-1] == 1.5


def refuse_then_crash(item: int) -> int:
    if item == 0:
        refuse(item)
    if item == 1:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)
    return item


def crash_once(file: Path) -> str:
    if not file.exists():
        file.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return file.name


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_error_before_a_crash_is_raised_and_one_crash_is_repeated(tmp_path):
    with pytest.raises(InputError, match="item 0 is refused"):
        list(Engine().map(refuse_then_crash, list(range(200)), 1, crashed=square))
    (tmp_path / "a").mkdir()
    assert list(Engine().map(crash_once, [tmp_path / "a" / "b"], 1, crashed=str)) == ["b"]


def test_stopped_run_does_not_wait_for_the_items_in_work():
    results = Engine().map(time.sleep, [0, 600, 600], chunk=1, crashed=refuse)
    next(results)
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 60


def test_engine_refuses_what_it_cannot_use(monkeypatch):
    with pytest.raises(InputError, match="--engine 'spark' is not known; accepted: local or ray"):
        Engine("spark")
    with pytest.raises(InputError, match="--ray-address a:1 needs --engine ray"):
        Engine(ray_address="a:1")
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed; run: python -m pip install -r requirements-distributed\.txt"):
        Engine("ray")


def test_address_without_a_cluster_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: True)  # Ray need not be installed
    for address in ("127.0.0.1:9", "auto"):
        with pytest.raises(InputError, match=f"--ray-address {address}: no Ray cluster answers there; give HOST:PORT"):
            list(Engine("ray", address).map(square, ITEMS, 4, refuse))


@pytest.mark.system
@pytest.mark.usefixtures("with_ray")
def test_ray_gives_the_results_and_errors_of_the_local_engine():
    assert (
        list(Engine("ray").map(square, ITEMS, 4, refuse))
        == list(Engine().map(square, ITEMS, 4, refuse))
        == [n * n for n in ITEMS]
    )
    for name in engine.ENGINES:
        with pytest.raises(InputError, match=r"^item 0 is refused; give another$"):
            list(Engine(name).map(refuse, ITEMS, 4, square))


@pytest.mark.system
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.usefixtures("with_ray")
def test_killed_actor_of_ray_loses_nothing_and_repeats_no_result(tmp_path):
    killed = []

    def kill_an_actor():
        while not (actors := sorted(tmp_path.iterdir())):
            time.sleep(0.01)
        time.sleep(0.3)
        killed.append(int(actors[0].name))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_an_actor, daemon=True)
    killer.start()
    items = list(range(200))
    results = list(Engine("ray").map(partial(square_and_tell, tmp_path), items, 4, refuse))
    killer.join()
    assert results == [item * item for item in items]
    computed = [int(line) for file in tmp_path.iterdir() for line in file.read_text().split()]
    assert set(computed) == set(items)
    assert len(list(tmp_path.iterdir())) > 1, "another process went on"
