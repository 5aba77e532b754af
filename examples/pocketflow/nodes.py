"""Pocket Flow nodes that run `zbatch run`: paths go in, paths and counts come out, posts never pass through Python.

Copy this file into your project; it needs the `pocketflow` package and the standard library.

What a node reads from ``shared["zbatch"]`` (all optional but ``output``):

    binary     the program                       default: $ZBATCH, else "zbatch" on the PATH
    posts      posts file                        default: zbatch's own, {data_dir}/posts.json
    output     enhanced posts go here            required
    work_dir   state of the job                  default: zbatch's own
    report     the report goes here              default: in work_dir, else beside the output
    args       more arguments, a list            e.g. ["--emulate", "--only", "topic_analysis"]
    env        more environment variables        e.g. {"ZHIPUAI_API_KEY": ...}; the key is never an argument

What it adds there: ``output_path``, ``report_path``, ``exit_code`` (0 or 1), ``complete`` (exit 0) and ``counts``.
The action is "default" after exit 0, and "faults" after exit 1 if the node has a successor of that name.

Exit 0 and 1 are finished jobs. Every other code raises ``ZbatchError``, so ``max_retries`` and ``wait`` of the node
apply, and the same command goes on with the same work directory: nothing that was paid for is paid for again.
"""

import asyncio
import json
import os
import signal
import subprocess
import threading
from collections import deque
from pathlib import Path

from pocketflow import AsyncNode, Node

STDERR_LINES = 40
"""Last lines of stderr that an error carries."""

STDERR_BYTES = 64 * 1024
"""A line of stderr is cut here."""

GRACE = 30.0
"""Seconds that a cancelled zbatch gets to finish its call in flight and note it down, before the next signal."""

FINISHED = (0, 1)
"""1: the output is there, but more rows than --max-faults went wrong."""


class ZbatchError(RuntimeError):
    """zbatch did not finish. ``code`` is its exit code (negative: the signal that ended it)."""

    def __init__(self, code, stderr):
        self.code = code
        self.stderr = list(stderr)
        told = "\n".join(self.stderr) or "(nothing on stderr)"
        super().__init__(f"zbatch run ended with {code}:\n{told}")


def prepare(shared):
    """What to run, from ``shared["zbatch"]``."""
    job = shared.get("zbatch") or {}
    if not job.get("output"):
        raise ValueError('shared["zbatch"]["output"] must name the file for the enhanced posts')
    output = Path(job["output"])
    command = [str(job.get("binary") or os.environ.get("ZBATCH") or "zbatch"), "run"]
    if job.get("posts"):
        command.append(str(job["posts"]))
    command += ["-o", str(output), "--progress", "plain"]
    if job.get("work_dir"):
        command += ["-d", str(job["work_dir"])]
    if job.get("work_dir") and not job.get("report"):
        report = Path(job["work_dir"]) / "integration_report.json"
    else:
        report = Path(job.get("report") or output.with_name(output.name + ".report.json"))
        command += ["--report", str(report)]
    command += [str(arg) for arg in job.get("args") or []]
    return {"command": command, "env": {**os.environ, **(job.get("env") or {})}, "output": output, "report": report}


def finish(job, code, stderr):
    """The outcome of a job that ended, or the error that the node retries."""
    if code not in FINISHED:
        raise ZbatchError(code, stderr)
    if not job["output"].is_file():
        raise ZbatchError(code, [*stderr, f"{job['output']} was not written"])
    return {
        "exit_code": code,
        "complete": code == 0,
        "output_path": str(job["output"]),
        "report_path": str(job["report"]),
        "counts": counts(job["report"]),
    }


def counts(report_path):
    """Posts in all, and per analysis how many have a value and how many have none."""
    try:
        with open(report_path, encoding="utf-8") as file:
            stats = json.load(file)["integration_stats"]
    except (OSError, ValueError, KeyError):
        return {}
    analyses = {
        name: {"processed": seen.get("processed_posts"), "missing": seen.get("missing_posts"), "status": seen.get("status")}
        for name, seen in stats.get("analyses", {}).items()
    }
    return {"total_posts": stats.get("total_posts"), "analyses": analyses}


def publish(node, shared, outcome):
    """Writes the outcome into ``shared`` and picks the action."""
    shared["zbatch"] = {**(shared.get("zbatch") or {}), **outcome}
    return "faults" if not outcome["complete"] and "faults" in node.successors else "default"


def text(line):
    return line[:STDERR_BYTES].decode("utf-8", "replace").rstrip("\r\n")


class ZbatchNode(Node):
    """Runs `zbatch run` and waits for it."""

    def prep(self, shared):
        return prepare(shared)

    def exec(self, job):
        child = subprocess.Popen(
            job["command"],
            env=job["env"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # A Ctrl-C of the terminal must not reach zbatch beside the SIGTERM we send: the second one is ruder.
            start_new_session=True,
        )
        last = deque(maxlen=STDERR_LINES)

        def drain():
            # A pipe that nobody reads is full after 64 KiB, and the child would wait for ever.
            while line := child.stderr.readline(STDERR_BYTES):
                last.append(text(line))

        drainer = threading.Thread(target=drain, daemon=True)
        drainer.start()
        try:
            code = child.wait()
        except BaseException:
            stop(child)
            raise
        finally:
            drainer.join(timeout=5)
            child.stderr.close()
        return finish(job, code, last)

    def post(self, shared, job, outcome):
        return publish(self, shared, outcome)


class AsyncZbatchNode(AsyncNode):
    """The same without blocking the event loop. Cancelling it stops its own zbatch, SIGTERM first."""

    async def prep_async(self, shared):
        return prepare(shared)

    async def exec_async(self, job):
        child = await asyncio.create_subprocess_exec(
            *job["command"],
            env=job["env"],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        last = deque(maxlen=STDERR_LINES)
        drainer = asyncio.create_task(drain_async(child.stderr, last))
        try:
            code = await child.wait()
            await asyncio.wait({drainer}, timeout=5)
        except BaseException:
            await asyncio.shield(stop_async(child))
            raise
        finally:
            drainer.cancel()
        return finish(job, code, last)

    async def post_async(self, shared, job, outcome):
        return publish(self, shared, outcome)


async def drain_async(stream, last):
    rest = b""
    while block := await stream.read(STDERR_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        last.extend(text(line) for line in lines)
        rest = rest[:STDERR_BYTES]
    if rest:
        last.append(text(rest))


# SIGTERM lets zbatch finish the call in flight and sync its journal; batches at the provider run on, and the same
# command picks them up. SIGKILL is safe too, only ruder. Not SIGINT: a flow that was started in the background of a script
# has that one ignored, and its children inherit it.
SIGNALS = (signal.SIGTERM, signal.SIGKILL)


def stop(child):
    for name in SIGNALS:
        if child.poll() is not None:
            return
        child.send_signal(name)
        try:
            child.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            continue


async def stop_async(child):
    for name in SIGNALS:
        if child.returncode is not None:
            return
        try:
            child.send_signal(name)
            await asyncio.wait_for(asyncio.shield(child.wait()), GRACE)
        except ProcessLookupError:
            return
        except asyncio.TimeoutError:
            continue
