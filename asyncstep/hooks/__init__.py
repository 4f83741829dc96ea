"""Hooks that watch a session, each usable in one line: ``MonitoredSession(hooks=[StopAtStepHook(1000)])``.

They do what TensorFlow's hooks of the same names do. Where something is done every so often, the interval
is given in steps, seconds, or both (whichever is over first), and the first step is always one of those.
"""

from __future__ import annotations

from asyncstep.hooks.checkpoint import CheckpointSaverHook, CheckpointSaverListener
from asyncstep.hooks.early_stopping import EarlyStoppingHook
from asyncstep.hooks.evaluator import EvaluatorHook
from asyncstep.hooks.feed_fn import FeedFnHook
from asyncstep.hooks.final_ops import FinalOpsHook
from asyncstep.hooks.functions import on_step
from asyncstep.hooks.log import LoggingHook
from asyncstep.hooks.nan import NanHook
from asyncstep.hooks.open_telemetry import OpenTelemetryHook
from asyncstep.hooks.profiler import ProfilerHook, TraceHook
from asyncstep.hooks.progress import ProgressHook
from asyncstep.hooks.prometheus import PrometheusHook
from asyncstep.hooks.signal import SignalHook
from asyncstep.hooks.step_counter import StepCounterHook
from asyncstep.hooks.step_waiter import GlobalStepWaiterHook
from asyncstep.hooks.stop_at_step import StopAtStepHook
from asyncstep.hooks.summary_saver import SummarySaverHook
from asyncstep.hooks.thread import ThreadHook
from asyncstep.hooks.timer import SecondOrStepTimer

__all__ = [
    "CheckpointSaverHook",
    "CheckpointSaverListener",
    "EarlyStoppingHook",
    "EvaluatorHook",
    "FeedFnHook",
    "FinalOpsHook",
    "GlobalStepWaiterHook",
    "LoggingHook",
    "NanHook",
    "OpenTelemetryHook",
    "ProfilerHook",
    "ProgressHook",
    "PrometheusHook",
    "SecondOrStepTimer",
    "SignalHook",
    "StepCounterHook",
    "StopAtStepHook",
    "SummarySaverHook",
    "ThreadHook",
    "TraceHook",
    "on_step",
]
