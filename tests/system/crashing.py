"""What the crash tests share: posts, an emulator in a process of its own, and what must hold whatever happened.

Standard library only, as the tests themselves: crash.py, crash_disk.py, crash_power.py, soak.py.
"""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# A program that says nothing for so long hangs.
PATIENCE = 60
KEYS = ("ZHIPUAI_API_KEY", "ZAI_API_KEY", "ZHIPU_API_KEY", "OPENAI_API_KEY", "ZHIPUAI_BASE_URL", "ZBATCH_CONFIG")
WORDS = "雨下了一夜 桥上的灯还亮着 客服说已加急 食堂换了新老板 地铁终于通了 水退了 今天的面条好吃 求转发 \"引号\" 😭".split()


class Broken(Exception):
    """A promise was broken."""


class Hangs(Broken):
    """A program did not end."""


def environment():
    env = {name: value for name, value in os.environ.items() if name not in KEYS}
    env["ZHIPUAI_API_KEY"] = "some.key"
    return env


def write_posts(path, count, seed=1):
    """The same bytes for the same count and seed; now and then a line that is no post."""
    choose = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for index in range(count):
            if index % 97 == 50:
                out.write('{"content":5}\n')
                continue
            content = f"{index} " + "，".join(choose.choices(WORDS, k=choose.randrange(1, 6)))
            out.write(json.dumps({"content": content, "user_id": index}, ensure_ascii=False) + "\n")


class Server:
    """`zbatch emulate` on a loopback port, its state in a directory; the next one on that state goes on."""

    def __init__(self, zbatch, state, *args, port=0):
        self.command = [str(zbatch), "emulate", "-q", "--state", str(state), *args]
        self.start(port)

    def start(self, port):
        self.child = subprocess.Popen(
            [*self.command, "--port", str(port)],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.base = self.child.stdout.readline().decode().strip()
        self.child.stdout.close()
        if not self.base:
            raise Broken(f"the emulator does not start: {' '.join(self.command)}")
        self.port = int(self.base.split(":")[2].split("/")[0])

    def ledger(self):
        if self.child.poll() is not None:
            raise Broken("the emulator died")
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/__emulator/ledger", timeout=PATIENCE) as reply:
            return json.load(reply)

    def kill(self):
        self.child.kill()
        self.child.wait()

    def restart(self):
        """As after a crash: killed, and started on the same port and state."""
        self.kill()
        self.start(self.port)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def state_ledger(state):
    """Accepted creates by content, from the state directory of a server that need not run."""
    contents, creates = {}, []
    for line in (state / "state.jsonl").read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["event"] == "stored":
            contents[event["file"]["id"]] = event["file"]["blake3"]
        elif event["event"] == "created":
            creates.append(contents[event["create"]["file"]])
    return {content: creates.count(content) for content in creates}


def check_paid_once(by_content, creates):
    """One accepted create for each content (M1), and none missing."""
    twice = {content: count for content, count in by_content.items() if count != 1}
    if twice:
        raise Broken(f"paid more than once: {twice}")
    if len(by_content) != creates:
        raise Broken(f"{len(by_content)} creates where the undisturbed run made {creates}")


class Ran:
    def __init__(self, code, stdout, stderr):
        self.code, self.stdout = code, stdout
        self.stderr = stderr.decode("utf-8", "replace")


def run(command, cwd, stdin=None, kill_after=None, **more):
    """Runs a program to its end, or to its SIGKILL after so many seconds; its stdin is a file or nothing."""
    source = open(stdin, "rb") if stdin else subprocess.DEVNULL
    child = subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(),
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **more,
    )
    if stdin:
        source.close()
    try:
        stdout, stderr = child.communicate(timeout=kill_after or PATIENCE)
    except subprocess.TimeoutExpired:
        # The whole group: under strace the program is its child.
        os.killpg(child.pid, signal.SIGKILL)
        stdout, stderr = child.communicate()
        if kill_after is None:
            told = stderr.decode("utf-8", "replace")
            raise Hangs(f"hangs for {PATIENCE} s: {' '.join(map(str, command))}\n{told}") from None
    return Ran(child.returncode, stdout, stderr)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_same(path, golden):
    if path.read_bytes() != golden.read_bytes():
        raise Broken(f"{path} differs from {golden}")


def report(path):
    """A report without what differs between equal runs: times, and the port of the emulator."""
    seen = json.loads(re.sub(rb"127\.0\.0\.1:\d+", b"127.0.0.1:PORT", path.read_bytes()))
    seen.pop("times", None)
    return seen


def check_same_report(path, golden):
    if report(path) != report(golden):
        raise Broken(f"{path} differs from {golden} in more than times")


def check_whole_lines(path):
    """Nothing is half-visible: a file of lines that has its name ends with a whole line, and each is JSON."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        raise Broken(f"{path} is torn")
    for number, line in enumerate(data.splitlines(), 1):
        try:
            json.loads(line)
        except ValueError:
            raise Broken(f"{path}, line {number}, is no JSON") from None


def check_work_directory(work):
    """What is visible in a work directory after any death is whole; only the journal's last line may be torn."""
    for path in sorted(work.glob("re*/[!.]*.jsonl")):
        check_whole_lines(path)
    for name in ("jsonl_files_info.json", "batch_results.json", "download_info.json", "integration_report.json"):
        if (work / name).exists():
            json.loads((work / name).read_bytes())
    journal = work / "journal.jsonl"
    if journal.exists():
        lines = journal.read_bytes().split(b"\n")[:-1]
        for number, line in enumerate(lines, 1):
            try:
                json.loads(line)
            except ValueError:
                raise Broken(f"{journal}, line {number}, is no JSON") from None


def parts(folder):
    """Files that were being written."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*.part"))


def find_zbatch(given):
    zbatch = Path(given).resolve()
    if not zbatch.is_file():
        sys.exit(f"{zbatch} is not there; `make build` makes it")
    return zbatch
