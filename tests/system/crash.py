"""The program killed, and refused by the system, at every call it makes. Standard library only; Linux with strace.

    python3 tests/system/crash.py --zbatch target/release/zbatch            the long form: every call
    python3 tests/system/crash.py --zbatch target/release/zbatch --quick    first, middle and last call of each kind

For each verb that writes there is a small job (see `JOBS`). It is run once undisturbed, the golden run, and once under
strace, to learn which calls it makes. Then it is run once for each case:

  kill    SIGKILL before the Nth call of a kind; before the next one is after this one
  error   the Nth call of a kind is refused: ENOSPC, EIO, EDQUOT, EINTR, or what a socket can say
  broken  every sync from the Nth on is refused
  short   RLIMIT_FSIZE: files end at so many bytes, so writes come short and then fail; the signal that comes with it is
          ignored (an error) or not (death in the middle of a line)

strace counts calls per thread, so a case may meet another call than the trace showed: what was met is read from strace's
own log. After an error the exit code is 74 with a line that names operation and file, or the error was one that may be
passed over; nothing that has its name is torn; no failed sync is tried again, and nothing is written to that file
any more. In the long form the resumed run is killed too, at a random moment. In the end the same command gives the
golden run's bytes and exit code, and the emulator's ledger shows one create for each content.

A case that fails prints the command that runs it alone, and leaves its directory.
"""

import argparse
import collections
import concurrent.futures
import errno
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from crashing import (
    Broken,
    Hangs,
    Ran,
    Server,
    check_paid_once,
    check_same,
    check_same_report,
    check_whole_lines,
    check_work_directory,
    digest,
    find_zbatch,
    parts,
    run,
    state_ledger,
    write_posts,
)

FILE_ERRORS = {
    "openat": ("ENOSPC", "EIO", "EMFILE", "EINTR"),
    "read": ("EIO", "EINTR"),
    "pread64": ("EIO", "EINTR"),
    "write": ("ENOSPC", "EIO", "EDQUOT", "EINTR"),
    "pwrite64": ("ENOSPC", "EIO", "EDQUOT", "EINTR"),
    "writev": ("ENOSPC", "EIO", "EDQUOT", "EINTR"),
    "copy_file_range": ("ENOSPC", "EIO", "EDQUOT"),
    "sendfile": ("ENOSPC", "EIO"),
    "fsync": ("ENOSPC", "EIO", "EDQUOT"),
    "fdatasync": ("ENOSPC", "EIO", "EDQUOT"),
    "rename": ("ENOSPC", "EIO", "EDQUOT"),
    "renameat": ("ENOSPC", "EIO", "EDQUOT"),
    "renameat2": ("ENOSPC", "EIO", "EDQUOT"),
    "linkat": ("ENOSPC", "EIO"),
    "unlink": ("EIO",),
    "unlinkat": ("EIO",),
    "mkdir": ("ENOSPC", "EIO", "EDQUOT"),
    "ftruncate": ("EIO", "EINTR"),
    "lseek": ("EIO",),
    "getdents64": ("EIO",),
    "flock": ("EIO", "EINTR"),
}
SOCKET_ERRORS = {
    "socket": ("EMFILE",),
    "connect": ("ECONNREFUSED", "ENETUNREACH", "EADDRNOTAVAIL"),
    "sendto": ("ECONNRESET", "EPIPE"),
    "recvfrom": ("ECONNRESET", "ETIMEDOUT"),
}
# On sockets too.
SHARED_ERRORS = {"write": ("ECONNRESET", "EPIPE"), "writev": ("ECONNRESET", "EPIPE"), "read": ("ECONNRESET",)}
CALLS = sorted({*FILE_ERRORS, *SOCKET_ERRORS, "close", "shutdown"})
SYNCS = ("fsync", "fdatasync")
WRITES = ("write", "pwrite64", "writev", "copy_file_range", "sendfile")
# Dead by SIGKILL; strace tells of it as a shell does.
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
ONLY = ("--only", "sentiment_polarity,publisher_analysis")
FAULTS = ("--fault", "blocked=3%,missing=2%")
JOB_FLAGS = ("--max-lines", "25", "--poll-interval", "10ms", "--memory", "2KiB")
OUTPUTS = ("-o", "out.jsonl", "--faults", "faults.jsonl")


class Job:
    """A command, the files it starts from, and what it leaves behind.

    `prepare(job)` fills `job.template`; `outputs` are files compared by bytes, `unordered` those compared by lines.
    """

    def __init__(self, name, args, prepare, outputs, unordered=(), stdin=None, remote=False, reports=()):
        self.name, self.args, self.prepare = name, args, prepare
        self.outputs, self.unordered, self.reports = outputs, unordered, reports
        self.stdin, self.remote = stdin, remote

    def setup(self, zbatch, folder):
        self.zbatch = zbatch
        self.template, self.golden = folder / f"{self.name}.template", folder / f"{self.name}.golden"
        self.template.mkdir()
        self.prepare(self)
        begun = time.monotonic()
        with Place(self, self.golden) as place:
            ran = place.run()
            self.code, self.seconds = ran.code, time.monotonic() - begun
            if self.code not in (0, 1):
                raise Broken(f"{self.name}: the golden run ended with {ran.code}\n{ran.stderr}")
            self.creates = len(place.paid())
        self.requests = {}
        kept = self.golden.with_suffix(".requests")
        if "--emulate" in self.args or self.remote and self.name == "run":
            with Place(self, kept) as place:
                place.run("--keep-requests")
        for path in [*self.golden.glob("w/requests/*"), *kept.glob("w/requests/*")]:
            self.requests[path.name] = digest(path)

    def call(self, *args, **more):
        """One undisturbed step of a preparation."""
        ran = run([self.zbatch, *args], self.template, **more)
        if ran.code not in (0, 1):
            raise Broken(f"{self.name}: {args} ended with {ran.code}\n{ran.stderr}")
        return ran


class Place:
    """A fresh copy of a job's template, with a server if the job needs one."""

    def __init__(self, job, folder):
        self.job, self.folder = job, folder
        shutil.copytree(job.template, folder)
        self.log = folder.with_suffix(".strace")
        self.server = None

    def __enter__(self):
        if self.job.remote:
            faults = [] if self.job.name in ("submit", "fetch") else FAULTS
            self.server = Server(self.job.zbatch, self.folder / "server", *faults)
        return self

    def __exit__(self, *_):
        if self.server:
            self.server.kill()

    def command(self):
        remote = ["--base-url", self.server.base] if self.server else []
        # A copy of a work directory is gone on with only if that is said.
        moved = ["--moved"] if (self.job.template / "w/journal.jsonl").exists() else []
        return [self.job.zbatch, *self.job.args, *remote, *moved]

    def run(self, *args, strace=(), **more):
        stdin = self.folder / self.job.stdin if self.job.stdin else None
        return run([*strace, *self.command(), *args], self.folder, stdin=stdin, **more)

    def traced(self, calls, *inject):
        return ["strace", "-f", "-qq", "-y", "-s", "0", "-o", self.log, "-e", "signal=none",
                "-e", f"trace={','.join(calls)}", *inject]  # fmt: skip

    def lines(self):
        """strace's lines, with the two halves of a call that another thread interrupted put together."""
        begun, whole = {}, []
        for line in self.log.read_text("utf-8", "replace").splitlines():
            thread, _, rest = line.partition(" ")
            rest = rest.lstrip()
            if rest.endswith("<unfinished ...>"):
                begun[thread] = rest.removesuffix("<unfinished ...>")
            elif resumed := re.match(r"<\.\.\. \w+ resumed>", rest):
                whole.append(f"{thread} {begun.pop(thread, '')}{rest[resumed.end() :]}")
            else:
                whole.append(f"{thread} {rest}")
        # Killed in the middle of these.
        return whole + [f"{thread} {rest}" for thread, rest in begun.items()]

    def paid(self):
        """Creates by content; as the server tells, which must have survived, or from its files."""
        if self.server:
            return self.server.ledger()["by_content"]
        state = self.folder / "w/emulator"
        return state_ledger(state) if (state / "state.jsonl").exists() else {}

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.log.unlink(missing_ok=True)


def prepare_posts(job, count=60):
    write_posts(job.template / "posts.jsonl", count)


def prepare_requests(job):
    prepare_posts(job)
    job.call("gen", "posts.jsonl", "-o", "requests.jsonl", *ONLY)


def prepare_chunks(job):
    prepare_posts(job)
    job.call("gen", "-d", "w", "posts.jsonl", "--max-lines", "25", *ONLY)


def prepare_batches(job):
    """Batches that ended at a server whose state comes along: what is fetched is the same each time."""
    prepare_chunks(job)
    with Server(job.zbatch, job.template / "server", *FAULTS) as server:
        remote = ("--base-url", server.base, "--poll-interval", "10ms")
        job.call("submit", "-d", "w", *remote)
        shutil.copytree(job.template / "w", job.template / "aside")
        job.call("fetch", "-d", "aside", "--moved", "--keep-remote", *remote)
    shutil.rmtree(job.template / "aside")


def prepare_results(job):
    prepare_posts(job, 600)
    job.call("run", "posts.jsonl", "-o", "first.jsonl", "-d", "first", "--emulate", *ONLY, *FAULTS)
    with (job.template / "results.jsonl").open("wb") as results:
        for path in sorted(job.template.glob("first/results/*")):
            results.write(path.read_bytes())
    shutil.rmtree(job.template / "first")
    (job.template / "first.jsonl").unlink()


def prepare_answers(job):
    prepare_results(job)
    job.call("parse", "results.jsonl", "-o", "answers.jsonl")
    (job.template / "tmp").mkdir()


RUN_REPORT = ("w/integration_report.json",)
JOBS = (
    Job(
        "run-emulate",
        ("run", "posts.jsonl", "-d", "w", "--emulate", *ONLY, *OUTPUTS, *JOB_FLAGS, *FAULTS),
        prepare_posts,
        ("out.jsonl", "faults.jsonl"),
        reports=RUN_REPORT,
    ),
    Job(
        "run",
        ("run", "posts.jsonl", "-d", "w", "--settle", "50ms", *ONLY, *OUTPUTS, *JOB_FLAGS),
        prepare_posts,
        ("out.jsonl", "faults.jsonl"),
        remote=True,
        reports=RUN_REPORT,
    ),
    Job(
        "run-stdin",
        ("run", "-", "-d", "w", "-o", "out.json.gz", "--faults", "faults.jsonl", "--emulate", *ONLY, *JOB_FLAGS, *FAULTS),
        prepare_posts,
        ("out.json.gz", "faults.jsonl"),
        stdin="posts.jsonl",
        reports=RUN_REPORT,
    ),
    Job(
        "gen-chunks",
        ("gen", "-d", "w", "posts.jsonl", "--max-lines", "25", "--faults", "faults.jsonl", *ONLY),
        prepare_posts,
        ("faults.jsonl", "w/requests/*", "w/rows/*"),
    ),
    Job(
        "chunk",
        ("chunk", "-d", "w", "requests.jsonl", "--max-lines", "25"),
        prepare_requests,
        ("w/requests/*", "w/rows/*"),
    ),
    Job(
        "submit",
        ("submit", "-d", "w", "--poll-interval", "10ms", "--settle", "50ms"),
        prepare_chunks,
        (),
        remote=True,
    ),
    Job(
        "fetch",
        ("fetch", "-d", "w", "--poll-interval", "10ms", "-o", "results.jsonl"),
        prepare_batches,
        ("w/results/*",),
        unordered=("results.jsonl",),
        remote=True,
    ),
    Job(
        "merge",
        ("merge", "posts.jsonl", "answers.jsonl", "-o", "out.jsonl", "--faults", "faults.jsonl", "--report", "report.json",
         "--memory", "4KiB", "--tmp-dir", "tmp"),
        prepare_answers,
        ("out.jsonl", "faults.jsonl"),
        reports=("report.json",),
    ),
    Job(
        "parse",
        ("parse", "results.jsonl", "-o", "answers.jsonl.zst", "--faults", "faults.jsonl"),
        prepare_results,
        ("answers.jsonl.zst", "faults.jsonl"),
    ),
    Job(
        "gen",
        ("gen", "posts.jsonl", "-o", "requests.jsonl", "--faults", "faults.jsonl", *ONLY),
        prepare_posts,
        ("requests.jsonl", "faults.jsonl"),
    ),
)  # fmt: skip

Case = collections.namedtuple("Case", "job how call when error")
# A traced call: which, its number in its thread, what it was done to, and whether that was a socket.
Seen = collections.namedtuple("Seen", "call when socket")


def trace(job, folder):
    """The calls of one undisturbed run; those of the loader and to the terminal are none of ours."""
    counts, seen = collections.Counter(), set()
    with Place(job, folder) as place:
        ran = place.run(strace=place.traced(CALLS))
        if ran.code != job.code:
            raise Broken(f"{job.name}: under strace it ends with {ran.code}\n{ran.stderr}")
        loader = collections.Counter()
        for line in place.lines():
            match = re.match(r"(\d+) (\w+)\(", line)
            if not match:
                continue
            thread, call = match.groups()
            counts[thread, call] += 1
            name = target(line)
            if name.startswith(("/etc/ld.so", "/lib/", "/usr/lib/")):
                loader[call] += 1
            elif is_socket(line):
                seen.add(Seen(call, counts[thread, call], True))
            elif is_file(line, place):
                seen.add(Seen(call, counts[thread, call], False))
        place.remove()
    # The loader's calls come first in the first thread, and with the same numbers in the others.
    seen = {one for one in seen if one.when > loader[one.call]}
    return seen, len(counts), sum(counts.values())


def target(line):
    """The file a traced call was about, by its path; the old one of a rename."""
    match = re.match(r"\d+ \w+\(\d+<([^>]*)>", line) or re.search(r'"([^"]+)"', line)
    return match.group(1).removesuffix("(deleted)") if match else ""


def is_socket(line):
    return re.match(r"\d+ (socket|connect|sendto|recvfrom|shutdown)\(|\d+ \w+\(\d+<(socket|TCP|UNIX)", line) is not None


def is_file(line, place):
    """A file of the job: not the program's own libraries and pipes, nor how its threads wake each other."""
    name = target(line)
    return name.startswith(str(place.folder)) or name != "" and not name.startswith("/") and ":" not in name


def some(numbers, every):
    """All of them, or first, middle and last."""
    numbers = sorted(numbers)
    return numbers if every else sorted({numbers[0], numbers[len(numbers) // 2], numbers[-1]})


def cases(job, seen, every):
    found = []
    kinds = sorted({(call, socket) for call, _, socket in seen})
    for call, socket in kinds:
        numbers = {one.when for one in seen if (one.call, one.socket) == (call, socket)}
        for when in some(numbers, every):
            found.append(Case(job, "kill", call, when, ""))
        if socket:
            errors = SOCKET_ERRORS.get(call) or SHARED_ERRORS.get(call, ())
        else:
            errors = FILE_ERRORS.get(call, ())
        for when in some(numbers, every):
            # In the short form the errors take turns.
            for error in errors if every else [errors[when % len(errors)]] if errors else ():
                found.append(Case(job, "error", call, when, error))
        # Of writes to files alone `short` and crash_disk.py make one: these would refuse what wakes threads, too.
        if call in SYNCS:
            for when in some(numbers, every):
                found.append(Case(job, "broken", call, when, "EIO"))
    sizes = {path.stat().st_size for path in job.golden.rglob("*") if path.is_file() and "server" not in path.parts}
    limits = {0, 1, *(size // 2 for size in sizes), *(size - 1 for size in sizes if size > 1)}
    for limit in some(limits, every):
        found.append(Case(job, "short", "write", limit, "EFBIG"))
        found.append(Case(job, "short", "write", limit, "SIGXFSZ"))
    return list(dict.fromkeys(found))


def limited(case):
    """In the child: files end at so many bytes."""

    def limit():
        # With SIGXFSZ as it is by default the program must see to it that it gets EFBIG all the same.
        if case.error == "EFBIG":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (case.when, case.when))

    return limit


def disturb(case, place):
    """Runs the job once, disturbed; how it ended, and strace's lines."""
    if case.how == "short":
        return place.run(preexec_fn=limited(case)), []
    if case.how == "kill":
        inject = f"inject={case.call}:signal=KILL:when={case.when}"
    else:
        inject = f"inject={case.call}:error={case.error}:when={case.when}{'+' if case.how == 'broken' else ''}"
    calls = sorted({case.call, *SYNCS, *WRITES[:3], "rename", "renameat", "renameat2"})
    ran = place.run(strace=place.traced(calls, "-e", inject))
    return ran, place.lines()


def check_syncs(lines, injected):
    """A file whose sync failed is neither synced again, nor renamed, nor, if it is a journal, written to (S2)."""
    for at, line in enumerate(lines):
        if line not in injected or not re.match(r"\d+ f(data)?sync\(", line) or "EINTR" in line:
            continue
        path = target(line)
        for later in lines[at + 1 :]:
            # A directory has other steps' files in it, and they sync it for themselves.
            if "INJECTED" in later or target(later) != path or os.path.isdir(path):
                continue
            raise Broken(f"after the failed sync of {path} came: {later}")


def check_told(ran, injected, place):
    """Exit 74 comes with a line that names the operation and the file (S7)."""
    if any("<pipe:" in line for line in injected):
        # stderr was refused as well.
        return
    told = [line for line in ran.stderr.splitlines() if "(os error" in line]
    if not told:
        raise Broken(f"exit 74 without a reason:\n{ran.stderr}")
    if not re.match(r"zbatch: (\S+: )*[a-z][a-z ]+ \S+.*: .*\(os error \d+\)$", told[-1]):
        raise Broken(f"not operation and file: {told[-1]}")
    names = []
    for line in injected:
        for path in {target(line), *re.findall(r'"([^"]+)"', line)}:
            name = "." if path == str(place.folder) else os.path.basename(path)
            # A temp file is called by the name it will have.
            names.append(re.sub(r"^\.(.*)\.\w{6}\.part$", r"\1", name))
    # Stdin has no other name, and a chunk gets its own at the end.
    names += ["stdin"] * (place.job.stdin in names) + ["w/requests/"] * ("chunk" in names)
    if names and not any(name.startswith("#") or name in line for name in names for line in told):
        raise Broken(f"the line names none of {names}: {told}")


def check_error(case, ran, lines, place):
    """After an error: the right exit code, one line, no sync tried again, nothing left half-done."""
    injected = [line for line in lines if "(INJECTED)" in line]
    files = [line for line in injected if is_file(line, place)]
    others = [line for line in injected if not is_file(line, place) and not is_socket(line)]
    if any("<anon_inode:" in line or "/lib" in target(line) for line in others):
        # How threads wake each other, or the loader: no program survives that, and no disk does it.
        return False
    check_syncs(lines, injected)
    if ran.code == 74:
        check_told(ran, files, place)
    elif ran.code == case.job.code:
        lost = [line for line in files if case.call in (*WRITES, *SYNCS, "rename", "renameat") and case.error != "EINTR"]
        if lost:
            raise Broken(f"passed over: {lost[0]}")
    elif ran.code not in (69, 75) or files:
        raise Broken(f"ends with {ran.code} after {injected}\n{ran.stderr}")
    left = [part for part in parts(place.folder) if not part.startswith("server/")]
    if left and case.call not in ("unlink", "unlinkat") and "w/emulator" not in "".join(injected):
        raise Broken(f"left behind: {left}")
    return bool(injected) or case.how == "short"


def visible(folder, pattern):
    """Files that have their name."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def check_visible(job, place, code):
    """What has its name is whole, and if it does not depend on what came from the network, it is the golden one."""
    folder = place.folder
    if (folder / "w").exists():
        check_work_directory(folder / "w")
    for path in visible(folder, "w/requests/*.jsonl"):
        if job.requests.get(path.name, digest(path)) != digest(path):
            raise Broken(f"{path} is not what the golden run cut")
    for pattern in job.outputs:
        for path in visible(folder, pattern):
            # What could not be fetched is missing from a whole file.
            if code in (69, 75) and path.suffix == ".jsonl":
                check_whole_lines(path)
            elif code not in (69, 75):
                check_same(path, job.golden / path.relative_to(folder))
    for name in job.unordered:
        if (folder / name).exists():
            check_whole_lines(folder / name)


def check_end(job, place):
    """The same command finishes: the golden bytes, the golden exit code, one create for each content."""
    folder = place.folder
    ran = place.run()
    if ran.code != job.code:
        raise Broken(f"the same command then ends with {ran.code}, not {job.code}:\n{ran.stderr}")
    for pattern in job.outputs:
        expected = [str(path.relative_to(job.golden)) for path in visible(job.golden, pattern)]
        found = [str(path.relative_to(folder)) for path in visible(folder, pattern)]
        if found != expected:
            raise Broken(f"{pattern}: {found} where the golden run has {expected}")
        for name in expected:
            check_same(folder / name, job.golden / name)
    for name in job.unordered:
        if sorted((folder / name).read_bytes().splitlines()) != sorted((job.golden / name).read_bytes().splitlines()):
            raise Broken(f"{name} has other lines than the golden run's")
    for name in job.reports:
        check_same_report(folder / name, job.golden / name)
    if (folder / "w").exists():
        check_work_directory(folder / "w")
        left = parts(folder / "w")
        if left:
            raise Broken(f"left behind in the work directory: {left}")
    check_paid_once(place.paid(), job.creates)


def try_case(case, folder, seed, again):
    """One case from beginning to end; what was met, and kills beside the first."""
    choose = random.Random(f"{seed} {describe(case)}")
    kills = 0
    with Place(case.job, folder) as place:
        try:
            ran, lines = disturb(case, place)
        except Hangs:
            # A lost wake-up: not a call that a disk or a network refuses.
            if not any("(INJECTED)" in line and "<anon_inode:" in line for line in place.lines()):
                raise
            ran, lines = Ran(None, b"", b""), place.lines()
        if case.how == "kill":
            met = ran.code in KILLED
            if not met and ran.code != case.job.code:
                raise Broken(f"ends with {ran.code}\n{ran.stderr}")
        else:
            met = check_error(case, ran, lines, place)
        check_visible(case.job, place, ran.code)
        while again and choose.random() < 0.6:
            ran = place.run(kill_after=choose.uniform(0.01, case.job.seconds))
            kills += ran.code == -9
            check_visible(case.job, place, ran.code)
        check_end(case.job, place)
        place.remove()
    return met, kills


def describe(case):
    return f"{case.job.name}/{case.how}/{case.call}/{case.when}/{case.error}"


def sweep(options, folder):
    begun = time.monotonic()
    chosen = [job for job in JOBS if not options.only or job.name in options.only]
    todo, broken = [], 0
    for job in chosen:
        job.setup(options.zbatch, folder)
        seen, threads, calls = trace(job, folder / f"{job.name}.traced")
        found = cases(job, seen, every=not options.quick)
        if options.case:
            found = [case for case in found if describe(case) == options.case]
        elif options.share > 1:
            choose = random.Random(f"{options.seed} {job.name}")
            found = choose.sample(found, len(found) // options.share)
        todo += found
        print(f"{job.name:12} {calls:5} calls of {threads:3} kinds and threads, {job.creates} batches, "
              f"{job.seconds:.2f} s: {len(found)} cases", flush=True)  # fmt: skip
    tally, met, kills = collections.Counter(), collections.Counter(), 0
    with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
        running = {}
        for number, case in enumerate(todo):
            place = folder / f"case-{number}"
            running[pool.submit(try_case, case, place, options.seed, not options.quick)] = case, place
        for future in concurrent.futures.as_completed(running):
            case, place = running[future]
            tally[case.job.name, case.how] += 1
            try:
                was_met, more = future.result()
                met[case.job.name, case.how] += was_met
                kills += more
            except (Broken, OSError, ValueError) as error:
                broken += 1
                print(f"FAILED {describe(case)}: {error}\n  kept: {place}\n  alone: python3 tests/system/crash.py --zbatch "
                      f"{options.zbatch} --seed {options.seed} --case {describe(case)}", flush=True)  # fmt: skip
    print(f"{'cases (met)':12} {'kill':>12} {'error':>12} {'broken':>12} {'short':>12}")
    for job in chosen:
        row = [f"{tally[job.name, how]} ({met[job.name, how]})" for how in ("kill", "error", "broken", "short")]
        print(f"{job.name:12} " + " ".join(f"{cell:>12}" for cell in row))
    deaths = sum(count for (_, how), count in met.items() if how == "kill")
    print(f"{len(todo)} cases, {deaths} kills and {kills} more while resuming, {broken} failed, "
          f"{(time.monotonic() - begun) / 60:.1f} min, seed {options.seed}")  # fmt: skip
    return broken


def strace_works():
    """Tracing may be missing or forbidden."""
    if not shutil.which("strace"):
        return False
    return subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=none", "true"], capture_output=True
    ).returncode == 0  # fmt: skip


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--zbatch", default="target/release/zbatch")
    options.add_argument("--quick", action="store_true", help="first, middle and last call of each kind")
    options.add_argument("--only", action="append", choices=[job.name for job in JOBS], help="this job; may be repeated")
    options.add_argument("--case", help="this case alone, as a failure names it")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--share", type=int, default=1, help="one case in so many, as the seed decides")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--folder", help="where to work [default: a fresh directory below $TMPDIR]")
    options = options.parse_args()
    options.zbatch = find_zbatch(options.zbatch)
    if options.case:
        options.only = [options.case.split("/")[0]]
    if not strace_works():
        print("skipped: strace is not here, or may not trace")
        return
    if errno.errorcode.get(errno.ENOSPC) != "ENOSPC":
        sys.exit("these are not Linux's errors")
    folder = Path(tempfile.mkdtemp(prefix="zbatch-crash-", dir=options.folder))
    broken = sweep(options, folder)
    if broken:
        sys.exit(f"{broken} cases failed; what they left is in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
