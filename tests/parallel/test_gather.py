"""Values that processes give to each other stand in the order of the whole, whatever their lengths."""

import threading

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from lmjax.parallel.gather import joined

TEXTS = ["a", "", "some längere Text", 'quotes " and \\', "\n", "six", "seven"]


class Processes:
    """Threads in place of processes, which meet at each gathering."""

    def __init__(self, count, monkeypatch):
        self.count, self.barrier, self.arrays = count, threading.Barrier(count), [None] * count
        self.own = threading.local()
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(multihost_utils, "process_allgather", self.gather)

    def gather(self, array):
        self.arrays[self.own.number] = np.asarray(array)
        self.barrier.wait(10)
        found = np.stack(self.arrays)
        self.barrier.wait(10)
        return found

    def run(self, shares):
        found = [None] * self.count

        def work(number):
            self.own.number = number
            found[number] = joined(shares[number])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return found


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_every_process_has_all_texts_in_order(monkeypatch, count):
    processes = Processes(count, monkeypatch)
    assert processes.run([TEXTS[i::count] for i in range(count)]) == [TEXTS] * count
