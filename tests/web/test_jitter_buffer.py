"""The page's jitter buffer, in the browser that will run it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.client.echo import EchoServer
from tests.client.loop import in_loop
from tests.web.browser import CHROMIUM, Browser

WEB = Path(__file__).parents[2] / "web"
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"NOT TESTED: the page; there is no {CHROMIUM}")

RUN = """
import('./jitter-buffer.js').then(({ JitterBuffer }) => {
  const buffer = new JitterBuffer(1000);
  let next = 1;
  const played = [];
  const pull = (ms) => { const out = new Float32Array(ms); buffer.pull(out); played.push(...out); };
  const push = (ms) => buffer.push(Float32Array.from({ length: ms }, () => next++));
  for (const [what, ms] of STEPS) (what === 'push' ? push : pull)(ms);
  const { underruns, droppedSamples, slackMs, bufferedMs } = buffer;
  return { played, underruns, droppedSamples, slackMs, bufferedMs };
})
"""


async def run(browser: Browser, *steps: tuple[str, int]) -> dict[str, Any]:
    """Pushes and pulls of so many ms, one sample a ms, numbered from 1; what came out."""
    async with EchoServer(folder=WEB).running() as server, browser.page(server.url) as page:
        result: dict[str, Any] = await page.evaluate(RUN.replace("STEPS", json.dumps(steps)))
        return result


@in_loop
async def test_sound_starts_after_a_block_and_a_little_slack(browser: Browser) -> None:
    result = await run(browser, ("push", 40), ("pull", 20), ("push", 40), ("pull", 20))
    assert result["played"] == [0] * 20 + [0] * 10 + list(range(1, 11))


@in_loop
async def test_steady_sound_plays_every_sample_once(browser: Browser) -> None:
    steps = [step for _ in range(20) for step in (("push", 80), ("pull", 80))]
    result = await run(browser, *steps)
    assert [sample for sample in result["played"] if sample] == list(range(1, 20 * 80 - 9))
    assert (result["underruns"], result["droppedSamples"]) == (0, 0)


@in_loop
async def test_running_dry_makes_the_slack_grow(browser: Browser) -> None:
    result = await run(browser, ("push", 80), ("pull", 100), ("push", 80), ("pull", 40))
    assert result["underruns"] == 1
    assert result["slackMs"] == 30
    assert result["played"][-40:] == [0] * 30 + list(range(81, 91))


@in_loop
async def test_slack_has_a_bound(browser: Browser) -> None:
    steps = [step for _ in range(20) for step in (("push", 80), ("pull", 400))]
    assert (await run(browser, *steps))["slackMs"] == 160


@in_loop
async def test_sound_that_piles_up_is_dropped_down_to_the_target(browser: Browser) -> None:
    result = await run(browser, ("push", 80), ("push", 80), ("push", 80), ("pull", 250))
    assert result["droppedSamples"] == 150
    heard = [sample for sample in result["played"] if sample]
    assert heard[:5] == pytest.approx([1 + i + 150 * (i + 1) / 6 for i in range(5)])  # from the old into the new
    assert heard[5:] == list(range(156, 241))
