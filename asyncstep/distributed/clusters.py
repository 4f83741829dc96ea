"""Which cluster a job runs on, and the connection to it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import dask
from distributed import Client, LocalCluster
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.deploy import Cluster

from asyncstep.distributed.deaf import deaf_loop, deaf_plugin
from asyncstep.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidTypeError,
    UnavailableError,
    kind_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed.utils import LoopRunner


def check_cluster(cluster: Any) -> None:
    """Check the argument `cluster` of `launch`.

    Raises:
        InvalidTypeError: it is none of those that `launch` takes.
        InvalidArgumentError: it is a string that is no address.
    """
    if isinstance(cluster, Client | Cluster) and cluster.asynchronous:
        raise InvalidTypeError(
            f"launch needs a cluster that is not asynchronous: give it the scheduler's address, or {kind_of(cluster)}"
            " that was made without asynchronous=True"
        )
    if not (cluster is None or isinstance(cluster, str | Client | Cluster)):
        raise InvalidTypeError(
            "cluster must be None, the address of a Dask scheduler, a Dask client or a Dask cluster,"
            f" not {kind_of(cluster)}"
        )
    if isinstance(cluster, str):
        try:
            scheme, location = parse_address(cluster)
            if scheme != "inproc":
                parse_host_port(location)
        except ValueError as error:
            raise InvalidArgumentError(
                f"cluster must be the address of a Dask scheduler, such as tcp://host:8786, not {cluster!r}: {error}"
            ) from None


@contextmanager
def connected(cluster: Any, workers: int) -> Iterator[Client]:
    """A client of a cluster that `check_cluster` has accepted; what is made for it is closed at the end.

    Raises:
        UnavailableError: it cannot be reached, or not be started.
    """
    if isinstance(cluster, Client):
        yield cluster
    elif cluster is None:
        with (
            # So long after a process has died a local cluster forgets the one in its place, if that is not there then,
            # as it happens when it has died, too.
            dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"}),
            deaf_loop() as runner,
            _ended(_local_cluster(workers, runner)) as local,
            Client(local, set_as_default=False) as client,
        ):
            yield client
    else:
        with _client(cluster) as client:
            yield client


def _client(cluster: str | Cluster) -> Client:
    try:
        return Client(cluster, set_as_default=False)
    except (OSError, ValueError) as error:
        address = cluster if isinstance(cluster, str) else cluster.scheduler_address
        raise UnavailableError(f"no Dask scheduler could be reached at {address}: {error}") from error


@contextmanager
def _ended(local: LocalCluster) -> Iterator[LocalCluster]:
    """Close a cluster of processes, which end also where the closing is interrupted."""
    try:
        with local:
            yield local
    except BaseException:
        for process in list(local.workers.values()):
            if process.pid is not None:
                os.kill(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        raise


def _local_cluster(workers: int, runner: LoopRunner) -> LocalCluster:
    """Processes on this machine, as many as it has processors, but not more than there are programs."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise FailedPreconditionError(
            "launch starts processes that import the main module again, and so came here again: call it under"
            ' if __name__ == "__main__":'
        )
    processes = min(workers, os.cpu_count() or 1)
    # In a thread, because half a cluster cannot be closed: who is interrupted here waits until it is whole.
    with ThreadPoolExecutor(1) as thread:
        starting = thread.submit(
            LocalCluster,
            n_workers=processes,
            threads_per_worker=-(-workers // processes),
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # a free port; the usual one may be another's
            silence_logs=logging.ERROR,
            loop=runner.loop,
            plugins=(deaf_plugin(),),
        )
        try:
            return starting.result()
        except (OSError, RuntimeError) as error:
            raise UnavailableError(
                "the processes of a local cluster could not be started; is launch called under"
                f' if __name__ == "__main__": ? ({error})'
            ) from error
        except BaseException:
            starting.result().close()
            raise
