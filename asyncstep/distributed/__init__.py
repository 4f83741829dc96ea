"""Many machines: the same program on a Dask cluster.

``launch(program, workers=8)`` runs it in processes of this machine, ``launch(program, "tcp://scheduler:8786",
workers=8)`` on a cluster. Needs ``pip install 'asyncstep[dask]'``.
"""

from __future__ import annotations

from asyncstep.hooks.extras import require

require("distributed", "dask")

from asyncstep.distributed.launching import alaunch, launch  # noqa: E402
from asyncstep.distributed.task import TaskInfo  # noqa: E402

__all__ = ["TaskInfo", "alaunch", "launch"]
