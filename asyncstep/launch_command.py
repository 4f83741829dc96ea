"""The command ``asyncstep launch``, and what it shares with the demo: a launch whose errors a terminal can show."""

from __future__ import annotations

import importlib
import inspect
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

import click

from asyncstep.errors import Error
from asyncstep.terminal import print_lines

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import ModuleType

    from asyncstep.distributed import TaskInfo

    Program = Callable[[TaskInfo], Awaitable[Any]]


@click.command("launch")
@click.argument("program", metavar="MODULE:PROGRAM")
@click.option("--workers", type=click.IntRange(min=1), required=True, help="How many programs there are.")
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="The address of a Dask scheduler, such as tcp://host:8786. Without it: processes of this machine.",
)
@click.option(
    "--backend",
    type=click.Choice(["asyncio", "uvloop", "trio"]),
    default="asyncio",
    show_default=True,
    help="The event loop that each program runs on.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds after which the programs are cancelled.",
)
def launch_command(
    program: str, workers: int, cluster: str | None, backend: str, timeout: float | None
) -> None:
    """Run PROGRAM of MODULE, an async function of a TaskInfo, once on each worker of a Dask cluster.

    MODULE is found from this directory, too; the workers of the cluster need not have it. What the programs return
    is printed, a line for each that returns something. The first Ctrl-C or SIGTERM stops their sessions, and is no
    error; the second cancels them.
    """
    function = found(program)
    if cluster is not None:
        send_by_value(sys.modules[function.__module__])
    try:
        results, received = run_launched(function, cluster, workers=workers, backend=backend, timeout=timeout)
    except (Exception, BaseExceptionGroup) as error:
        tracebacks = list(_tracebacks(error))
        if tracebacks:
            for text in tracebacks:
                click.echo(text.strip(), err=True)
            sys.exit(1)
        if isinstance(error, Error):
            raise click.ClickException(str(error)) from error
        raise
    print_lines([f"{index}: {result!r}" for index, result in enumerate(results) if result is not None])
    if received is not None:
        click.echo(f"Stopped by {received.name}.", err=True)


def found(program: str) -> Program:
    """The async function that ``MODULE:PROGRAM`` names."""
    module_name, colon, name = program.partition(":")
    if not (module_name and colon and name):
        raise click.BadParameter(
            f"{program!r} is not of the form MODULE:PROGRAM", param_hint="MODULE:PROGRAM"
        )
    here = str(Path.cwd())
    if here not in sys.path:  # the script of the command has another directory there, `python -m` this one
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there, and what it imports is not
        raise click.BadParameter(
            f"there is no module {error.name!r}, neither in {here} nor installed", param_hint="MODULE:PROGRAM"
        ) from None
    function: Any = module
    for part in name.split("."):
        function = getattr(function, part, None)
    if not inspect.iscoroutinefunction(function):
        what = "nothing of that name" if function is None else f"{type(function).__name__} {name!r}"
        raise click.BadParameter(
            f"{program!r} must name an async function of a TaskInfo; {module_name!r} has {what}",
            param_hint="MODULE:PROGRAM",
        )
    return function  # type: ignore[no-any-return]


def send_by_value(module: ModuleType) -> None:
    """Have cloudpickle send what is defined in a module, and in others of its directory, as it is defined.

    What is installed is imported by the processes that it is sent to; a module of this directory is only here.
    """
    import cloudpickle

    if is_installed(module):
        return
    root = _root(module)
    for other in list(sys.modules.values()):
        file = getattr(other, "__file__", None)
        if file and Path(file).resolve().is_relative_to(root) and not is_installed(other):
            cloudpickle.register_pickle_by_value(other)


def _root(module: ModuleType) -> Path:
    """The directory that a module is found in, or the package that it is a part of."""
    assert module.__file__ is not None
    depth = module.__name__.count(".") + hasattr(module, "__path__")
    return Path(module.__file__).resolve().parents[depth]


def is_installed(module: ModuleType) -> bool:
    """Whether a module is in one of the directories that Python and pip install into, or is asyncstep."""
    if module.__name__.partition(".")[0] == "asyncstep" or module.__file__ is None:
        return True
    directories = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    file = Path(module.__file__).resolve()
    return any(file.is_relative_to(Path(each).resolve()) for each in directories if each)


def run_launched(
    program: Program, cluster: str | None, *, workers: int, backend: str, timeout: float | None = None
) -> tuple[list[Any], Signals | None]:
    """Launch a program for a command: what all have returned, and the signal that has stopped them, if one has.

    Raises:
        ClickException: something is not installed.
        SystemExit: a second signal has ended it.
        Exception: as `launch` does.
    """
    if backend != "asyncio" and find_spec(backend) is None:
        raise click.ClickException(f"{backend} is not installed; try: pip install 'asyncstep[{backend}]'")
    try:
        from asyncstep.distributed.signalled import launch_until_signal

        return launch_until_signal(program, cluster, workers=workers, backend=backend, timeout=timeout)
    except KeyboardInterrupt as interrupt:
        sys.exit(128 + (interrupt.args[0] if interrupt.args else Signals.SIGINT))
    except ImportError as error:
        if find_spec("distributed") is None:
            raise click.ClickException(str(error)) from error
        raise


def _tracebacks(error: BaseException) -> Iterator[str]:
    """Where the programs were that have raised an error of `launch`; none if it is one of `launch` itself."""
    from asyncstep.distributed.outcome import RemoteTraceback

    if isinstance(error.__cause__, RemoteTraceback):
        yield str(error.__cause__)
    elif isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _tracebacks(each)
