"""What the operating system's errors mean to whoever deploys. Pure."""

from __future__ import annotations

import errno

from agent.errors import AgentError


def disk_full(why: str) -> AgentError:
    """The disk that holds the state directory is full, or would be."""
    return AgentError("DISK_FULL", why, "Free some space on the disk of the state directory, then deploy again.")


def inodes_gone(why: str) -> AgentError:
    """The disk that holds the state directory has room for bytes and none for files."""
    remedy = "Remove small files that are not needed from the disk of the state directory, then deploy again."
    return AgentError("DISK_NO_INODES", why, remedy)


def translated(error: OSError | AgentError) -> AgentError:
    """An error of the state directory's disk with a code; an AgentError as it is."""
    if isinstance(error, AgentError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(f"the disk of the state directory is full ({error.strerror})")
    if error.errno == errno.EIO:
        text = f"the disk of the state directory reports an error ({error})"
        return AgentError("DISK_FAILED", text, "See what the kernel says of the disk (dmesg), and replace it.")
    text = f"the state directory cannot be written or read: {error}"
    return AgentError("STATE_UNWRITABLE", text, "Check the disk and the permissions of the state directory.")
