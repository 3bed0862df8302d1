"""Threads that help: one core each, results in order, and no more ahead than allowed."""

import threading
import time

import pytest
import torch

from camtrain.inference.predictor import helper_threads, map_in_order


def test_helpers_use_one_core_each_and_the_caller_keeps_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with helper_threads(2) as pool:
            assert torch.get_num_threads() == 3
            barrier = threading.Barrier(2)

            def cores() -> tuple[int, str]:
                barrier.wait()  # so that both threads take part
                return torch.get_num_threads(), threading.current_thread().name

            found = [future.result() for future in [pool.submit(cores) for _ in range(2)]]
            assert [count for count, _ in found] == [1, 1]
            assert len({name for _, name in found}) == 2
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("ahead", [1, 2, 5, 50])
def test_results_come_in_order_and_at_most_so_many_ahead(ahead: int) -> None:
    taken: list[int] = []

    def items() -> object:
        for number in range(20):
            taken.append(number)
            yield number

    def slow(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    with helper_threads(3) as pool:
        for number, found in enumerate(map_in_order(pool, slow, items(), ahead=ahead)):
            assert found == number * number
            assert len(taken) <= number + ahead
    assert len(taken) == 20


def test_leaving_drops_what_has_not_begun() -> None:
    done: list[int] = []

    def slow(number: int) -> None:
        time.sleep(0.05)
        done.append(number)

    with helper_threads(1) as pool:
        for number in range(50):
            pool.submit(slow, number)
    assert len(done) < 5


def test_an_error_reaches_the_caller_in_its_turn() -> None:
    with helper_threads(2) as pool:
        found = map_in_order(pool, lambda number: 6 // number, [3, 2, 0, 1], ahead=4)
        assert [next(found), next(found)] == [2, 3]
        with pytest.raises(ZeroDivisionError):
            next(found)
