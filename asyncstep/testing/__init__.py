"""For the tests of your own loops: a recording hook, and a state that can be lost.

recording     a hook that writes down what it is told
losable       a session whose state is lost when the test says so
fixtures      some of it as pytest fixtures: ``pytest_plugins = ["asyncstep.testing.fixtures"]``

Nothing here imports pytest, but `asyncstep.testing.fixtures`.
"""

from asyncstep.testing.losable import LosableSessionCreator
from asyncstep.testing.recording import HookCall, RecordingHook

__all__ = ["HookCall", "LosableSessionCreator", "RecordingHook"]
