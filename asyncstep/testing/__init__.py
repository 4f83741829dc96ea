"""For the tests of your own loops: a recording hook, a state that can be lost, virtual time, injected faults.

recording     a hook that writes down what it is told
losable       a session whose state is lost when the test says so
virtual_time  sleeps and timeouts that take no time (trio_clock: ... on trio; elsewhere: what is waited for)
faults        an op that fails, a step that is cancelled, a checkpoint that cannot be written (raising: by which error)
fixtures      some of it as pytest fixtures: ``pytest_plugins = ["asyncstep.testing.fixtures"]``

Nothing here imports pytest, but `asyncstep.testing.fixtures`.
"""

from asyncstep.testing.faults import cancel_at, fail_op, fail_write
from asyncstep.testing.losable import LosableSessionCreator
from asyncstep.testing.recording import HookCall, RecordingHook
from asyncstep.testing.virtual_time import run_in_virtual_time, virtual_backend

__all__ = [
    "HookCall",
    "LosableSessionCreator",
    "RecordingHook",
    "cancel_at",
    "fail_op",
    "fail_write",
    "run_in_virtual_time",
    "virtual_backend",
]
