"""A disk that is full. Standard library only; Linux, as root: each case mounts a tmpfs of its own.

    python3 tests/system/crash_disk.py --zbatch target/release/zbatch [--quick]

A job that takes several MiB runs with its work directory and output on a tmpfs that is too small for it, in steps from
the smallest size to one that holds all, so that every step overflows somewhere: the spool, the cut, the journal, a
download, the spill of answers, the output, the report; with the embedded emulator its uploads, results and log too. It
must end with 74 and a line that names operation and file, and nothing that has its name may be torn. Then the tmpfs is
made larger (`mount -o remount,size=`) and the same command must finish: the golden run's bytes, one create for each
content.

Two jobs: `remote`, against an emulator in a process of its own, its state on another disk; and `embedded`.
"""

import argparse
import collections
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from crashing import (
    Broken,
    Server,
    check_paid_once,
    check_same,
    check_same_report,
    check_work_directory,
    find_zbatch,
    run,
    state_ledger,
    write_posts,
)

KIB = 1024
ENOUGH = "64m"
POSTS = 3000
FAULTS = ("--fault", "blocked=1%,missing=1%")
FLAGS = ("--only", "sentiment_polarity", "--max-lines", "60", "--poll-interval", "10ms", "--memory", "2KiB")
OUTPUTS = ("out.jsonl", "faults.jsonl")


@contextlib.contextmanager
def mounted(folder, size):
    """A tmpfs of so many bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "zbatch-full", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


class Job:
    """posts.jsonl is piped in or read from another disk; `w` and the outputs are on the small one."""

    def __init__(self, name, zbatch, posts, folder):
        self.name, self.zbatch, self.posts, self.folder = name, zbatch, posts, folder
        self.embedded = name == "embedded"

    @contextlib.contextmanager
    def server(self, state):
        if self.embedded:
            yield None
        else:
            with Server(self.zbatch, state, *FAULTS) as server:
                yield server

    def run(self, disk, server):
        where = ["--emulate", *FAULTS] if self.embedded else ["--base-url", server.base, "--settle", "50ms"]
        command = [self.zbatch, "run", "-", "-o", "out.jsonl", "-d", "w", "--faults", "faults.jsonl", *FLAGS, *where]
        return run(command, disk, stdin=self.posts)

    def paid(self, disk, server):
        return server.ledger()["by_content"] if server else state_ledger(disk / "w/emulator")

    def golden_run(self):
        """How much room it takes, and what it leaves."""
        disk = self.folder / f"{self.name}-golden"
        with mounted(disk, ENOUGH), self.server(self.folder / "golden-state") as server:
            begun = time.monotonic()
            peak = self.watched(disk, server)
            self.creates = len(self.paid(disk, server))
            self.kept = self.folder / f"{self.name}-kept"
            self.kept.mkdir()
            for name in (*OUTPUTS, "w/integration_report.json"):
                shutil.copy(disk / name, self.kept / Path(name).name)
            print(f"{self.name:8} golden: {self.creates} batches, exit {self.code}, up to {peak // KIB} KiB, "
                  f"{time.monotonic() - begun:.1f} s", flush=True)  # fmt: skip
        shutil.rmtree(self.folder / "golden-state", ignore_errors=True)
        return peak

    def watched(self, disk, server):
        """Runs it, and looks at the disk while it runs."""
        peak, done = [0], threading.Event()

        def look():
            while not done.wait(0.001):
                usage = os.statvfs(disk)
                peak[0] = max(peak[0], (usage.f_blocks - usage.f_bfree) * usage.f_frsize)

        looker = threading.Thread(target=look)
        looker.start()
        ran = self.run(disk, server)
        done.set()
        looker.join()
        self.code = ran.code
        if ran.code not in (0, 1):
            raise Broken(f"the golden run ended with {ran.code}\n{ran.stderr}")
        return peak[0]

    def overflow(self, size, number):
        """One size: what it could not write, or that all fitted."""
        disk = self.folder / f"{self.name}-{number}"
        state = self.folder / f"state-{number}"
        with mounted(disk, size), self.server(state) as server:
            ran = self.run(disk, server)
            if (disk / "w").exists():
                check_work_directory(disk / "w")
            for name in OUTPUTS:
                if (disk / name).exists():
                    check_same(disk / name, self.kept / name)
            if ran.code not in (74, self.code):
                raise Broken(f"ends with {ran.code}, not 74:\n{ran.stderr}")
            what = told(ran) if ran.code == 74 else "all fitted"
            subprocess.run(["mount", "-o", f"remount,size={ENOUGH}", disk], check=True)
            again = self.run(disk, server)
            if again.code != self.code:
                raise Broken(f"with room it ends with {again.code}:\n{again.stderr}\nbefore:\n{ran.stderr}")
            for name in OUTPUTS:
                check_same(disk / name, self.kept / name)
            check_same_report(disk / "w/integration_report.json", self.kept / "integration_report.json")
            check_paid_once(self.paid(disk, server), self.creates)
            left = [path.name for path in disk.rglob(".*.part")]
            if left:
                raise Broken(f"left behind: {left}")
        shutil.rmtree(state, ignore_errors=True)
        disk.rmdir()
        return what


def told(ran):
    """The operation and the file of the line that says why; numbers and random names taken out."""
    lines = [line for line in ran.stderr.splitlines() if "No space left" in line]
    if not lines or not re.match(r"zbatch: (\S+: )*.+: .*No space left on device \(os error 28\)$", lines[-1]):
        raise Broken(f"exit 74 without operation and file:\n{ran.stderr}")
    what = lines[-1].removeprefix("zbatch: ").removesuffix(": No space left on device (os error 28)")
    return re.sub(r"part\d+|[0-9a-f_]{20,}|upload-\d+", "N", what)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--zbatch", default="target/release/zbatch")
    options.add_argument("--quick", action="store_true", help="a tenth of the sizes")
    options.add_argument("--step", type=int, default=32, help="KiB between two sizes")
    options = options.parse_args()
    zbatch = find_zbatch(options.zbatch)
    if sys.platform != "linux" or os.geteuid() != 0:
        print("skipped: mounting a tmpfs takes root on Linux")
        return
    folder = Path(tempfile.mkdtemp(prefix="zbatch-full-"))
    try:
        with mounted(folder / "probe", "64k"):
            pass
    except subprocess.CalledProcessError:
        print("skipped: no tmpfs can be mounted here")
        shutil.rmtree(folder)
        return
    begun, broken, count = time.monotonic(), 0, 0
    write_posts(folder / "posts.jsonl", POSTS)
    for name in ("remote", "embedded"):
        job = Job(name, zbatch, folder / "posts.jsonl", folder)
        peak = job.golden_run()
        step = options.step * KIB * (10 if options.quick else 1)
        stopped = collections.Counter()
        for number, size in enumerate(range(step, peak + 2 * step, step)):
            count += 1
            try:
                stopped[job.overflow(size, number)] += 1
            except Broken as error:
                broken += 1
                print(f"FAILED {name} at {size // KIB} KiB: {error}", flush=True)
        for what, times in stopped.most_common():
            print(f"{times:6} × {what}")
    print(f"{count} sizes, {broken} failed, {(time.monotonic() - begun) / 60:.1f} min")
    if broken:
        sys.exit(f"{broken} sizes failed")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
