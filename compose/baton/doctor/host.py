"""What the host, or the container, lets a process have: memory, processors, shared memory, files, ports, Redis."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from baton.doctor.finding import Finding
from baton.redis_server import find_redis_server

GIB = 2**30
_LEAST_SHM = GIB
_LEAST_FILES = 4096
_CGROUP = Path("/sys/fs/cgroup")


def check_host(port: int, redis_url: str | None) -> Iterator[Finding]:
    """Look at all of it."""
    yield check_processors(_CGROUP)
    yield check_memory(_CGROUP)
    yield check_shared_memory(Path("/dev/shm"))
    yield check_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield check_processes(_CGROUP)
    yield check_port(port)
    yield check_redis(redis_url)


def check_processors(cgroup: Path) -> Finding:
    """Count those that may be used: a router and each worker want one of their own."""
    count = float(len(os.sched_getaffinity(0)))
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    limited = quota.isdigit() and int(quota) / int(period or 100_000) < count
    usable = round(int(quota) / int(period or 100_000), 2) if limited else count
    text = f"{usable:g} processors" + (f" (of {count:g}, by the cgroup)" if limited else "")
    if usable < 2:
        return Finding("note", "cpu", f"{text}.", "Router and workers take turns: give the container two or more.")
    if (load := os.getloadavg()[0]) > usable:
        way_out = "Something else runs: what is measured here is what it leaves."
        return Finding("note", "cpu", f"{text}, with a load of {load:.1f}.", way_out)
    return Finding("ok", "cpu", text)


def check_memory(cgroup: Path) -> Finding:
    """Read what is free, and what the cgroup allows."""
    memory = psutil.virtual_memory()
    limit, used = _read(cgroup / "memory.max"), _read(cgroup / "memory.current")
    free, text = memory.available, f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if limit.isdigit() and int(limit) < memory.total:
        free = min(free, int(limit) - (int(used) if used.isdigit() else 0))
        text = f"{free / GIB:.1f} of {int(limit) / GIB:.1f} GiB free (by the cgroup)"
    if free < 2 * GIB:
        return Finding(
            "note", "memory", text, "A worker of a small model takes 2 GiB: stop what else runs, or raise the limit."
        )
    return Finding("ok", "memory", text)


def check_shared_memory(folder: Path) -> Finding:
    """Read the size of /dev/shm, over which torch and rings of KV share memory between processes."""
    try:
        stat = os.statvfs(folder)
    except OSError as error:
        return Finding("note", "shm", f"{folder}: {error.strerror}.", "Mount one: docker run --shm-size 2g.")
    size, free = stat.f_frsize * stat.f_blocks, stat.f_frsize * stat.f_bavail
    text = f"{folder} has {free / GIB:.2f} of {size / GIB:.2f} GiB free"
    if free < _LEAST_SHM:
        way_out = (
            "Small for KV between processes: docker run --shm-size 2g, or in Kubernetes an emptyDir of medium Memory."
        )
        return Finding("note", "shm", f"{text}.", way_out)
    return Finding("ok", "shm", text)


def check_files(soft: int, hard: int) -> Finding:
    """Judge how many files a process may open: a router has one for each stream."""
    text = f"{_number(soft)} open files a process (at most {_number(hard)})"
    if 0 <= soft < _LEAST_FILES:
        return Finding(
            "note", "files", f"{text}.", f"Each stream takes one: `ulimit -n {max(hard, 65536)}` before a router."
        )
    return Finding("ok", "files", text)


def check_processes(cgroup: Path) -> Finding:
    """Read how many processes and threads the cgroup allows."""
    most, now = _read(cgroup / "pids.max"), _read(cgroup / "pids.current")
    if most.isdigit():
        left = int(most) - int(now or 0)
        if left < 256:
            return Finding("note", "threads", f"{left} more of {most} (by the cgroup).", "Raise it: --pids-limit 4096.")
        return Finding("ok", "threads", f"{left} more of {most} (by the cgroup)")
    return Finding("ok", "threads", "not limited by the cgroup")


def check_port(port: int) -> Finding:
    """Try whether a router could listen."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            way_out = "Stop what listens there, or start the router with another --port."
            return Finding("note", "port", f"127.0.0.1:{port} cannot be taken: {error.strerror}.", way_out)
    return Finding("ok", "port", f"127.0.0.1:{port} is free")


def check_redis(url: str | None) -> Finding:
    """Ask the Redis that was named, or look for a server that `baton up` could start."""
    if url is None:
        program = find_redis_server()
        if program is None:
            way_out = (
                "Workers are then named by --worker alone. pip install 'batonllm[redis]', or install redis-server."
            )
            return Finding("note", "redis", "no server on this machine, and none named by --redis-url.", way_out)
        return Finding("ok", "redis", f"`baton up` starts {program}")
    import redis

    try:
        with redis.Redis.from_url(url, socket_connect_timeout=3, socket_timeout=3) as client:
            info = client.info("server")
    except (redis.RedisError, ValueError) as error:
        way_out = "Check the URL, its password and the network; without it no worker is found."
        return Finding(
            "broken", "redis", f"{_without_password(url)} does not answer: {str(error).rstrip('.')}.", way_out
        )
    return Finding("ok", "redis", f"{_without_password(url)} answers, version {dict(info).get('redis_version')}")  # type: ignore[arg-type, unused-ignore]


def _without_password(url: str) -> str:
    scheme, _, rest = url.rpartition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _number(limit: int) -> str:
    return "any number of" if limit < 0 else f"{limit:,}"


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
