"""ImageNet in shards: parquet as data set hubs lay it out, tar as the webdataset convention has it.

Images are read in any order, and processes do not disturb each other after a fork.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsa_study.data.cifar import cache_folder
from lsa_study.data.index import SUFFIXES, Found, canonical
from lsa_study.data.paths import DataLacks

OPEN_FILES = 256
"""Of one process at a time; systems allow about a thousand."""
Rows = NDArray[np.int64]


# -- tar -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Members:
    """Images in tar shards, read by their offset."""

    root: Path
    paths: tuple[Path, ...]
    members: NDArray[np.bytes_]
    spots: Rows
    """(N, 3): shard, offset, size."""

    def read(self, place: int) -> bytes:
        """A member's content."""
        shard, offset, size = self.spots[place].tolist()
        content = os.pread(_opened(self.paths[shard]).number, size, offset)
        if len(content) < size:
            raise OSError(f"the shard ends after {len(content)} of {size} bytes")
        return content

    def where(self, place: int) -> str:
        """Shard and member."""
        return f"{self.paths[self.spots[place, 0]]}: {os.fsdecode(self.members[place])}"


def find_in_tar(root: Path, paths: tuple[Path, ...]) -> Found:
    """List the members ``key.jpg`` and their classes, ``key.cls``.

    Listing reads every header once; it is kept in the user's cache until a shard changes.

    Raises:
        DataLacks: a shard is damaged, or an image has no class.
    """
    kept = _kept(paths)
    if kept is None:
        kept = _index(paths)
        _keep(paths, kept)
    members: NDArray[np.bytes_] = kept["members"]
    names = [canonical(os.fsdecode(member)) for member in members]
    return Found(Members(root, paths, members, kept["spots"]), kept["labels"], names)


class _Descriptor:
    """An open file, closed when nobody wants it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(maxsize=OPEN_FILES)
def _opened(path: Path) -> _Descriptor:
    # Read by pread, which moves no offset: processes may share what was open at the fork.
    return _Descriptor(path)


def _index(paths: tuple[Path, ...]) -> dict[str, NDArray[Any]]:
    rows = [(n, *row) for n, path in enumerate(paths) for row in _members(path)]
    spots = np.array([(n, offset, size) for n, _, _, offset, size in rows], np.int64)
    return {
        "members": np.array([os.fsencode(member) for _, member, _, _, _ in rows]),
        "labels": np.array([label for _, _, label, _, _ in rows], np.int64),
        "spots": spots.reshape(-1, 3),
    }


def _members(path: Path) -> Iterator[tuple[str, int, int, int]]:
    """Name, class, offset and size of every image of a shard."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                name = PurePosixPath(member.name)
                key = str(name.with_suffix(""))
                if name.suffix.lower() in SUFFIXES:
                    images[key] = member
                elif name.suffix == ".cls":
                    labels[key] = _label(path, shard, member)
    except (OSError, tarfile.TarError) as error:
        raise DataLacks(f"{path}: is no whole tar file ({error}); fetch it again") from error
    for key, member in images.items():
        if key not in labels:
            raise DataLacks(
                f"{path}: {member.name} has no class; wanted is a member {key}.cls that holds its "
                "number"
            )
        yield member.name, labels[key], member.offset_data, member.size


def _label(path: Path, shard: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = shard.extractfile(member)
    words = file.read().decode("ascii", "replace").strip() if file is not None else ""
    if not words.isdigit():
        raise DataLacks(f"{path}: {member.name} holds {words[:20]!r}; wanted is a class's number")
    return int(words)


def _cache_file(paths: tuple[Path, ...]) -> Path:
    states = [(str(p.resolve()), (s := p.stat()).st_size, s.st_mtime_ns) for p in paths]
    key = hashlib.sha256(repr(states).encode()).hexdigest()[:16]
    return cache_folder() / f"tar-{key}.npz"


def _kept(paths: tuple[Path, ...]) -> dict[str, NDArray[Any]] | None:
    try:
        with np.load(_cache_file(paths)) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError):
        return None


def _keep(paths: tuple[Path, ...], index: dict[str, NDArray[Any]]) -> None:
    path = _cache_file(paths)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    # A cache that cannot be written costs time at the next start, never a run.
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                np.savez(file, allow_pickle=False, **index)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


# -- parquet -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Images in the row groups of parquet shards; a whole group is read for one image."""

    root: Path
    paths: tuple[Path, ...]
    spots: Rows
    """(N, 3): shard, row group, row in the group."""
    names: NDArray[np.bytes_]

    def read(self, place: int) -> bytes:
        """An image of a row group."""
        import pyarrow as arrow

        shard, group, row = self.spots[place].tolist()
        try:
            column = _parquet(self.paths[shard], os.getpid()).read_row_group(
                group, columns=["image.bytes"], use_threads=False
            )["image"]
            content = column[row]["bytes"].as_py()
        except (IndexError, arrow.ArrowException) as error:
            raise OSError(str(error).strip().splitlines()[0]) from error
        if content is None:
            raise OSError("it has no bytes")
        return bytes(content)

    def where(self, place: int) -> str:
        """Shard, row group and row, and the recorded name."""
        shard, group, row = self.spots[place].tolist()
        name = os.fsdecode(self.names[place])
        return f"{self.paths[shard]}: row {row} of group {group} ({name})"


def find_in_parquet(root: Path, paths: tuple[Path, ...]) -> Found:
    """List the rows: columns image (struct of bytes and path) and label.

    Raises:
        DataLacks: a shard is damaged or has other columns.
    """
    spots: list[Rows] = []
    labels: list[Rows] = []
    names: list[str] = []
    for number, path in enumerate(paths):
        of_shard, told, recorded = _rows(path)
        spots.append(np.insert(of_shard, 0, number, axis=1))
        labels.append(told)
        names += [canonical(name) for name in recorded]
    encoded = np.array([os.fsencode(name) for name in names])
    table = Table(root, paths, np.concatenate(spots), encoded)
    return Found(table, np.concatenate(labels), names)


@functools.lru_cache(maxsize=OPEN_FILES)
def _parquet(path: Path, _process: int) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(path, page_checksum_verification=True)


def _rows(path: Path) -> tuple[Rows, Rows, list[str]]:
    """(row group, row in the group) and label of every row, and the recorded names."""
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            table = file.read(columns=["image.path", "label"], use_threads=False)
            sizes = [
                file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)
            ]
        recorded = table["image"].combine_chunks().field("path").to_pylist()
        labels = table["label"].to_numpy().astype(np.int64)
    except (OSError, KeyError, ValueError, arrow.ArrowException) as error:
        words = str(error).strip().splitlines()[0]
        raise DataLacks(
            f"{path}: is damaged or holds something else ({words}); wanted are columns image "
            "(struct of bytes and path) and label; fetch the file again"
        ) from error
    if None in recorded or (len(labels) and labels.min() < 0):
        raise DataLacks(
            f"{path}: some rows have no image.path or no label; the path gives the order of images"
        )
    rows = [(group, row) for group, size in enumerate(sizes) for row in range(size)]
    return np.array(rows, np.int64).reshape(-1, 2), labels, recorded
