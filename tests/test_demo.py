"""The main job: what it counts is what a plain loop over the same files counts, however it is run."""

from __future__ import annotations

import os
import sys
import tokenize
from collections import Counter
from functools import reduce
from itertools import pairwise
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from asyncstep import demo
from asyncstep.checkpoint import list_checkpoints
from asyncstep.cli import python_files
from asyncstep.hooks import StopAtStepHook

if TYPE_CHECKING:
    from pathlib import Path

GOOD = {
    "app.py": "import os\n\n\ndef main(args):\n    return os.path.join(*args)\n\n\n"
    "class App:\n    async def run(self): ...\n",
    "empty.py": "",
    "no_newline.py": "a = b",
    "pkg/__init__.py": "",
    "pkg/twin_one.py": "first = second\n",
    "pkg/twin_two.py": "third_ = fourth\n"[:15],
    "pkg/deep/er/matching.py": "match x:\n    case type():\n        lambda: None\n",
}
LATIN = b"# -*- coding: latin-1 -*-\ncaf\xe9 = 'cr\xe8me'\n"
BAD = {
    "bad/bytes.py": (b"x = '\xff'\nname = 1\n", "SyntaxError: invalid or missing encoding declaration"),
    "bad/cookie.py": (b"# coding: no-such-encoding\nx = 1\n", "SyntaxError: unknown encoding"),
    "bad/codec.py": (b"# coding: hex\nx = 1\n", "hex"),
    "bad/dedent.py": (b"if x:\n        y\n    z\n", "IndentationError: unindent"),
    "bad/unclosed.py": (b"call(1,\n", "TokenError: "),
}
BROKEN = ("bad/broken_link.py", "bad/link_to_itself.py")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree with all that a big one has: odd encodings, files that are no Python, links in circles."""
    content = {name: text.encode() for name, text in GOOD.items()} | {"pkg/latin.py": LATIN}
    content |= {name: data for name, (data, _) in BAD.items()}
    content |= {f"many/n{n:02}.py": f"def f{n % 7}(): return {n}\n".encode() * n for n in range(30)}
    content |= {"notes.txt": b"def no(): ...", "lib/site-packages/installed.py": b"def no(): ...\n"}
    for name, data in content.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "pkg/loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "bad/broken_link.py").symlink_to("nowhere.py")
    (tmp_path / "bad/link_to_itself.py").symlink_to("link_to_itself.py")
    (tmp_path / "pkg/a_directory.py").mkdir()
    return tmp_path


def plain_count(root: Path) -> dict[str, Any]:
    """The reference: one file after the other, without asyncstep."""
    sums = dict.fromkeys(("files", "bytes", "lines", "tokens", "functions", "classes"), 0)
    names: Counter[str] = Counter()
    sizes, failed = [], []
    for folder, _, files in os.walk(root):
        for file in files:
            path = os.path.relpath(os.path.join(folder, file), root)
            if not file.endswith(".py") or "site-packages" in path:
                continue
            try:
                with open(os.path.join(root, path), "rb") as stream:
                    tokens = list(tokenize.tokenize(stream.readline))
            except (OSError, SyntaxError, tokenize.TokenError, UnicodeError, LookupError):
                failed.append(path)
                continue
            size = os.path.getsize(os.path.join(root, path))
            words = [token.string for token in tokens if token.type == tokenize.NAME]
            sizes.append((-size, path))
            names.update(word for word in words if not iskeyword(word))
            sums["files"] += 1
            sums["bytes"] += size
            with open(os.path.join(root, path), "rb") as stream:
                sums["lines"] += sum(1 for _ in stream)
            sums["tokens"] += len(tokens)
            sums["functions"] += words.count("def")
            sums["classes"] += words.count("class")
    return {**sums, "names": names, "largest": sorted(sizes)[:10], "failed": sorted(failed)}


def comparable(values: dict[str, Any]) -> dict[str, Any]:
    """The values of the demo's variables in the form of `plain_count`."""
    return {
        **{what: values[what] for what in demo.SUMS},
        "names": sum(values["names"], Counter()),
        "largest": list(values["largest"]),
        "failed": [path for path, _ in values["failed"]],
    }


@pytest.mark.anyio
@pytest.mark.parametrize("workers", [1, 8])
async def test_every_way_to_run_it_counts_what_a_plain_loop_counts(tree: Path, workers: int) -> None:
    """One worker or eight, on any event loop: the same totals, names, largest files and failures."""
    values, reason = await demo.count(tree, python_files(tree), workers=workers)
    assert comparable(values) == plain_count(tree)
    assert reason is not None
    assert reason.kind == "end_of_data"


@pytest.mark.anyio
@pytest.mark.parametrize("workers", [1, 8])
async def test_stopped_and_gone_on_with_it_counts_the_same(
    tree: Path, tmp_path_factory: Any, workers: int
) -> None:
    """K4: after each stop the next run goes on from the checkpoint; in the end every file counts once."""
    files, directory = python_files(tree), tmp_path_factory.mktemp("checkpoints")
    for last in (7, 20, 31):
        _, reason = await demo.count(
            tree, files, workers=workers, hooks=[StopAtStepHook(last_step=last)], directory=directory
        )
        assert reason is not None
        assert reason.kind == "hook"
    values, _ = await demo.count(tree, files, workers=workers, directory=directory)
    assert comparable(values) == plain_count(tree)
    assert list_checkpoints(directory)[-1].step == len(files)


@pytest.mark.anyio
async def test_no_files_are_counted_as_nothing(tmp_path: Path) -> None:
    """An empty directory is no error: the data has ended before the first step."""
    values, _ = await demo.count(tmp_path, python_files(tmp_path))
    assert comparable(values) == plain_count(tmp_path)


def test_the_files_are_in_order_and_without_installed_packages(tree: Path) -> None:
    """Sorted paths from the root: the same on every machine; directories and links to them are no files."""
    paths = python_files(tree)
    assert paths == sorted({*GOOD, *BAD, *BROKEN, "pkg/latin.py", *(f"many/n{n:02}.py" for n in range(30))})


def test_a_directory_that_cannot_be_read_is_in_the_list(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in it cannot be counted, so it has to be named among what was not."""
    scan = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("pkg"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    paths = python_files(tree)
    assert "pkg" in paths
    assert "pkg/latin.py" not in paths
    assert examine(tree, "pkg").error == "not a file that can be read"


def examine(root: Path, path: str) -> demo.Found:
    """What the op does, here instead of in a worker process."""
    found: demo.Found = demo.examine.function(root, path)
    return found


@pytest.mark.parametrize("path", BAD)
def test_a_file_that_does_not_tokenize_says_why(tree: Path, path: str) -> None:
    """Bad bytes, unknown encodings and bad syntax are found, not raised, and nothing of the file counts."""
    found = examine(tree, path)
    assert found.error is not None
    assert BAD[path][1] in found.error
    assert (found.path, found.sums, found.names) == (path, {}, {})


@pytest.mark.parametrize("path", BROKEN)
def test_a_link_to_nothing_is_not_a_file(tree: Path, path: str) -> None:
    """A link that leads nowhere, or to itself, is named and does no harm."""
    assert examine(tree, path).error == "not a file that can be read"


def test_a_file_that_may_not_be_read_says_so(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the system's own words."""

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    assert str(examine(tree, "app.py").error).startswith("PermissionError: [Errno 13] Permission denied")


def test_a_pipe_is_not_waited_for(tree: Path) -> None:
    """Something that is not a regular file is not opened: to read a pipe would never end."""
    os.mkfifo(tree / "pipe.py")
    assert examine(tree, "pipe.py").error == "not a file that can be read"


def test_what_is_in_a_file(tree: Path) -> None:
    """`async def` is a function, keywords are not names, soft keywords are."""
    found = examine(tree, "app.py")
    assert (found.sums["functions"], found.sums["classes"], found.sums["lines"]) == (2, 1, 9)
    assert found.names == {"os": 2, "main": 1, "args": 2, "path": 1, "join": 1, "App": 1, "run": 1, "self": 1}
    assert examine(tree, "pkg/deep/er/matching.py").names == {"match": 1, "x": 1, "case": 1, "type": 1}


FOUND = st.builds(
    demo.Found,
    path=st.text("abc", min_size=1),
    sums=st.fixed_dictionaries({"bytes": st.integers(0, 3)}),
    names=st.dictionaries(st.text("abcd", max_size=3), st.integers(1, 9)),
    error=st.none() | st.just("SyntaxError: bad"),
)


@given(found=st.lists(FOUND, unique_by=lambda one: one.path), data=st.data())
def test_the_order_of_the_files_does_not_matter(found: list[demo.Found], data: st.DataObject) -> None:
    """With many workers the files are folded in any order; ties included, the values are the same."""
    other = data.draw(st.permutations(found))
    for fold in (demo.keep_largest, demo.keep_failed):
        assert reduce(fold, found, ()) == reduce(fold, other, ())
    assert sum(reduce(demo.add_names, found, ()), Counter()) == sum(
        (Counter(one.names) for one in other), Counter()
    )


@given(found=st.lists(FOUND))
def test_adding_names_changes_no_old_value(found: list[demo.Found]) -> None:
    """The values of variables are immutable, and the parts stay few: each is under half of the last."""
    parts: tuple[Counter[str], ...] = ()
    for one in found:
        before = [dict(part) for part in parts]
        parts, old = demo.add_names(parts, one), parts
        assert [dict(part) for part in old] == before
        assert all(len(a) > 2 * len(b) for a, b in pairwise(parts))


@pytest.mark.anyio
async def test_progress_is_a_line_now_and_then(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Away from a terminal: a line for the first file and one for the last."""
    files = python_files(tree)
    await demo.count(tree, files, hooks=[demo.progress(len(files))])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"step 1 of {len(files)}, ")
    assert lines[-1].startswith(f"step {len(files)} of {len(files)}, 100%, ")


@pytest.mark.anyio
async def test_without_rich_there_is_a_line_too(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo needs no extra, on a terminal either: it says how far it is in plain lines."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    files = python_files(tree)
    await demo.count(tree, files, hooks=[demo.progress(len(files))])
    assert capsys.readouterr().err.splitlines()[0].split() == ["1", "of", str(len(files)), "files"]
