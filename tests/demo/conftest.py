"""What the demo's tests share: the checkpoint that ships, loaded as any other, and the committed speech."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from serve_app.checkpoint.duplex import load_duplex
from serve_app.checkpoint.source import CheckpointSource, Folder, resolve
from serve_app.demo.build import CHECKPOINT
from serve_app.demo.phrases import Phrases, read_phrases
from serve_app.demo.recording import read_recording
from serve_app.demo.synthesis import Talk
from serve_app.model.duplex import Duplex


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products: a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder() -> Folder:
    return resolve(CheckpointSource(folder=Path(CHECKPOINT)))


@pytest.fixture
def duplex(folder: Folder) -> Duplex:
    """A fresh copy, so that a test may break it."""
    return load_duplex(folder, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def phrases(folder: Folder) -> Phrases:
    return read_phrases(folder.tokenizer.read_bytes())


@pytest.fixture(scope="session")
def recording() -> Talk:
    return read_recording()
