"""What must be on the disk before what: the system calls of a whole job, in their order.

No kill shows a missing sync, since the kernel outlives the process; a power loss does, now and then. So this reads the order of
the calls themselves: each journal event is synced before the next thing is written or sent; each file is synced after its last
write and before it gets its name; its directory is synced before the journal tells of it.

    python3 tests/system/durability.py --zbatch target/debug/zbatch

Needs strace, and the right to trace; says `skipped` where there is none.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CALLS = "write,writev,pwrite64,sendto,sendmsg,fsync,fdatasync,rename,renameat,renameat2,linkat"
PATH = re.compile(r"\((\d+)<([^>]*)>")
# A name, and the open directory that it is in, where the call has one.
NAMES = re.compile(r'(?:(?:\d+|AT_FDCWD)<([^>]*)>, )?"([^"]*)"')


def finished_calls(text):
    """Each call once, where it began; with -f a call may be shown in two parts, and what was synced counts from its end."""
    open_calls = {}
    for line in text.splitlines():
        pid, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            call = call.removesuffix("<unfinished ...>")
            open_calls[pid] = call
            if "sync(" not in call.split("(")[0] + "(":
                yield pid, call
        elif call.startswith("<... "):
            begun = open_calls.pop(pid, "")
            if "sync(" in begun.split("(")[0] + "(":
                yield pid, begun
        elif "(" in call:
            yield pid, call


def names(call):
    return [os.path.join(directory, name) for directory, name in NAMES.findall(call)]


def check(text):
    """The rules that were broken, and how often each was looked at."""
    broken, seen = [], {"events": 0, "files": 0, "directories": 0}
    unsynced_event, author = None, None
    dirty, aliases, unsynced_directories = set(), {}, {}
    for pid, call in finished_calls(text):
        name = call.split("(")[0]
        match = PATH.search(call)
        path = match.group(2) if match else ""
        if "/emulator/" in path:
            continue
        if name in ("fsync", "fdatasync"):
            dirty.discard(path)
            unsynced_directories.pop(path, None)
            if path.endswith("/journal.jsonl"):
                unsynced_event = None
        elif name == "linkat":
            number, new = names(call)[0].rsplit("/", 1)[-1], names(call)[1]
            aliases[new] = aliases.get((pid, number), new)
        elif name.startswith("rename"):
            old, new = names(call)[:2]
            if "/emulator/" in new:
                continue
            seen["files"] += 1
            if aliases.get(old, old) in dirty:
                broken.append(f"{new} got its name before it was synced")
            unsynced_directories[os.path.dirname(new)] = new
            seen["directories"] += 1
        else:
            # Other threads need not wait for an event that is none of theirs.
            waits = unsynced_event and author == pid and (path.startswith("/") or name.startswith("send"))
            if waits and "/dev/" not in path:
                broken.append(f"before the event was synced that begins {unsynced_event[:80]} came {call[:120]}")
                unsynced_event = None
            if path.endswith("/journal.jsonl"):
                seen["events"] += 1
                unsynced_event, author = call.partition(", ")[2], pid
                for directory, new in unsynced_directories.items():
                    # A file of another thread may be on its way; what this event names is not.
                    stem = os.path.basename(new).split(".")[0]
                    if stem in unsynced_event:
                        broken.append(f"{directory} was not synced before the journal told of {new}")
            elif path.startswith("/") and match:
                dirty.add(path)
                aliases[(pid, match.group(1))] = path
    for directory, new in unsynced_directories.items():
        broken.append(f"{directory} was never synced after {new} got its name")
    if unsynced_event:
        broken.append(f"the last event was never synced: {unsynced_event[:80]}")
    return broken, seen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zbatch", type=Path, required=True)
    options = parser.parse_args()
    zbatch = options.zbatch.resolve()
    with tempfile.TemporaryDirectory() as folder:
        traced = ["strace", "-f", "-y", "-qq", "-s", "200", "-e", f"trace={CALLS}", "-o", "calls"]
        try:
            subprocess.run([*traced, "true"], cwd=folder, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as why:
            print(f"skipped: strace does not work here ({why})")
            return 0
        posts = Path(folder, "posts.jsonl")
        posts.write_text("".join(json.dumps({"content": f"post {n}"}) + "\n" for n in range(12)), encoding="utf-8")
        at = [str(Path(folder, name)) for name in ("posts.jsonl", "out.jsonl", "faults.jsonl", "w")]
        command = [str(zbatch), "run", at[0], "-o", at[1], "--faults", at[2], "-d", at[3], "--emulate", "-q"]
        command += ["--max-lines", "5", "--only", "sentiment_polarity"]
        subprocess.run([*traced, *command], cwd=folder, check=True)
        broken, seen = check(Path(folder, "calls").read_text(encoding="utf-8", errors="replace"))
    print(f"durability: {seen['events']} events, {seen['files']} files named, {len(broken)} broken rules")
    for rule in broken[:10]:
        print(rule)
    if min(seen.values()) == 0:
        print("nothing was seen: this check is blind")
        return 1
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
