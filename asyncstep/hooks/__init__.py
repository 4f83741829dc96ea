"""Stock hooks: what watches a session, each usable in one line."""

from asyncstep.hooks.signal import SignalHook

__all__ = ["SignalHook"]
