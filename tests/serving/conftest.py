"""One cluster for all tests of this folder that can share one: starting one takes longer than the tests."""

from collections.abc import Iterator

import pytest

from tests.serving.cluster import Cluster, changed, up

SLOTS = 3
SILENCE_S = 4.0


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The pass-through engine behind HAProxy, as ``serve_app up`` starts it, with few slots and little patience."""
    folder = tmp_path_factory.mktemp("cluster")
    config = changed("passthrough.yaml", folder, {"slots": SLOTS}, {"silence_s": SILENCE_S})
    with up(config) as cluster:
        yield cluster
