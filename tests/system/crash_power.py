"""Power lost at a random instant. Standard library only; Linux, as root: ext4 on a loop device.

    python3 tests/system/crash_power.py --zbatch target/release/zbatch --instants 60

The work directory and the output of `run` are on ext4 in a file; the emulator keeps its state elsewhere, as a provider
does. At a random instant the file is copied: it holds what the disk was given, and not what the system still keeps in
memory. The copy is mounted (ext4 replays its own log), and the same command must finish there: the golden run's bytes,
one create for each content. What was created and is not in the copy's journal must be found through its intent (M1).

Two ways to take the instant, in turns:

  stopped   SIGSTOP, copy, SIGKILL
  running   copy, SIGKILL

A copy takes a few milliseconds. When the disk was written to meanwhile (the file then differs from its copy) it shows no
instant that ever was, and is taken once more, with the program stopped or dead. Each instant takes the next of `MOUNTS`.

    python3 tests/system/crash_power.py --zbatch target/release/zbatch --instants 12 --without-syncs

shows that the test can fail: the program's syncs do nothing (a preloaded library, made with cc), and instants must fail.
"""

import argparse
import collections
import contextlib
import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from crashing import (
    Broken,
    Server,
    check_paid_once,
    check_same,
    check_same_report,
    check_work_directory,
    environment,
    find_zbatch,
    run,
    write_posts,
)

IMAGE_MIB = 24
POSTS = 400
MOUNTS = ("data=ordered", "data=writeback", "commit=300", "data=writeback,commit=300,nodelalloc", "data=journal")
FAULTS = ("--fault", "blocked=2%,missing=2%", "--latency", "30ms")
FLAGS = ("--only", "sentiment_polarity", "--max-lines", "20", "--poll-interval", "10ms", "--memory", "2KiB", "--settle", "50ms")
OUTPUTS = ("out.jsonl", "faults.jsonl")
NO_SYNCS = "int fsync(int fd) { return 0 * fd; } int fdatasync(int fd) { return 0 * fd; }"


@contextlib.contextmanager
def mounted(image, folder, options):
    """The file system in a file; the loop device goes with the mount."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", f"loop,{options}", image, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


def copy(image, to):
    subprocess.run(["cp", "--sparse=always", image, to], check=True)


def same(image, other):
    return filecmp.cmp(image, other, shallow=False)


class Outage:
    def __init__(self, zbatch, posts, folder):
        self.zbatch, self.posts, self.folder = zbatch, posts, folder
        self.environment = environment()
        self.blank = folder / "blank.ext4"
        with self.blank.open("wb") as image:
            image.truncate(IMAGE_MIB << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.blank], check=True)

    def drop_syncs(self):
        """From now on the program that loses its power syncs nothing; the one that resumes does."""
        library = self.folder / "nosync.so"
        command = ["cc", "-shared", "-fPIC", "-o", library, "-x", "c", "-"]
        subprocess.run(command, input=NO_SYNCS.encode(), check=True)
        self.environment["LD_PRELOAD"] = str(library)

    def command(self, server):
        return [
            self.zbatch, "run", self.posts, "-o", "out.jsonl", "-d", "w", "--faults", "faults.jsonl", "-q",
            "--base-url", server.base, *FLAGS,
        ]  # fmt: skip

    def golden_run(self):
        self.kept = self.folder / "golden"
        self.kept.mkdir()
        image = self.folder / "golden.ext4"
        copy(self.blank, image)
        with mounted(image, self.folder / "disk", MOUNTS[0]) as disk:
            with Server(self.zbatch, self.folder / "golden-state", *FAULTS) as server:
                begun = time.monotonic()
                ran = run(self.command(server), disk)
                self.seconds, self.code = time.monotonic() - begun, ran.code
                if ran.code not in (0, 1):
                    raise Broken(f"the golden run ended with {ran.code}\n{ran.stderr}")
                self.creates = len(server.ledger()["by_content"])
            for name in (*OUTPUTS, "w/integration_report.json"):
                shutil.copy(disk / name, self.kept / Path(name).name)
        image.unlink()

    def instant(self, number, how, options, wait):
        """Power lost after `wait` seconds; how many events the journal had kept, and whether a create was only intended."""
        image, copied, state = (self.folder / f"{number}{end}" for end in (".ext4", ".copy.ext4", "-state"))
        copy(self.blank, image)
        again = 0
        with Server(self.zbatch, state, *FAULTS) as server:
            with mounted(image, self.folder / "disk", options) as disk:
                child = subprocess.Popen(
                    [str(part) for part in self.command(server)],
                    cwd=disk,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                time.sleep(wait)
                if how == "stopped":
                    child.send_signal(signal.SIGSTOP)
                copy(image, copied)
                if how == "running":
                    child.kill()
                    child.wait()
                while not same(image, copied):
                    again += 1
                    copy(image, copied)
                child.kill()
                child.wait()
            before = server.ledger()["by_content"]
            with mounted(copied, self.folder / "disk", options) as disk:
                journal = disk / "w/journal.jsonl"
                lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
                created = journal.read_bytes().count(b'"event":"created"') if journal.exists() else 0
                if (disk / "w").exists():
                    check_work_directory(disk / "w")
                for name in OUTPUTS:
                    if (disk / name).exists():
                        check_same(disk / name, self.kept / name)
                ran = run(self.command(server), disk)
                if ran.code != self.code:
                    raise Broken(f"the same command ends with {ran.code}:\n{ran.stderr}")
                for name in OUTPUTS:
                    check_same(disk / name, self.kept / name)
                check_same_report(disk / "w/integration_report.json", self.kept / "integration_report.json")
                check_paid_once(server.ledger()["by_content"], self.creates)
        image.unlink()
        copied.unlink()
        shutil.rmtree(state)
        return lines, len(before) - created, again


def can_mount(outage):
    try:
        with mounted(outage.blank, outage.folder / "disk", MOUNTS[0]):
            return True
    except subprocess.CalledProcessError:
        return False


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--zbatch", default="target/release/zbatch")
    options.add_argument("--instants", type=int, default=60)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--without-syncs", action="store_true", help="prove the test: now instants must fail")
    options = options.parse_args()
    zbatch = find_zbatch(options.zbatch)
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        print("skipped: a loop device takes root on Linux, and mkfs.ext4")
        return
    folder = Path(tempfile.mkdtemp(prefix="zbatch-power-"))
    posts = folder / "posts.jsonl"
    write_posts(posts, POSTS)
    outage = Outage(zbatch, posts, folder)
    if not can_mount(outage):
        print("skipped: no loop device can be mounted here")
        shutil.rmtree(folder)
        return
    begun, broken, found = time.monotonic(), 0, collections.Counter()
    outage.golden_run()
    print(f"golden: {outage.creates} batches, exit {outage.code}, {outage.seconds:.2f} s", flush=True)
    if options.without_syncs:
        outage.drop_syncs()
    choose = random.Random(options.seed)
    for number in range(options.instants):
        how, mount = ("stopped", "running")[number % 2], MOUNTS[number // 2 % len(MOUNTS)]
        wait = choose.uniform(0, outage.seconds * 1.1)
        try:
            lines, unknown, again = outage.instant(number, how, mount, wait)
        except Broken as error:
            broken += 1
            print(f"FAILED instant {number}, {how}, {mount}, after {wait:.3f} s: {str(error)[:500]}", flush=True)
            continue
        found["events kept"] += lines
        found["creates that the copy did not know"] += unknown
        found["instants with such a create"] += unknown > 0
        found["copies taken once more"] += again
        found["instants before the first event"] += lines == 0
    print(f"{options.instants} instants, {broken} failed, {(time.monotonic() - begun) / 60:.1f} min, seed {options.seed}")
    for what, count in found.items():
        print(f"{count:8} {what}")
    if options.without_syncs:
        shutil.rmtree(folder)
        sys.exit(None if broken else "without syncs no instant failed: the test proves nothing")
    if broken:
        sys.exit(f"{broken} instants failed; what they left is in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
