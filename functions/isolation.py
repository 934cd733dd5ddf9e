"""How far a worker is kept apart from the machine and from other functions: the strongest tier that can be had here.

    container   its own user, and its own view of files, processes, devices and network
    namespace   the same view, but as the agent's user: the agent is not root, or RunAs names root
    user        another user than the agent's, no view of its own
    process     a process of its own; only the models that it may read are kept from being written, where that can be

`enter` is called before any of the function's code runs, while the process has one thread. It gets, as the key
``isolation`` of CONFIG:

    {"contained": bool, "demanded": tier or None, "user": [UID, GID, [GID]] or None, "network": bool,
     "devices": [path], "hidden": [path], "needed": [[source, place, writable]], "tmp_bytes": int,
     "limits": {"tasks", "file_bytes", "data_bytes"}}

and the key ``mounts`` for functions.mounts, which stands alone where the function is not contained.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import functions
from functions import bounds, covers, mounts
from functions.covers import Needed
from functions.errors import StartError
from functions.system_calls import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_REC,
    MS_SLAVE,
    Libc,
    loopback_up,
)

BOUNDED_BY_NAMESPACE = (6, 14)
LEAST_PROCESSES = 301  # the kernel keeps 300 back
TIERS = ("process", "user", "namespace", "container")  # weakest first


class Entered(NamedTuple):
    """What came of it.

    Attributes:
        isolation: the tier in force.
        tier: how far the view of the files is its own, see functions.mounts.
        warnings: what could not be done, and why.
    """

    isolation: str
    tier: str
    warnings: tuple[str, ...]


def enter(config: Mapping[str, Any]) -> Entered:
    """Isolates this process as far as the machine allows.

    Raises:
        StartError: ISOLATION_NOT_AVAILABLE, USER_NOT_AVAILABLE, NOT_READABLE_BY_USER.
    """
    asked, mounted = config.get("isolation"), config.get("mounts")
    if not asked:
        return Entered("process", *mounts.enter(mounted))
    warnings: list[str] = []
    sources = [*(each[1] for each in asked["needed"]), *_interpreter()]
    contained = _contain(asked, mounted or {}, warnings) if asked["contained"] else ""
    if contained:
        view = contained
    else:
        view, said = mounts.enter(mounted, lambda libc: _let_in(libc, asked, mounted or {}))
        warnings += said
    apart = contained == "namespace" or (contained == "user namespace" and bounds.tasks_are_counted_apart())
    tier = _settle(asked, contained=bool(contained), count_tasks=apart)
    _check_demand(asked.get("demanded"), tier, warnings)
    if asked["user"]:
        _check_readable(sources)
    return Entered(tier, view, tuple(warnings))


def _let_in(libc: Libc, asked: Mapping[str, Any], mounted: Mapping[str, Any]) -> None:
    """Shows a user what it needs of directories that it may not enter, without the rest of them."""
    if asked["user"]:
        needed = _needed(asked, mounted["shown"])
        covers.lay(libc, covers.barred(needed, _identity(asked)), needed, mounted["stage"], asked["tmp_bytes"])


def _settle(asked: Mapping[str, Any], *, contained: bool, count_tasks: bool) -> str:
    """The process's user, limits and rights; returns the tier."""
    libc, user = Libc(), asked["user"]
    try:
        bounds.set_limits(asked["limits"], count_tasks=count_tasks or bool(user))
        if asked["contained"]:
            bounds.bound_rights(libc)
        if user:
            bounds.become(*user)
        if asked["contained"]:
            bounds.drop_rights(libc)
        # With processes and a user of its own nobody else can look into it, and it may read its own /proc/self.
        libc.set_dumpable(contained and bool(user))
        libc.end_with_parent()
    except OSError as error:
        text = f"the worker cannot become user {user[0] if user else 'of its own'} with its limits: {error}"
        raise StartError("USER_NOT_AVAILABLE", text) from error
    other = user is not None and user[0] != 0
    return ("container" if other else "namespace") if contained else ("user" if other else "process")


def _contain(asked: Mapping[str, Any], mounted: Mapping[str, Any], warnings: list[str]) -> str:
    """Namespaces and the view in them; returns whose, or nothing where the machine does not allow it."""
    directory = os.getcwd()
    try:
        libc = Libc()
        flags = CLONE_NEWNS | CLONE_NEWIPC | (0 if asked["network"] else CLONE_NEWNET)
        try:
            libc.unshare(flags)
            whose = "namespace"
        except PermissionError:
            mounts.as_user(libc, flags | CLONE_NEWPID)
            _go_on_as_first_process(libc)
            whose = "user namespace"
        libc.mount(None, "/", MS_REC | MS_SLAVE)  # mounts of the host still arrive, and leave; ours stay here
        warnings += _build(libc, asked, mounted)
        os.chdir(directory)  # what it was lies beneath the new mounts
        if not asked["network"]:
            loopback_up()
    except (OSError, AttributeError) as error:
        warnings.append(f"it is not contained: this machine does not allow it ({error})")
        return ""
    os.environ.pop("TMPDIR", None)
    return whose


def _go_on_as_first_process(libc: Libc) -> None:
    """Goes on as the first process of the new PID namespace; the one until now waits for its end, and ends like it.

    An agent that is root starts its workers there; any other may not. Little is loaded yet, and shared.
    """
    child = os.fork()
    if child == 0:
        return
    libc.end_with_parent()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def _mount_proc(libc: Libc) -> None:
    """Shows only the processes of this namespace, where the kernel allows it: not below what hides parts of /proc."""
    with contextlib.suppress(PermissionError):
        libc.mount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "proc")


def _bound_processes(asked: Mapping[str, Any]) -> None:
    """Bounds the processes of this namespace where nothing else does: the kernel does not count those of user 0.

    Before Linux 6.14 the file is the whole machine's, and is left alone. It takes no less than LEAST_PROCESSES.
    """
    tasks = asked["limits"]["tasks"]
    if tasks and not asked["user"] and os.geteuid() == 0 and bounds.kernel_is_from(BOUNDED_BY_NAMESPACE):
        with contextlib.suppress(OSError), open("/proc/sys/kernel/pid_max", "w", encoding="ascii") as file:
            file.write(str(max(tasks, LEAST_PROCESSES)))


def _build(libc: Libc, asked: Mapping[str, Any], mounted: Mapping[str, Any]) -> list[str]:
    needed = _needed(asked) + covers.devices(asked["devices"])
    hidden = [path for path in asked["hidden"] if os.path.isdir(path)]
    covered = covers.covered(needed, hidden, _identity(asked))
    shown = [each for each in mounted["shown"] if not any(covers.is_within(each[1], cover) for cover in covered)]
    needed += [Needed(*each) for each in mounted["shown"] if each not in shown]
    warnings = mounts.show(libc, {**mounted, "shown": shown})
    for path in asked["hidden"]:
        if os.path.isfile(path) and not any(covers.is_within(path, cover) for cover in covered):
            libc.mount("/dev/null", path, MS_BIND)
    covers.lay(libc, covered, needed, mounted["stage"], asked["tmp_bytes"])
    writable = [each.place for each in needed if each.writable and not covers.is_within(each.place, "/dev")]
    for place in writable:
        if not any(covers.is_within(place, cover) for cover in covered):
            libc.mount(place, place, MS_BIND | MS_REC)
    if os.getpid() == 1:
        _mount_proc(libc)
        _bound_processes(asked)
    libc.make_all_read_only()
    for place in (*writable, *(each[1] for each in shown if each[2]), *covers.TEMPORARY):
        if os.path.isdir(place):
            libc.remount(place, writable=True)
    return warnings


def _needed(asked: Mapping[str, Any], shown: Sequence[Sequence[Any]] = ()) -> list[Needed]:
    found = [Needed(*each) for each in (*asked["needed"], *shown)]
    return found + [Needed(path, path) for path in _interpreter()]


def _identity(asked: Mapping[str, Any]) -> tuple[int, set[int]]:
    if asked.get("user"):
        uid, gid, groups = asked["user"]
        return uid, {gid, *groups}
    return os.geteuid(), {os.getegid(), *os.getgroups()}


def _interpreter() -> list[str]:
    """What this interpreter is made of: where it stands, its packages, ours."""
    ours = os.path.dirname(functions.__file__ or "")
    places = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path, ours, os.path.dirname(sys.executable)}
    places |= {os.path.realpath(each) for each in places if each}
    places.add(os.path.dirname(os.path.realpath(sys.executable)))
    found = sorted(each for each in places if each.startswith("/") and each != "/" and os.path.exists(each))
    return [each for each in found if not any(covers.is_within(each, o) for o in found if o != each)]


def _check_demand(demanded: str | None, tier: str, warnings: list[str]) -> None:
    if demanded and TIERS.index(tier) < TIERS.index(demanded):
        why = "; ".join(warnings) or "the agent does not run as root"
        text = f"it demands the isolation {demanded!r}, and {tier!r} is what can be had here: {why}"
        raise StartError("ISOLATION_NOT_AVAILABLE", text)


def _check_readable(sources: Sequence[str]) -> None:
    """That the worker's user can read what it needs, so that it is told here and not by an import that fails."""
    barred = [path for path in sources if not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0))]
    if barred:
        text = f"the worker's user {os.geteuid()} cannot read {', '.join(sorted(barred))}"
        raise StartError("NOT_READABLE_BY_USER", f"{text}. Let it be read by all, or set RunAs or NoContainer.")
