"""From what a deployment says of its checkpoint to where that is. No torch: asked before anything starts."""

from pathlib import Path

from serve_app.checkpoint.source import CheckpointSource
from serve_app.config import CheckpointSettings
from serve_app.registry import located


def source_of(settings: CheckpointSettings) -> CheckpointSource:
    """The checkpoint that a deployment names.

    Raises:
        CheckpointError: as `CheckpointSource`.
        ConfigError: a model that nobody knows, or that cannot be served.
    """
    settings = located(settings)
    folder = None if settings.folder is None else Path(settings.folder)
    return CheckpointSource(folder=folder, repository=settings.repository, revision=settings.revision)
