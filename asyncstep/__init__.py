"""asyncstep runs long async loops that people watch, stop, kill and resume.

The package is a house of floors; imports point up the list only:

    errors        the errors, and the stop
    _graph        what is computed: graphs, nodes, ops, variables
    _runtime      how one step is evaluated and committed: plans, the executor, transactions
    checkpoint    what survives: writing, finding and reading it
    data          where items come from
    _monitored    how a loop lives, stops, recovers and ends
    summary       what people look at
    hooks         what watches it
    training      the stock pieces, put together
    cli           the command
    testing       for the tests of programs like yours; the others do not know it

Nothing is defined here; these are the public names.
"""

from asyncstep._graph.graph import Graph, get_default_graph
from asyncstep._graph.node import MISSING, Node, group, placeholder
from asyncstep._graph.op import op
from asyncstep._graph.variable import Variable, create_global_step, get_global_step, get_or_create_global_step
from asyncstep._monitored.coordinator import Coordinator
from asyncstep._monitored.creators import (
    ChiefSessionCreator,
    Scaffold,
    SessionCreator,
    WorkerSessionCreator,
)
from asyncstep._monitored.hook import ALL, SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues
from asyncstep._monitored.recovery import Recovery
from asyncstep._monitored.session import MonitoredSession, SingularMonitoredSession
from asyncstep._monitored.step import StepContext
from asyncstep._monitored.stop import StopKind, StopReason
from asyncstep._runtime.options import RunMetadata, RunOptions
from asyncstep._runtime.session import Session
from asyncstep.data import source
from asyncstep.errors import (
    AbortedError,
    DataLossError,
    DeadlineExceededError,
    Error,
    FailedPreconditionError,
    InvalidArgumentError,
    NanLossError,
    NotFoundError,
    OutOfRangeError,
    SessionClosedError,
    StopRequested,
    UnavailableError,
)
from asyncstep.training import MonitoredTrainingSession

__all__ = [
    "ALL",
    "MISSING",
    "AbortedError",
    "ChiefSessionCreator",
    "Coordinator",
    "DataLossError",
    "DeadlineExceededError",
    "Error",
    "FailedPreconditionError",
    "Graph",
    "InvalidArgumentError",
    "MonitoredSession",
    "MonitoredTrainingSession",
    "NanLossError",
    "Node",
    "NotFoundError",
    "OutOfRangeError",
    "Recovery",
    "RunMetadata",
    "RunOptions",
    "Scaffold",
    "Session",
    "SessionClosedError",
    "SessionCreator",
    "SessionRunArgs",
    "SessionRunContext",
    "SessionRunHook",
    "SessionRunValues",
    "SingularMonitoredSession",
    "StepContext",
    "StopKind",
    "StopReason",
    "StopRequested",
    "UnavailableError",
    "Variable",
    "WorkerSessionCreator",
    "create_global_step",
    "get_default_graph",
    "get_global_step",
    "get_or_create_global_step",
    "group",
    "op",
    "placeholder",
    "source",
]
