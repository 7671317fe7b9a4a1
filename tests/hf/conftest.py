"""Fixtures of the Hugging Face tests."""

import os

import pytest
import torch
from hf_models import TinyModel

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def one_thread():
    """These models are so small that a second thread only costs time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def subjects():
    """Subjects by architecture, made once. A test that changes a model builds one of its own."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = TinyModel(name)
        return made[name]

    return get


@pytest.fixture
def subject(subjects):
    """The subject for tests in which the architecture does not matter."""
    return subjects("qwen3")
