"""Shared by all tests: seeds, one thread, no network."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models: a second thread only waits

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def pytest_collection_finish():
    """Leave what the imports made out of garbage collection, which every training run asks for."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Some libraries complain at the end of what they then take for leaks."""
    gc.unfreeze()
