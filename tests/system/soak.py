"""A long job whose client is killed every few seconds, and now and then its server. Standard library only; Linux.

    python3 tests/system/soak.py --zbatch target/release/zbatch --posts 1000000

The posts are made here from a seed. First the golden run: the same faults of lines (blocked, missing, duplicate,
invalid: they depend on seed and line only), no faults of calls, nobody killed. Then the same job against an emulator
that also breaks calls: creates that are done but not answered, and creates that are not done; rate limits, 500s, pages
of HTML, short downloads, slow replies, a listing that lags. The client is killed (SIGKILL) after 5 to 20 seconds, again
and again, the emulator every few kills, and started again on the same port and state. It ends with the run that
nobody had to kill.

What must hold then: one accepted create for each content, no more than without faults; every post in the output, byte
for byte as in the golden run; the same faults file and report. Prints kills, peak memory, open files and minutes.
"""

import argparse
import collections
import json
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
    environment,
    find_zbatch,
    write_posts,
)

LINE_FAULTS = "invalid=2%,blocked=1%,missing=1%,duplicate=1%"
# The server counts these from its start: each restart of it brings them again. After three downloads that come short the
# rows that are there are kept (N5), so that more than two would be rows lost by contract.
CALL_FAULTS = "drop_create=3,lose_create=3,rate_limit=10,server_error=10,html_error=5,truncate=2,slow=20ms,list_lag=500ms"
# Kills of the client for one of the emulator.
SERVER_EVERY = 5
LOOK = 0.1


class Watch:
    """Peaks of a process, and of all processes that were watched with it."""

    def __init__(self):
        self.memory = self.files = 0

    def look(self, pid):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except OSError:
            return
        peak = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")]
        self.memory, self.files = max([self.memory, *peak]), max(self.files, files)

    def __str__(self):
        return f"peak {self.memory / (1 << 20):.0f} MiB, {self.files} open files"


class Client:
    """The one command that is run again and again."""

    def __init__(self, options, folder, server):
        self.folder, self.log = folder, folder / "stderr.log"
        self.command = [
            str(options.zbatch), "run", str(options.input), "-o", "out.jsonl", "-d", "work", "--faults", "faults.jsonl",
            "--only", "sentiment_polarity", "--max-lines", str(options.max_lines), "--poll-interval", "200ms",
            "--settle", "3s", "--base-url", server.base, "-q",
        ]  # fmt: skip
        self.watch = Watch()

    def run(self, seconds=None):
        """To its end, or to its death after so many seconds; the exit code, negative for a signal."""
        begun = time.monotonic()
        # A user who looked at the console: the second create of a held chunk had no clear answer, and made no batch.
        again = ["--on-ambiguous", "again"] if self.is_held() else []
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                [*self.command, *again],
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            while child.poll() is None:
                self.watch.look(child.pid)
                if seconds is not None and time.monotonic() - begun > seconds:
                    child.kill()
                time.sleep(LOOK)
        return child.wait()

    def is_held(self):
        """A chunk was held: nothing but `--on-ambiguous again` creates its batch."""
        return self.events()["held"] > 0

    def events(self):
        """Journaled events by name."""
        journal = self.folder / "work/journal.jsonl"
        counts = collections.Counter()
        if journal.exists():
            for line in journal.read_bytes().split(b"\n")[:-1]:
                counts[json.loads(line)["event"]] += 1
        return counts


def golden(options, folder):
    folder.mkdir()
    begun = time.monotonic()
    with Server(options.zbatch, folder / "server", "--fault", LINE_FAULTS, "--latency", options.latency) as server:
        client = Client(options, folder, server)
        code = client.run()
        if code not in (0, 1):
            raise Broken(f"the golden run ended with {code}: {client.log.read_text()}")
        creates = len(server.ledger()["by_content"])
    shutil.rmtree(folder / "server")
    print(f"golden: {creates} batches, exit {code}, {(time.monotonic() - begun) / 60:.1f} min, {client.watch}", flush=True)
    return code, creates


def soak(options, folder, code, creates):
    """Kills until `options.seconds` are over, then lets it end."""
    folder.mkdir()
    choose = random.Random(options.seed)
    begun, kills, server_kills, ends = time.monotonic(), 0, 0, collections.Counter()
    server_watch = Watch()
    faults = ("--fault", LINE_FAULTS, "--fault", CALL_FAULTS, "--latency", options.latency)
    with Server(options.zbatch, folder / "server", *faults) as server:
        client = Client(options, folder, server)
        while True:
            late = time.monotonic() - begun > options.seconds
            ended = client.run(None if late else choose.uniform(options.shortest, options.longest))
            server_watch.look(server.child.pid)
            if ended == code:
                break
            if ended == -signal.SIGKILL:
                kills += 1
            else:
                # Faults of calls may stop it: the same command goes on.
                ends[ended] += 1
                if ended not in (69, 75) or ends[ended] > 50 + kills:
                    raise Broken(f"ended with {ended}: {client.log.read_text()[-2000:]}")
            counts = client.events()
            print(
                f"{time.monotonic() - begun:5.0f} s: {kills} kills, {counts['chunk']} cut, {counts['created']} created, "
                f"{counts['fetched']} fetched, {counts['lost']} lost",
                flush=True,
            )
            if kills % SERVER_EVERY == SERVER_EVERY - 1 and ended == -signal.SIGKILL:
                server.restart()
                server_kills += 1
        ledger = server.ledger()
    check_paid_once(ledger["by_content"], creates)
    counts = client.events()
    minutes = (time.monotonic() - begun) / 60
    print(f"soak: {kills} kills of the client and {server_kills} of the emulator in {minutes:.1f} min; "
          f"ended otherwise: {dict(ends) or 'never'}; {sum(ledger['by_content'].values())} creates for {creates} contents; "
          f"client {client.watch}; emulator {server_watch}")  # fmt: skip
    print(f"journal: {dict(counts)}")
    return kills


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--zbatch", default="target/release/zbatch")
    options.add_argument("--posts", type=int, default=1_000_000)
    options.add_argument("--seconds", type=float, default=900, help="kills end after so long")
    options.add_argument("--shortest", type=float, default=5, help="seconds that a client lives")
    options.add_argument("--longest", type=float, default=20)
    options.add_argument("--max-lines", type=int, default=2000, help="requests in a chunk")
    options.add_argument("--latency", default="1s", help="time a batch takes")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--folder", help="where to work [default: a fresh directory below $TMPDIR]")
    options = options.parse_args()
    options.zbatch = find_zbatch(options.zbatch)
    if not Path("/proc/self/fd").exists():
        sys.exit("this reads /proc")
    folder = Path(tempfile.mkdtemp(prefix="zbatch-soak-", dir=options.folder))
    options.input = folder / "posts.jsonl"
    write_posts(options.input, options.posts)
    try:
        code, creates = golden(options, folder / "golden")
        kills = soak(options, folder / "soak", code, creates)
        for name in ("out.jsonl", "faults.jsonl"):
            check_same(folder / "soak" / name, folder / "golden" / name)
        check_same_report(folder / "soak/work/integration_report.json", folder / "golden/work/integration_report.json")
        with (folder / "soak/out.jsonl").open("rb") as out:
            lines = sum(1 for _ in out)
        if lines != options.posts:
            raise Broken(f"{lines} lines for {options.posts} posts")
    except Broken as broken:
        sys.exit(f"FAILED: {broken}\n  kept: {folder}")
    shutil.rmtree(folder)
    print(f"{options.posts:,} posts, {kills} kills: 0 duplicate creates, 0 lost rows, the same bytes")


if __name__ == "__main__":
    main()
