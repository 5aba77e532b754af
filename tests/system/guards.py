"""Takes each guard away in turn and runs the suite that must then fail: a promise whose guard nobody misses is not tested.

    python3 tests/system/guards.py

Builds with the feature `drill`, whose `ZBATCH_WITHOUT` takes guards away (src/drill.rs). Each suite is run once with all guards,
when it must pass, and once without, when it must not. Prints one line a guard, and the failure that it met.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# Enough for each of the guards to be missed; the first failure ends it.
SIMULATOR = ["simulator", "--seeds", "2500", "--most-failures", "1"]
DURABILITY = ["durability"]
SUITES = {
    "intent": SIMULATOR,
    "create-once": SIMULATOR,
    "paging": SIMULATOR,
    "settle": SIMULATOR,
    "fence": SIMULATOR,
    "once": ["zbatch", "jobs::tests::r10_1_"],
    "evidence": ["zbatch", "jobs::tests::r10_1_"],
    "made": ["zbatch", "jobs::tests::r10_1_"],
    "rename": SIMULATOR,
    "torn-tail": SIMULATOR,
    "counts": SIMULATOR,
    "rows": SIMULATOR,
    "file-sync": DURABILITY,
    "directory-sync": DURABILITY,
    "journal-sync": DURABILITY,
    "caps": ["zbatch", "provider::body::tests::a_bomb_and_a_cut_body_are_refused"],
    "redaction": ["tests", "secrets::"],
    "lock": ["zbatch", "workdir::tests::s6_a_second_holder_is_told_who_holds_it"],
    "chunk-hash": ["tests", "jobs::"],
    "history": ["tests", "money::r11_9a_"],
    "place": ["tests", "trust::r11_9a_nothing_is_created_"],
}


def build():
    """The test programs by name, built with the drill, and the program itself."""
    command = ["cargo", "test", "--locked", "--features", "drill", "--no-run", "--message-format", "json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = {}
    for message in map(json.loads, lines):
        if message.get("reason") == "compiler-artifact" and message.get("executable"):
            target = message["target"]
            name = "program" if target["kind"] == ["bin"] and not message["profile"]["test"] else target["name"]
            if target["kind"] != ["bin"] or name == "program":
                found[name] = message["executable"]
    return found


def run(suite, built, without):
    env = {**os.environ, "RUST_BACKTRACE": "0", "ZBATCH_WITHOUT": without}
    if suite == DURABILITY:
        command = [sys.executable, "-B", "tests/system/durability.py", "--zbatch", built["program"]]
    else:
        command = [built[suite[0]], *suite[1:]]
    ran = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return ran.returncode, ran.stdout + ran.stderr


def failure(text):
    """The line that says what failed."""
    signs = ("seed ", "test ", "before the event", "/", "Job {")
    for line in text.splitlines():
        if line.startswith(signs) and ("FAILED" in line or not line.startswith("test ")):
            return line[:110]
    return text.strip().splitlines()[-1][:110] if text.strip() else ""


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    built = build()
    toothless = []
    for suite in {tuple(suite): suite for suite in SUITES.values()}.values():
        code, text = run(suite, built, "")
        if code != 0:
            print(f"with all guards, {' '.join(suite)} fails:\n{text[-3000:]}")
            return 1
        if text.startswith("skipped"):
            print(text.strip())
    for guard, suite in SUITES.items():
        code, text = run(suite, built, guard)
        if text.startswith("skipped"):
            print(f"{guard:<15} skipped: {suite[0]}")
        elif code == 0:
            toothless.append(guard)
            print(f"{guard:<15} NOT MISSED by {' '.join(suite)}")
        else:
            print(f"{guard:<15} missed by {suite[0]}: {failure(text)}")
        sys.stdout.flush()
    print(f"guards: {len(SUITES)}, not missed: {len(toothless)}")
    return 1 if toothless else 0


if __name__ == "__main__":
    sys.exit(main())
