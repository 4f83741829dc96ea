"""What survives: checkpoints on disk, how they are written, found, checked, read and deleted.

registry, standard_types   which types a checkpoint can hold
encoding, decoding, arrays any value <-> a tree of plain values, with arrays beside it
tensor_file, manifest      what the files look like
hashing                    checksums on the way
directory                  where checkpoints are kept: the seam
local, lock, file_system   ... in a directory of the file system
objects, lease             ... in an object store (object_errors: what goes wrong there)
state, writing             saving
reading, listing           reading, checking, finding
outline                    showing it
retention                  which are kept
"""

from asyncstep.checkpoint.directory import ObjectPath
from asyncstep.checkpoint.listing import CheckpointInfo, latest_checkpoint, list_checkpoints
from asyncstep.checkpoint.reading import Checkpoint, read_checkpoint, verify_checkpoint
from asyncstep.checkpoint.registry import register
from asyncstep.checkpoint.retention import KeepBest
from asyncstep.checkpoint.saver import Saver

__all__ = [
    "Checkpoint",
    "CheckpointInfo",
    "KeepBest",
    "ObjectPath",
    "Saver",
    "latest_checkpoint",
    "list_checkpoints",
    "read_checkpoint",
    "register",
    "verify_checkpoint",
]
