"""ImageNet in parquet shards, as data set hubs lay it out: how they are read, and written.

``python -m lsa_study.data.shards FROM TO`` copies ``imagenet/`` below FROM, which lies in folders,
to shards below TO; both are roots, as ``LSA_DATA`` is. Images are copied byte for byte and keep
their names, so a run gives the same batches from either.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from typing_extensions import override

from lsa_study.data.index import Listing, find_in_folders
from lsa_study.data.paths import DataLacks, Layout, layout_of_imagenet
from lsa_study.errors import EnvironmentLacks
from lsa_study.files import replacing, writable

OPEN_FILES = 256
"""Of one process at a time; systems allow about a thousand."""
IMAGES = 5000
"""Of one written shard: about half a gigabyte."""
GROUP = 8
"""Images of a written row group, which is read whole for one of them."""
HUB_NAME = re.compile(r"([^/]+)_(n\d{8})(\.\w+)\Z")
"""File, class and suffix."""

Rows = NDArray[np.int64]
Image = tuple[str, int, bytes]
"""Class folder / file, class number, encoded image."""


@dataclass(frozen=True)
class Table(Listing):
    """Images in the row groups of parquet shards, read in any order by any process."""

    paths: tuple[Path, ...]

    @override
    def read(self, index: int) -> bytes:
        """An image of a row group, which is read whole for it."""
        import pyarrow as arrow

        shard, group, row = self.places[index].tolist()
        try:
            column = _opened(self.paths[shard], os.getpid()).read_row_group(
                group, columns=["image.bytes"], use_threads=False
            )["image"]
            content = column[row]["bytes"].as_py()
        except (IndexError, arrow.ArrowException) as error:
            raise OSError(str(error).strip().splitlines()[0]) from error
        if content is None:
            raise OSError("it has no bytes")
        return bytes(content)

    @override
    def files(self) -> list[str]:
        """Of the shards, unless they record the sizes of images."""
        if (self.sizes >= 0).all():
            return []
        return [f"{path.name} {path.stat().st_size}" for path in self.paths]

    @override
    def where(self, index: int) -> str:
        """Shard, row group and row, and the recorded name."""
        shard, group, row = self.places[index].tolist()
        name = os.fsdecode(self.names[index])
        return f"{self.paths[shard]}: row {row} of group {group} ({name})"


@functools.lru_cache(maxsize=OPEN_FILES)
def _opened(path: Path, _process: int) -> Any:
    # By process: a file that is open at a fork has one offset for both sides.
    from pyarrow import parquet

    return parquet.ParquetFile(path, page_checksum_verification=True)


def _find_in_parquet(root: Path, paths: tuple[Path, ...]) -> Table:
    """List the rows of a split's shards.

    Raises:
        DataLacks: a shard is damaged or has other columns, or a row has no path or label.
    """
    places: list[tuple[int, int, int]] = []
    labels: list[int] = []
    names: list[str] = []
    bytes_of: list[int] = []
    for number, path in enumerate(paths):
        column, of_shard, sizes = read_columns(path, "path")
        recorded = column.to_pylist()
        if None in recorded or (len(of_shard) and of_shard.min() < 0):
            raise DataLacks(
                f"{path}: some rows have no image.path or no label; the path gives the order of "
                "images"
            )
        places += [(number, group, row) for group, size in enumerate(sizes) for row in range(size)]
        labels += of_shard.tolist()
        bytes_of += _recorded_sizes(path) or [-1] * len(of_shard)
        # As folders have them: data set hubs append the class to the file's name.
        parts = (HUB_NAME.sub(r"\2/\1\3", name).split("/")[-2:] for name in recorded)
        names += map("/".join, parts)
    named = sorted(dict(zip(labels, names, strict=True)).items())
    classes = {n: name.split("/")[0] if "/" in name else str(n) for n, name in named}
    return Table(
        root, np.array([os.fsencode(name) for name in names]), np.array(labels, np.int64), classes,
        np.array(places, np.int64).reshape(-1, 3), np.array(bytes_of, np.int64), paths,
    )  # fmt: skip


def _recorded_sizes(path: Path) -> list[int] | None:
    """Sizes of a shard's images in bytes, which ``write_parquet`` leaves beside them."""
    from pyarrow import parquet

    with _readable(path), parquet.ParquetFile(path, page_checksum_verification=True) as file:
        if "size" not in file.schema_arrow.names:
            return None
        sizes: list[int] = file.read(columns=["size"], use_threads=False)["size"].to_pylist()
        return [int(size) for size in sizes]


@functools.lru_cache(maxsize=1)
def listings(layout: Layout) -> tuple[Listing, Listing]:
    """List the training and the test images, whatever their layout.

    Raises:
        DataLacks: folders, shards or images are missing or damaged.
    """
    if layout.kind == "folders":
        folders = find_in_folders(layout.train[0], None).in_turn(None)
        return folders, find_in_folders(layout.test[0], folders.classes).in_turn(folders)
    train = _find_in_parquet(layout.root / "train", layout.train).in_turn(None)
    return train, _find_in_parquet(layout.root / "val", layout.test).in_turn(train)


def read_columns(path: Path, field: Literal["bytes", "path"]) -> tuple[Any, Rows, list[int]]:
    """Read a file in the layout of data set hubs: columns image (bytes and path) and label.

    Returns:
        This field of every image, as an array of pyarrow; the labels; rows of each row group.

    Raises:
        DataLacks: the file is damaged or has other columns.
    """
    from pyarrow import parquet

    with _readable(path):
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(columns=[f"image.{field}", "label"], use_threads=False)
            groups = range(file.metadata.num_row_groups)
            sizes = [file.metadata.row_group(group).num_rows for group in groups]
        images = table["image"].combine_chunks().field(field)
        return images, table["label"].to_numpy().astype(np.int64), sizes


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Report a shard that cannot be read, or not as what it should be."""
    import pyarrow as arrow

    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, arrow.ArrowException) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataLacks(
            f"{path}: is damaged or holds something else ({reason}); wanted are columns image "
            "(struct of bytes and path) and label; fetch the file again"
        ) from error


def write_parquet(path: Path, images: Iterable[Image]) -> None:
    """Write one shard of images in this order; it appears when it is whole.

    Raises:
        EnvironmentLacks: the disk is full or the folder cannot be written.
    """
    import pyarrow as arrow
    from pyarrow import parquet

    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    columns = [("image", image), ("label", arrow.int64()), ("size", arrow.int64())]
    schema = arrow.schema(columns)
    rows = (
        {"image": {"bytes": content, "path": name}, "label": n, "size": len(content)}
        for name, n, content in images
    )
    # Encoded images do not compress; groups are small, because one image is read at a time.
    with (
        writable(path),
        replacing(path) as part,
        parquet.ParquetWriter(
            part, schema, compression="none", use_dictionary=False, write_page_checksum=True,
            write_statistics=False,
        ) as writer,
    ):  # fmt: skip
        while group := list(itertools.islice(rows, GROUP)):
            writer.write_table(arrow.Table.from_pylist(group, schema))


def write_shards(source: Path, target: Path, *, images: int = IMAGES) -> int:
    """Write both splits of ImageNet's folders as shards of so many images; returns their number.

    They are ``target/imagenet/{train,val}-NNNNN-of-NNNNN.parquet``.

    Raises:
        DataLacks: ``source`` has no such folders, an image cannot be read, or ``target`` holds
            ImageNet already.
        EnvironmentLacks: the disk is full or the folder cannot be written.
    """
    layout = layout_of_imagenet(source)
    if layout is None or layout.kind != "folders":
        raise DataLacks(f"{source}: holds no folders imagenet/train and imagenet/val")
    if layout_of_imagenet(target) is not None:
        raise DataLacks(f"{target}/imagenet: holds ImageNet already; choose an empty folder")
    (target / "imagenet").mkdir(parents=True, exist_ok=True)
    total = 0
    for split, found in zip(("train", "val"), listings(layout), strict=True):

        def image(row: int, found: Listing = found) -> Image:
            try:
                name = os.fsdecode(found.names[row])
                return name, int(found.labels[row]), found.read(row)
            except OSError as error:
                raise DataLacks(f"{found.where(row)}: cannot be read ({error})") from error

        # By class and name; a reader brings them into its own order.
        rows = np.lexsort((found.names, found.labels))
        parts = np.array_split(rows, -(-len(rows) // images))
        for number, part in enumerate(parts):
            name = f"{split}-{number:05}-of-{len(parts):05}.parquet"
            write_parquet(target / "imagenet" / name, map(image, part.tolist()))
        total += len(parts)
    return total


def main(source: Path, target: Path) -> None:
    """Write SOURCE/imagenet/{train,val}/<wnid>/ as parquet shards TARGET/imagenet/*.parquet."""
    try:
        shards = write_shards(source, target)
    except EnvironmentLacks as error:
        typer.echo(f"lsa: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    typer.echo(f"{shards} shards in {target / 'imagenet'}")


if __name__ == "__main__":
    typer.run(main)
