import threading

import pytest
import torch

from halfv_probe.states.cores import share_cores


@pytest.fixture
def cores():
    """Set torch's threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("available", "items", "share"), [(4, 2, 2), (4, 3, 1), (2, 3, 1), (5, 2, 2), (4, 1, 4), (1, 3, 1)]
)
def test_each_has_its_share_in_the_order_of_the_items(cores, available, items, share):
    cores(available)
    found = share_cores(lambda item: (item, torch.get_num_threads()), range(items))
    assert found == [(item, share) for item in range(items)]


def test_they_run_at_the_same_time(cores):
    cores(2)
    meeting = threading.Barrier(2, timeout=60)
    assert sorted(share_cores(lambda _: meeting.wait(), range(2))) == [0, 1]


@pytest.mark.parametrize("available", [1, 4])
def test_torch_has_its_threads_back_also_after_an_exception(cores, available):
    cores(available)
    with pytest.raises(ZeroDivisionError):
        share_cores(lambda item: 1 // item, [1, 0, 2])
    assert torch.get_num_threads() == available
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [available]


def test_nothing_is_nothing():
    assert share_cores(str, []) == []
