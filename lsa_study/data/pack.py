"""Pack ImageNet into shards: ``python -m lsa_study.data.pack FROM TO --format tar``.

FROM and TO are roots, as ``LSA_DATA`` is: ``imagenet/`` below FROM is read in whatever layout it
has, below TO it is written. Images are copied byte for byte and keep their names and order, so a
run gives the same batches from either.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from lsa_study.data.imagenet import listings
from lsa_study.data.index import Listing
from lsa_study.data.paths import DataLacks, layout_of_imagenet

IMAGES = 5000
"""Of one shard: about half a gigabyte."""
GROUP = 8
"""Images of a parquet row group, which is read whole for one of them."""

Image = tuple[str, int, bytes]
"""Name, class, content."""


def pack(source: Path, target: Path, *, form: str, images: int = IMAGES) -> list[Path]:
    """Write both splits as shards.

    Args:
        source: holds ``imagenet/`` in any layout.
        target: where ``imagenet/{train,val}-NNNNN-of-NNNNN.{tar,parquet}`` are written.
        form: ``tar`` or ``parquet``.
        images: of one shard.

    Returns:
        The shards.

    Raises:
        DataLacks: there is no ImageNet in ``source``, an image cannot be read, or ``target`` holds
            one already.
    """
    layout = layout_of_imagenet(source)
    if layout is None:
        raise DataLacks(f"{source}: holds no imagenet/ with train and val")
    if layout_of_imagenet(target) is not None:
        raise DataLacks(f"{target}/imagenet: holds ImageNet already; choose an empty folder")
    (target / "imagenet").mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for split, listing in zip(("train", "val"), listings(layout), strict=True):
        # By class and name, as folders have them; a reader brings them into its own order.
        rows = np.lexsort((listing.names, listing.labels))
        parts = np.array_split(rows, -(-len(rows) // images))
        for number, part in enumerate(parts):
            name = f"{split}-{number:05}-of-{len(parts):05}.{form}"
            path = target / "imagenet" / name
            unfinished = path.with_suffix(".part")
            {"tar": _tar, "parquet": _parquet}[form](unfinished, _images(listing, part))
            unfinished.replace(path)
            made.append(path)
    return made


def _images(listing: Listing, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Iterator[Image]:
    for row in rows.tolist():
        name, label = os.fsdecode(listing.names[row]), int(listing.labels[row])
        try:
            yield name if "/" in name else f"{label:04}/{name}", label, listing.read(row)
        except OSError as error:
            raise DataLacks(f"{listing.where(row)}: cannot be read ({error})") from error


def _tar(path: Path, images: Iterator[Image]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as shard:
        for name, label, content in images:
            key = PurePosixPath(name).with_suffix("")
            for member, held in ((name, content), (f"{key}.cls", str(label).encode())):
                head = tarfile.TarInfo(member)
                head.size = len(held)
                shard.addfile(head, io.BytesIO(held))


def _parquet(path: Path, images: Iterator[Image]) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    schema = arrow.schema([("image", image), ("label", arrow.int64())])
    # Encoded images do not compress; groups are small, because one image is read at a time.
    with parquet.ParquetWriter(
        path,
        schema,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
        write_statistics=False,
    ) as writer:
        rows: list[dict[str, object]] = []
        for name, label, content in images:
            rows.append({"image": {"bytes": content, "path": name}, "label": label})
            if len(rows) == GROUP:
                writer.write_table(arrow.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(arrow.Table.from_pylist(rows, schema))


def main() -> int:
    """Pack, and say what was written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="holds imagenet/")
    parser.add_argument("target", type=Path, help="where imagenet/ is written")
    parser.add_argument("--format", choices=("tar", "parquet"), default="tar")
    asked = parser.parse_args()
    try:
        made = pack(asked.source, asked.target, form=asked.format)
    except DataLacks as error:
        sys.stderr.write(f"lsa: {error}\n")
        return 3
    sys.stdout.write(f"{len(made)} shards in {asked.target / 'imagenet'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
