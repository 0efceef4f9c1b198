"""The demo's checkpoint, spoiled: what cannot be loaded starts nothing; what overflows ends one conversation."""

import asyncio
import itertools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import sphn
import torch
from safetensors.torch import load_file, save_file

from load_tests.speech import encoded
from serve_app.checkpoint.duplex import load_duplex
from serve_app.checkpoint.source import CheckpointSource, resolve
from serve_app.config import CheckpointSettings, EngineSettings
from serve_app.demo.recording import FOLDER, NAME, read_recording
from serve_app.errors import CheckpointError
from serve_app.model.mimi import Mimi
from serve_app.serving.runners import make_runner
from serve_app.units import FRAME_S, FRAME_SAMPLES, SAMPLE_RATE_HZ
from tests.serving.cluster import ROOT, START_S, WAIT_S, Cluster, changed, eventually, running, up
from tests.serving.conversation import Pcm, Visitor, visit

CHECKPOINT: Final = ROOT / "serve_app" / "demo" / "checkpoint"
WEIGHTS: Final = "model.safetensors"
KEY: Final = "text_linear.weight"
FRAMES: Final = 60
NOISES: Final = 3
SHIFTS: Final = range(0, 2 * FRAME_SAMPLES, 160)  # speech may begin anywhere in a frame
SLOTS: Final = 2
TALK_S: Final = 60.0
GREEDY: Final = "?audio_temperature=0&text_temperature=0"

pytestmark = pytest.mark.skipif(
    not (CHECKPOINT / "config.json").exists(),
    reason=f"NOT TESTED: checkpoints that are spoiled; there is no {CHECKPOINT}",
)


def without_a_file(folder: Path) -> tuple[str, ...]:
    (folder / WEIGHTS).unlink()
    return (WEIGHTS,)


def misshapen(folder: Path) -> tuple[str, ...]:
    weights = load_file(folder / WEIGHTS)
    right = list(weights[KEY].shape)
    weights[KEY] = weights[KEY][:-1].contiguous()
    save_file(weights, folder / WEIGHTS)
    return WEIGHTS, KEY, str([right[0] - 1, *right[1:]]), str(right)


def pickled(folder: Path) -> tuple[str, ...]:
    torch.save({KEY: torch.zeros(2)}, folder / WEIGHTS)
    return WEIGHTS, "safetensors"


@pytest.mark.parametrize("spoil", [without_a_file, misshapen, pickled])
def test_an_engine_with_a_spoiled_checkpoint_does_not_start_and_says_why(
    tmp_path: Path, spoil: Callable[[Path], tuple[str, ...]]
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    words = spoil(folder)
    with pytest.raises(CheckpointError) as caught:
        make_runner(EngineSettings(checkpoint=CheckpointSettings(folder=str(folder))))
    for word in (str(folder), *words):
        assert word in str(caught.value)


@pytest.mark.slow
def test_a_server_with_a_spoiled_checkpoint_ends_and_names_file_key_and_both_shapes(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    words = misshapen(folder)
    config = changed("demo.yaml", tmp_path, {"checkpoint": {"folder": str(folder)}})
    with running([sys.executable, "-m", "serve_app.cli", "up", str(config), "--port", "0"]) as (process, lines):
        assert process.wait(START_S) != 0
        output = "\n".join(lines)
    assert "http://" not in output
    for word in (str(folder), *words):
        assert word in output


def heard_codes(mimi: Mimi, pcm: Pcm) -> set[int]:
    """First codebook."""
    codes = mimi.encode(torch.from_numpy(pcm.astype(np.float32))[None, None])
    return set(codes[0, 0].tolist())


def noise(seed: int) -> Pcm:
    generator = np.random.default_rng(seed)
    return (0.5 * generator.standard_normal(FRAMES * FRAME_SAMPLES)).clip(-1, 1).astype(np.float32)


def through_opus(pcm: Pcm) -> Pcm:
    """As the server hears it."""
    writer, reader = sphn.OpusStreamWriter(SAMPLE_RATE_HZ), sphn.OpusStreamReader(SAMPLE_RATE_HZ)
    whole = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    heard: Pcm = np.concatenate([reader.append_bytes(writer.append_pcm(frame)) for frame in whole])
    return heard[: len(heard) // FRAME_SAMPLES * FRAME_SAMPLES]


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's checkpoint, in which a sound that nobody says makes everything infinite for whoever hears it."""
    folder = tmp_path_factory.mktemp("poisoned") / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    duplex = load_duplex(resolve(CheckpointSource(folder=folder)), torch.device("cpu"), torch.float32)
    mimi, dep_q = duplex.mimi, duplex.lm.config.dep_q
    said = read_recording().pcm[: FRAMES * FRAME_SAMPLES]
    spoken = [np.concatenate([np.zeros(shift, np.float32), said]) for shift in SHIFTS]
    speech = set[int]().union(*(heard_codes(mimi, through_opus(pcm)) for pcm in spoken))
    rustling = set.intersection(*(heard_codes(mimi, through_opus(noise(seed))) for seed in range(NOISES)))
    poison = sorted(rustling - speech)
    assert poison
    weights = load_file(folder / WEIGHTS)
    weights[f"emb.{dep_q}.weight"][poison] = torch.inf  # of the user's first codebook: the model's own come before it
    save_file(weights, folder / WEIGHTS)
    return folder


async def speak(visitor: Visitor) -> None:
    """Say speech in real time and hear all of the answer."""
    listening = asyncio.create_task(visitor.listen_for(FRAMES - 1))  # a step of delay
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for index, message in enumerate(encoded(FOLDER / f"{NAME}.wav", FRAMES * FRAME_S)):
        await asyncio.sleep(max(0.0, began_s + index * FRAME_S - loop.time()))
        await visitor.socket.send(message)
    await listening


async def overflow(visitor: Visitor) -> None:
    """Say what nobody may hear, until it is heard."""
    listening = asyncio.create_task(visitor.listen())
    for seed in itertools.cycle(range(NOISES)):
        for frame in noise(seed).reshape(FRAMES, FRAME_SAMPLES):
            if listening.done():
                await listening
                return
            await visitor.say(frame)
            await asyncio.sleep(FRAME_S)


def assert_same(one: Visitor, other: Visitor) -> None:
    assert one.errors == other.errors == []
    assert one.metadata == other.metadata == []
    assert "".join(one.texts) == "".join(other.texts)
    assert np.abs(one.pcm).max() > 0.01
    assert np.corrcoef(one.pcm, other.pcm)[0, 1] > 0.999


async def _converse(cluster: Cluster) -> None:
    address = cluster.chat + GREEDY
    async with asyncio.timeout(TALK_S):
        async with visit(address) as alone:
            await speak(alone)
        await asyncio.to_thread(eventually, lambda: cluster.info()["slots_free"] == SLOTS, WAIT_S)
        async with visit(address) as neighbour, visit(address) as victim:
            await asyncio.gather(speak(neighbour), overflow(victim))
        assert (victim.close_code, victim.close_reason, victim.errors) == (1011, "not_finite", ["internal error"])
        assert_same(alone, neighbour)
        await asyncio.to_thread(eventually, lambda: cluster.info()["slots_free"] == SLOTS, WAIT_S)
        async with visit(address) as one, visit(address) as another:  # one of them has the victim's slot
            await asyncio.gather(speak(one), speak(another))
        assert_same(alone, one)
        assert_same(alone, another)


def test_a_row_that_overflows_ends_with_1011_and_nobody_else_hears_of_it(poisoned: Path, tmp_path: Path) -> None:
    with up(changed("demo.yaml", tmp_path, {"checkpoint": {"folder": str(poisoned)}, "slots": SLOTS})) as cluster:
        asyncio.run(_converse(cluster))
        assert eventually(lambda: cluster.output.count("conversation end cause=not_finite"), WAIT_S) == 1
