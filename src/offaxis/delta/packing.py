"""`pack`: two models in, one delta file out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offaxis.checkpoint.digest import checksum, content_digest, file_digest
from offaxis.checkpoint.header import Entry
from offaxis.delta.coding import Encoded, encode
from offaxis.delta.compress import PIECE, squeeze_file, worth_it
from offaxis.delta.container import Writer
from offaxis.delta.export import Rounded, Rounding
from offaxis.delta.folder import Folder, Source, is_state, open_folder
from offaxis.delta.info import describe
from offaxis.delta.opened import Delta
from offaxis.delta.plan import FilePlan, OtherPlan, Plan, TensorPlan
from offaxis.delta.side import write_models
from offaxis.delta.small import Model
from offaxis.delta.words import Fitted, Sequence, word_shape, words_of
from offaxis.errors import DeltaError, InputError
from offaxis.kernels.pool import in_order, threads
from offaxis.names import rename
from offaxis.output import staged_file

__all__ = ["Progress", "Step", "pack"]

_PACKABLE = ("small", "fast")


@dataclass(frozen=True)
class Step:
    """Progress: bytes of tensors done, of how many, and the tensor just done."""

    done: int
    total: int
    tensor: str


Progress = Callable[[Step], None]
Place = tuple[Source, Entry]


def pack(
    base: str | Path,
    tuned: str | Path,
    *,
    out: str | Path,
    codec: str = "small",
    export: str | None = None,
    weights_only: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write what turns `base` into `tuned`, exact to the bit, to the file `out`.

    base, tuned: a `.safetensors` file, a directory, or a Hub id. Every file of a directory is
    packed (hidden ones, links to directories and nested `checkpoint-N` apart): tensors by what
    changed, the rest whole unless the base has the same file.
    codec: "small" for the fewest bytes, "fast" for the most bytes a second.
    export: "bf16" rounds wider floats first, which is *not* lossless; what it loses is reported.
    weights_only: leave out what only resuming needs (optimizer, scheduler, random state); implied
    by `export`.

    Returns what `delta_info` says of the new file, with `rounding` where it was exported. The file
    appears whole, or not at all; packing is deterministic. Raises CheckpointError where a model
    cannot be read, OutputError where `out` cannot be written.
    """
    if codec not in _PACKABLE:
        raise InputError(f"codec {codec!r}: choose one of {', '.join(_PACKABLE)}")
    if export not in (None, "bf16"):
        raise InputError(f"export {export!r}: only bf16 is known")
    sides = open_folder(base), open_folder(tuned, without=Path(out))
    job = _Packing(*sides, codec, export is not None, progress)
    others = [p for p in job.tuned.others if not ((weights_only or export) and is_state(p))]
    with staged_file(Path(out)) as staged:
        with Writer(staged, told=Path(out)) as writer:
            files = job.write_files(writer)
            plan = Plan(
                base=job.base.digest(),
                tuned=content_digest(job.contents),
                files=files,
                others=tuple(job.write_other(writer, path) for path in others),
                removed=tuple(sorted(set(job.base.tensors) - job.matched)),
                export="BF16" if export else None,
            )
            document = plan.document()
            _check(document, writer.at)
            writer.finish(
                plan=document,
                tables=write_models(job.models),
                metadata=_metadata(codec, plan),
            )
        found = describe(Delta.open(staged))
    found["file"] = str(out)
    if export:
        found["rounding"] = job.rounding.summary()
    return found


def _metadata(codec: str, plan: Plan) -> dict[str, str]:
    from offaxis import __version__

    writer = f"offaxis {__version__}"
    return {"codec": codec, "writer": writer, "base": plan.base, "tuned": plan.tuned}


def _check(document: dict[str, Any], payload: int) -> None:
    """What no reader would take is not written."""
    try:
        Plan.read(document, payload)
    except ValueError as error:
        raise DeltaError(f"cannot be packed: {error}; rename the file") from error


class _Packing:
    """The work on one pair of folders. Results gather in its lists as files are written."""

    def __init__(
        self, base: Folder, tuned: Folder, codec: str, export: bool, progress: Progress | None
    ) -> None:
        self.base, self.tuned, self.codec = base, tuned, codec
        self.rounding = Rounding()
        self.models: list[Model] = []
        self.contents: list[tuple[str, str, tuple[int, ...], str]] = []
        self.matched: set[str] = set()
        self._progress = progress
        self._views: list[Source | Rounded] = [
            Rounded(source, self.rounding) if export else source for source in tuned.weights
        ]
        self._total = sum(
            entry.stop - entry.start for view in self._views for entry in view.header.entries
        )
        self._done = 0
        self._renamed = _renaming(base, tuned)

    def write_files(self, writer: Writer) -> tuple[FilePlan, ...]:
        return tuple(self._write_file(writer, view) for view in self._views)

    def _write_file(self, writer: Writer, view: Source | Rounded) -> FilePlan:
        rows = []
        work = in_order(lambda entry: self._tensor(view, entry), view.header.entries, threads())
        for entry, (row, encoded) in zip(view.header.entries, work, strict=True):
            made = row
            if encoded is not None:
                at, length = writer.add(*encoded.parts)
                made = replace(row, at=at, length=length)
                if encoded.model is not None:
                    self.models.append(encoded.model)
            rows.append(made)
            self.contents.append((entry.name, entry.dtype, entry.shape, row.tuned))
            self._tell(entry)
        return FilePlan(view.path, view.header_text, view.header.entries, tuple(rows))

    def _tell(self, entry: Entry) -> None:
        self._done += entry.stop - entry.start
        if self._progress is not None:
            self._progress(Step(self._done, self._total, entry.name))

    def _place(self, path: str, entry: Entry, tuned: str) -> Place | None:
        """The base tensor of the same name. Of several: the one with the same bytes, or else the
        one in the file of the same path, or else the first."""
        name = self._renamed.get(entry.name, entry.name)
        found = self.base.tensors.get(name, [])
        if found:
            self.matched.add(name)
        order = sorted(found, key=lambda place: place[0].path != path)
        if len(order) > 1:
            order.sort(key=lambda place: self.base.checksum(*place) != tuned)
        return order[0] if order else None

    def _tensor(self, view: Source | Rounded, entry: Entry) -> tuple[TensorPlan, Encoded | None]:
        """The plan of one tensor and its stream; None where it is the base's."""
        raw = view.raw(entry)
        tuned = checksum(raw)
        place = self._place(view.path, entry, tuned)
        words = words_of(entry.dtype)
        held: Sequence | None = None
        digest = origin = None
        size = raw.size * 8 // words.bits
        if place is not None and Fitted.possible(place[1].dtype, entry.dtype):
            origin, digest = place[1].name, self.base.checksum(*place)
            if digest == tuned and place[1].dtype == entry.dtype:
                return TensorPlan("same", tuned, tuned, origin), None
            held = Fitted(
                place[0].raw(place[1]), stored=place[1].dtype, wanted=entry.dtype, size=size
            )
        found = encode(
            self.codec, held, words.view(raw), words, word_shape(entry.dtype, entry.shape, size)
        )
        if found.codec in {"planes", "raw"}:
            origin = digest = None
        return TensorPlan(found.codec, tuned, digest, origin, found.changed), found

    def write_other(self, writer: Writer, path: str) -> OtherPlan:
        """A file that is no safetensors: by reference to the base's, as a zstd frame, or raw."""
        file = self.tuned.others[path]
        size, digest = file.stat().st_size, file_digest(file).hex()
        same = self.base.others.get(path)
        if same is not None and same.stat().st_size == size and file_digest(same).hex() == digest:
            return OtherPlan(path, "same", size, digest)
        start = writer.at
        with file.open("rb") as stream:
            head = stream.read(PIECE)
            stream.seek(0)
            worth = worth_it(head)
            for block in squeeze_file(stream) if worth else _blocks(stream):
                writer.add(block)
        codec = "zstd" if worth else "raw"
        return OtherPlan(path, codec, size, digest, start, writer.at - start)


def _blocks(stream: Any) -> Iterator[bytes]:
    while block := stream.read(PIECE):
        yield block


def _renaming(base: Folder, tuned: Folder) -> dict[str, str]:
    """Tuned name -> base name where a wrapper or a prefix renamed tensors."""
    if not set(tuned.tensors) - set(base.tensors):
        return {}
    shapes = [
        {name: places[0][1].shape for name, places in one.tensors.items()} for one in (base, tuned)
    ]
    return {new: old for new, old in rename(*shapes).names.items() if new != old}
