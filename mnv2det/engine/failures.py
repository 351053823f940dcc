"""Explains in one line what ended a run: full disks, lost mounts, dead workers and processes."""

from __future__ import annotations

import errno

import torch

from mnv2det.errors import Mnv2detError, TrainingError

_SPACE = "free some room there"
_MOUNT = "is its disk or network mount still there?"
_ADVICE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: "free some of your quota there",
    errno.EIO: _MOUNT,
    errno.ENOENT: _MOUNT,
    errno.ESTALE: _MOUNT,
    errno.ENOTCONN: _MOUNT,
    errno.ENODEV: _MOUNT,
    errno.EROFS: "it has become read-only",
    errno.EACCES: "may this user write there?",
    errno.EPERM: "may this user write there?",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
_SHARED_MEMORY = ("shared memory", "unable to write to file </torch", "unable to mmap", "bus error")
_LOST_PEER = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out waiting")


class PeerFailed(TrainingError):
    """This process ended because another one did, whose own message says why."""


def explain(error: OSError | RuntimeError | MemoryError, where: str, kept: str) -> Mnv2detError | None:
    """Says what happened, what is left of the run and what to do.

    Args:
        error: What Python or torch raised.
        where: When it happened, as in ``at step 12``.
        kept: What is left of the run.

    Returns:
        The error to raise instead; None for a mistake of this program.
    """
    reason = (str(error).splitlines() or [""])[0][:200]
    if isinstance(error, OSError):
        if error.errno is None:
            return None
        advice = _ADVICE.get(error.errno, "put that right")
        path = error.filename2 or error.filename or "the run folder"
        return TrainingError(
            f"{path}: cannot be read or written {where} ({error.strerror}); {advice}. {_capital(kept)}; go on with it"
            " by --resume"
        )
    if isinstance(error, torch.OutOfMemoryError):
        cause, advice = "the device ran out of memory", "a smaller data.batch_size and more train.accumulate"
    elif isinstance(error, MemoryError):
        cause, advice = "out of memory", "fewer data.workers or a smaller data.batch_size"
    elif any(sign in str(error).lower() for sign in _SHARED_MEMORY):
        cause, advice = (
            "the loader ran out of shared memory",
            "more of it (/dev/shm, docker --shm-size) or data.workers=0",
        )
    elif "DataLoader worker" in reason:
        cause, advice = "a loader worker died", "fewer data.workers (the system kills them when memory is short)"
    elif _lost_peer(error):
        return PeerFailed(f"ended {where}, as another process did; its message says why. {_capital(kept)}")
    else:
        return None
    return TrainingError(f"{cause} {where} ({reason}); {kept}. Go on with it (--resume), with {advice}")


def _lost_peer(error: BaseException) -> bool:
    """Whether this is what gloo or NCCL say when another process is gone."""
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(sign in text for sign in _LOST_PEER)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
