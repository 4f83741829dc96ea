"""For the tests of your own loops: a recording hook, a state that can be lost, and virtual time.

recording     a hook that writes down what it is told
losable       a session whose state is lost when the test says so
virtual_time  sleeps and timeouts that take no time (trio_clock: ... on trio)
fixtures      some of it as pytest fixtures: ``pytest_plugins = ["asyncstep.testing.fixtures"]``

Nothing here imports pytest, but `asyncstep.testing.fixtures`.
"""

from asyncstep.testing.losable import LosableSessionCreator
from asyncstep.testing.recording import HookCall, RecordingHook
from asyncstep.testing.virtual_time import run_in_virtual_time, virtual_backend

__all__ = [
    "HookCall",
    "LosableSessionCreator",
    "RecordingHook",
    "run_in_virtual_time",
    "virtual_backend",
]
