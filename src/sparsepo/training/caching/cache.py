"""The caches of a run's data sets under one reference: opened, filled by all processes together, and read."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from sparsepo.masks import Masker
from sparsepo.scoring import LMHead

from ..step import ReferenceView
from .filling import RowSource, compute_block, kept_values
from .fingerprint import hash_json, read_rows
from .plan import GIB, CachePlan, check_estimate
from .reading import CachedRows, sequence_identity
from .store import CacheFolder, check_file, read_file, split_rows, write_file

logger = logging.getLogger(__name__)


def from_main(accelerator: Any, answer: Callable[[], Any]) -> Any:
    """The main process's answer, on all processes. A collective call."""
    from accelerate.utils import broadcast_object_list

    given = [answer() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(given, from_process=0)
    return given[0]


@dataclass
class CachedSet:
    """One data set: its plan, its files and, once these are there, its rows.

    Args:
        name: of the split.
        dataset: prepared rows.
        plan: what is kept.
        tokens: response tokens of each row.
    """

    name: str
    dataset: Any
    plan: CachePlan
    row_tokens: Any  # (rows,)
    digest: str
    folder: CacheFolder | None = None
    missing: list[int] | None = None
    rows: CachedRows | None = None

    @property
    def tokens(self) -> int:
        """Response tokens of all rows."""
        return int(self.row_tokens.sum())


class ReferenceCache:
    """All caches of a run.

    Args:
        root: their folder.
        limit_gib: estimated size over which nothing is begun.
        accelerator: processes and device.
        shared: what all data sets' numbers depend on besides rows and plan, JSON types.
        cut: ``(max_length, truncation_mode)`` of the collator.
    """

    def __init__(
        self, root: Path, limit_gib: float, accelerator: Any, shared: dict[str, Any], cut: tuple[int | None, str]
    ) -> None:
        self.root, self.limit_gib, self.accelerator = Path(root), limit_gib, accelerator
        self.shared, self.cut = shared, cut
        self.sets: list[CachedSet] = []
        self.reference: dict[str, Any] | None = None  # what the reference is; set by :meth:`open`

    def add(self, name: str, dataset: Any, plan: CachePlan) -> CachedSet:
        """Read a data set's sizes; nothing is computed yet."""
        table = read_rows(dataset)
        row_tokens = table.response_tokens(*self.cut).sum(1)
        added = CachedSet(name, dataset, plan, row_tokens, table.digest)
        self.sets.append(added)
        return added

    def check_size(self) -> float:
        """The estimate of all sets, GiB. Raises ``ValueError`` over the limit."""
        return check_estimate({part.name: (part.plan, part.tokens) for part in self.sets}, self.limit_gib)

    # ---- opening ----

    def open(self, reference: dict[str, Any]) -> None:
        """Find out what is there and what is missing. A collective call.

        Args:
            reference: everything that tells this reference from another, JSON types.
        """
        self.reference = reference
        for part in self.sets:
            if part.folder is not None:
                continue
            row_bytes = part.row_tokens * sum(part.plan.token_bytes().values())
            description = {
                "reference": reference,
                **self.shared,
                "rows_hash": part.digest,
                "max_length": self.cut[0],
                "truncation_mode": self.cut[1],
                "kept": part.plan.description(),
            }
            part.folder = CacheFolder(self.root, description, part.plan, split_rows(row_bytes))
            part.missing = from_main(self.accelerator, part.folder.missing)

    @property
    def head_path(self) -> Path:
        """File of the reference's head."""
        return self.root / f"head-{hash_json([self.reference, self.shared])[:20]}.safetensors"

    def lacks_head(self) -> bool:
        """Whether a head is needed that is not there. A collective call."""
        if not any(part.plan.needs_head for part in self.sets):
            return False
        return bool(from_main(self.accelerator, lambda: check_file(self.head_path)))

    def is_complete(self) -> bool:
        """Whether the reference need not be run. A collective call."""
        return not any(part.missing for part in self.sets) and not self.lacks_head()

    # ---- filling ----

    def fill(self, source_of: Callable[[CachedSet], RowSource], sharded: bool, show: bool) -> None:
        """Compute what is missing, each process its share of the files. A collective call.

        Args:
            source_of: the rows of a set and the reference.
            sharded: the reference's parameters are split over processes, which must then run equally many batches.
            show: show progress.
        """
        todo = [part for part in self.sets if part.missing]
        problem = from_main(self.accelerator, lambda: self._announce(todo))
        if problem:
            raise ValueError(problem)
        if self.accelerator.is_main_process:
            for part in todo:
                assert part.folder is not None
                part.folder.create()
        self.accelerator.wait_for_everyone()
        if self.lacks_head():
            self._write_head(source_of(self.sets[0]))
        for part in todo:
            self._fill_set(part, source_of(part), sharded, show)
        self.accelerator.wait_for_everyone()
        for part in todo:
            assert part.folder is not None
            part.missing = [number for number in range(len(part.folder.blocks)) if not part.folder.has(number)]
            if part.missing:
                raise RuntimeError(
                    f"precompute_ref: process {self.accelerator.process_index} does not see "
                    f"{part.folder.path / part.folder.blocks[part.missing[0]].file}, which another process has written. "
                    "Put precompute_ref_dir on a disk that all processes share."
                )

    def _announce(self, todo: list[CachedSet]) -> str | None:
        """Say what will be stored; what is wrong where the disk has no room for it."""
        size = 0
        for part in todo:
            assert part.folder is not None
            assert part.missing is not None
            rows = [part.folder.blocks[number] for number in part.missing]
            tokens = sum(int(part.row_tokens[block.first : block.last].sum()) for block in rows)
            per_token = part.plan.token_bytes()
            size += tokens * sum(per_token.values())
            logger.warning(  # seen whatever the verbosity: disk is about to be taken
                "precompute_ref: about to store %.3g GiB of %s, %d of %d files: %s response tokens of %s bytes (%s) in %s",
                tokens * sum(per_token.values()) / GIB,
                part.name,
                len(rows),
                len(part.folder.blocks),
                f"{tokens:,}",
                f"{sum(per_token.values()):,}",
                ", ".join(f"{name} {count:,}" for name, count in per_token.items()),
                part.folder.path,
            )
        self.root.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(self.root).free
        if size <= room:
            return None
        return (
            f"precompute_ref_dir={str(self.root)!r}: {size / GIB:.3g} GiB are to be stored and {room / GIB:.3g} GiB are "
            "free there. Give another folder, or leave precompute_ref False."
        )

    def _fill_set(self, part: CachedSet, source: RowSource, sharded: bool, show: bool) -> None:
        folder, missing = part.folder, part.missing
        assert folder is not None
        assert missing is not None
        index, count = self.accelerator.process_index, self.accelerator.num_processes
        shares = [missing[first::count] for first in range(count)]
        batches = [sum(source.count(folder.blocks[number]) for number in share) for share in shares]
        title = f"Running the reference over {part.name}"
        hidden = {} if show else {"disable": True}  # shown, TQDM_DISABLE still counts
        with tqdm(total=batches[index], desc=title, unit="batch", **hidden) as bar:
            for number in shares[index]:
                if sharded or not folder.has(number):
                    folder.write(number, compute_block(source, part.plan, folder.blocks[number], bar.update))
        if sharded:  # every forward, and every use of a head, gathers parameters from all processes
            some = next(source.batches(folder.blocks[missing[0]]))
            for _ in range(max(batches) - batches[index]):
                kept_values(source, part.plan, source.collate([source.rows[number] for number in some]))

    def _write_head(self, source: RowSource) -> None:
        from ..trl_bridge import gathered_heads

        view = source.view_of(source.collate([source.rows[0]]))
        with gathered_heads(*view.models):
            head = view.whole_head()
            assert head is not None
            if self.accelerator.is_main_process:
                tensors = {"weight": head.weight}
                if head.bias is not None:
                    tensors["bias"] = head.bias
                settings = {"scale": head.scale, "softcap": head.softcap}
                write_file(self.head_path, tensors, settings)
        self.accelerator.wait_for_everyone()

    # ---- reading ----

    def read(self) -> None:
        """Index every set whose files are there."""
        head = None
        for part in self.sets:
            if part.rows is None and part.folder is not None and not part.missing:
                if part.plan.needs_head and head is None:
                    head = self._read_head()
                part.rows = CachedRows(part.folder, head if part.plan.needs_head else None)

    def _read_head(self) -> LMHead:
        for part in self.sets:
            if part.rows is not None and part.rows.head is not None:
                return part.rows.head
        tensors, settings = read_file(self.head_path)
        weight, bias = (
            None if t is None else t.to(self.accelerator.device) for t in map(tensors.get, ("weight", "bias"))
        )
        assert weight is not None
        return LMHead(weight, bias, settings["scale"], settings["softcap"])

    @torch.no_grad()
    def view(self, batch: dict[str, Any], need_kl: bool, masker: Masker | None) -> ReferenceView | None:
        """What the reference would have left of a batch; None where no set holds all of its sequences.

        Without a set that holds their KL too, the view has none, whatever ``need_kl`` says.
        """
        identities = sequence_identity(batch).tolist()
        holders = [part.rows for part in self.sets if part.rows is not None and part.rows.knows(identities)]
        if not holders:
            return None
        rows = next((rows for rows in holders if rows.has_kl() or not need_kl), holders[0])
        return rows.view(batch, identities, need_kl and rows.has_kl(), masker)
