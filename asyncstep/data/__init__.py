"""Where items come from: sources, and how far they are."""

from asyncstep._runtime.state import SourceState
from asyncstep.data.queue import Queue, queue
from asyncstep.data.source import Source, source

__all__ = ["Queue", "Source", "SourceState", "queue", "source"]
