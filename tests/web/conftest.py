from collections.abc import Iterator

import pytest

from load_tests.speech import voice
from serve_app.client.wav import write_wav
from tests.web.browser import Browser


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests, a tab for each; its microphone hears a voice."""
    microphone = tmp_path_factory.mktemp("microphone") / "voice.wav"
    write_wav(microphone, voice(8.0))
    with Browser.launched(microphone=microphone) as browser:
        yield browser
