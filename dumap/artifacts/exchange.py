"""Exchanges between parts, stored sparsely: no array has an entry for each pair of sender and receiver.

A sender's part names its receivers, ascending, and for each receiver the rows of the sender's arrays. An index part
holds the same for a range of senders, sorted by receiver. So a receiver reads a few rows of each index part. There are
about as many index parts as the square root of the number of senders.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dumap.artifacts.part_names import range_names, range_of
from dumap.store import Part, Run

RECEIVERS_PER_RANGE = 64
"""Receivers in a range that is read at once. A task reads one receiver."""


def write_receivers(out: Part, receivers: np.ndarray, bounds: np.ndarray) -> None:
    """Write what a sender has for whom.

    Parameters
    ----------
    out : Part
    receivers : ndarray of int, shape (m,)
        Ascending.
    bounds : ndarray of int, shape (m + 1,)
        The sender's arrays hold the rows of receiver i from `bounds[i]` to `bounds[i + 1]`.
    """
    out.write("receivers", receivers.astype(np.int32))
    out.write("bounds", bounds.astype(np.int64))


def write_sorted_receivers(out: Part, of_rows: np.ndarray) -> None:
    """Write a sender's receivers and their rows, from the receiver of each row, ascending."""
    receivers, firsts = np.unique(of_rows, return_index=True)
    write_receivers(out, receivers, np.append(firsts, len(of_rows)))


def write_answers(out: Part, requests: np.ndarray) -> None:
    """Write a sender's receivers, whose rows lie in the order of `requests`: see `read_received_ranges`."""
    write_receivers(out, requests[:, 0], np.cumsum([0, *(requests[:, 2] - requests[:, 1])]))


def write_receiver_index(
    run: Run, stage: str, part: str, senders: Sequence[str], count: int, receiver_of: np.ndarray | None = None
) -> None:
    """Write an index part.

    Parameters
    ----------
    run : Run
    stage, part : str
        The part's name says of which senders it is.
    senders : sequence of str
    count : int
        How many receivers there are.
    receiver_of : ndarray of int, optional
        Ascending: the receiver that each of the senders' receivers belongs to.
    """
    first, last = range_of(part)
    names = senders[first:last]
    read = run.read_many(stage, [(name, array, 0, None) for name in names for array in ("receivers", "bounds")])
    pieces = [np.empty((0, 4), np.int64)]
    for number, (receivers, bounds) in enumerate(zip(read, read, strict=True), first):
        if receiver_of is not None:
            receivers, firsts = np.unique(receiver_of[receivers], return_index=True)
            bounds = bounds[np.append(firsts, len(bounds) - 1)]
        pieces.append(np.stack([receivers, np.full(len(receivers), number), bounds[:-1], bounds[1:]], axis=1))
    entries = np.concatenate(pieces)
    entries = entries[np.argsort(entries[:, 0], kind="stable")]
    with run.part(stage, part) as out:
        out.write("firsts", np.searchsorted(entries[:, 0], np.arange(count + 1)), RECEIVERS_PER_RANGE)
        out.write("spans", entries[:, 1:], RECEIVERS_PER_RANGE)


def read_received_ranges(run: Run, stage: str, kind: str, senders: int, receiver: int) -> np.ndarray:
    """Read the senders of a receiver, and the rows that they send.

    Returns
    -------
    ndarray of int64, shape (n, 3)
        Sender, ascending; first row; and the row after the last.
    """
    names = range_names(kind, senders)
    ends = run.read_many(stage, [(name, "firsts", receiver, receiver + 2) for name in names])
    spans = [(name, "spans", low, high) for name, (low, high) in zip(names, ends, strict=True) if high > low]
    return np.concatenate([np.empty((0, 3), np.int64), *run.read_many(stage, spans)])
