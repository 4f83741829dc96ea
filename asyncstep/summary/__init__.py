"""What people look at: summaries of a loop, as nodes, as values, and in files that TensorBoard reads.

nodes                 scalar, histogram, text and image as nodes of a graph
values                what such a node gives, and what else can be written
binning, png          arrays -> histograms and pictures (numpy)
writers               SummaryWriter, EventFileWriter, JSONLinesWriter
appender              the thread in which files are written
event_format, json_format  what is in the files
record, crc32c        how records stand in an event file
shared                one writer a directory for all the hooks of a process
"""

from __future__ import annotations

from asyncstep.summary.nodes import histogram, image, merge_all, scalar, text
from asyncstep.summary.values import Histogram, Image, Scalar, Summary, Text
from asyncstep.summary.writers import EventFileWriter, JSONLinesWriter, SummaryWriter

__all__ = [
    "EventFileWriter",
    "Histogram",
    "Image",
    "JSONLinesWriter",
    "Scalar",
    "Summary",
    "SummaryWriter",
    "Text",
    "histogram",
    "image",
    "merge_all",
    "scalar",
    "text",
]
