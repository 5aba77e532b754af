"""zbatch beside what people have, on the same data in the same run. Standard library only; Linux.

    make bench                      or: python3 tests/system/bench.py --zbatch target/release/zbatch --posts 100000

Every stage runs each program that is installed (a peer that is not is skipped aloud), interleaved, --rounds times;
medians count. Prints one table, and writes it to --json. Ratios are what matters: seconds are this machine's.

Posts and results are those of tests/system/measure.py, made from a seed; --data DIR takes posts_N.jsonl from there instead.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

ROOT = Path(__file__).resolve().parent.parent.parent
PEERS = ROOT / "tests" / "system" / "peers"
MIB = 1 << 20


def prompts():
    """The prompts with their labels, as a peer's script would hold them."""
    texts = {}
    for name in measure.ANALYSES:
        folder = ROOT / "data" / "analyses" / name
        rule = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
        prompt = (folder / "prompt.txt").read_text(encoding="utf-8")
        if "reference" in rule:
            entries = json.loads((ROOT / "data" / rule["reference"]["file"]).read_text(encoding="utf-8"))
            parent, children = rule["rule"].get("reference_parent"), rule["rule"].get("reference_children")
            key = rule["rule"].get("reference_key")
            labels = [
                f"- {entry[parent]}：{'、'.join(entry[children])}" if parent else f"- {entry[key] if key else entry}"
                for entry in entries
            ]
            prompt = prompt.replace("{{labels}}", "\n".join(labels))
        before, _, rest = prompt.partition("{% for example in examples -%}\n")
        loop, _, after = rest.partition("{% endfor -%}\n")
        lines = (folder / "examples.jsonl").read_text(encoding="utf-8").splitlines()
        prompt = before + "".join(shown(loop, number, json.loads(line)) for number, line in enumerate(lines, 1)) + after
        # A template engine drops the line feed at a text's end.
        texts[name] = prompt.removesuffix("\n")
    return texts


def shown(loop, number, example):
    """One example as the prompt's loop has it."""
    answer = example["answer"]
    names = {f"example.post.{name}": text for name, text in example["post"].items()}
    names["loop.index"] = str(number)
    names["example.answer"] = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    for name, text in names.items():
        loop = loop.replace("{{" + name + "}}", text)
    return loop


class Run:
    """One program of one stage."""

    def __init__(self, who, command, feed=None, out=None, needs=None, clean=None):
        self.who, self.command, self.feed, self.out = who, [str(part) for part in command], feed, out
        self.needs, self.clean = needs, clean
        self.walls, self.cpus, self.peaks = [], [], []

    def missing(self):
        """What is not installed, if anything."""
        if self.needs and self.needs[0] == "module":
            found = subprocess.run([sys.executable, "-c", f"import {self.needs[1]}"], stderr=subprocess.DEVNULL)
            return self.needs[1] if found.returncode else None
        tool = self.needs[1] if self.needs else self.command[0]
        return None if shutil.which(tool) else tool

    def go(self):
        if self.clean:
            shutil.rmtree(self.clean, ignore_errors=True)
        feed = open(self.feed, "rb") if self.feed else subprocess.DEVNULL
        out = open(self.out or os.devnull, "wb")
        begun = time.perf_counter()
        child = subprocess.Popen(self.command, stdin=feed, stdout=out, stderr=subprocess.PIPE)
        peak = 0
        while True:
            ended, status, usage = os.wait4(child.pid, os.WNOHANG)
            if ended:
                break
            peak = max(peak, tree_peak(child.pid))
            time.sleep(0.002)
        wall = time.perf_counter() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        told = child.stderr.read().decode(errors="replace")
        if child.returncode not in (0, 1):
            sys.exit(f"{self.who}: exit {child.returncode}\n{told}")
        self.walls.append(wall)
        self.cpus.append(usage.ru_utime + usage.ru_stime)
        self.peaks.append(peak)

    def medians(self):
        return statistics.median(self.walls), statistics.median(self.cpus), max(self.peaks)


def tree_peak(pid):
    """Peak memory of a process and its children, now alive."""
    total = measure.high_water(pid)
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return total
    return total + sum(tree_peak(int(child)) for child in children)


def size(*paths):
    return sum(os.path.getsize(path) for path in paths)


def stages(zbatch, data, shm, posts, results):
    """Name, bytes in, bytes out, programs; zbatch first."""
    python = sys.executable
    names = [str(path) for path in results]
    (data / "prompts.json").write_text(json.dumps(prompts(), ensure_ascii=False), encoding="utf-8")
    requests = data / "requests.jsonl"
    with open(requests, "wb") as out:
        subprocess.run([zbatch, "gen", "-q", posts], stdout=out, check=True)
    check_peer(requests, data, posts)
    posts_in, requests_out = size(posts), size(requests)
    gen = [
        Run("zbatch", [zbatch, "gen", "-q", posts]),
        Run("jq", ["jq", "-cn", "--slurpfile", "prompts", data / "prompts.json", "-f", PEERS / "gen.jq", posts]),
        Run("python json", [python, PEERS / "gen.py", data / "prompts.json", posts, "json"]),
        Run("orjson", [python, PEERS / "gen.py", data / "prompts.json", posts, "orjson"], needs=("module", "orjson")),
    ]
    yield "gen → /dev/null", posts_in, requests_out, gen

    work, copy = shm / "work", shm / "copy"
    on_shm = shm / "requests.jsonl"
    shutil.copyfile(requests, on_shm)
    requests.unlink()
    chunks = [
        Run("zbatch", [zbatch, "gen", "-q", "-d", work, posts], clean=work),
        Run("cat", ["cat", on_shm], out=copy),
    ]
    yield "gen -d → chunks, tmpfs", posts_in, requests_out, chunks
    for path in (work, copy, on_shm):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    array = data / "posts.json"
    with open(posts, encoding="utf-8") as lines, open(array, "w", encoding="utf-8") as out:
        out.write("[\n" + ",\n".join(line.rstrip("\n") for line in lines) + "\n]\n")
    split = [
        Run("zbatch", [zbatch, "merge", "-q", "--max-faults", "100%", array, "/dev/null"]),
        Run("wc -l", ["wc", "-l", array]),
        Run("jq", ["jq", "-c", ".[]", array]),
        Run("python json", [python, "-c", ARRAY, array]),
    ]
    yield "array → posts (merge of nothing)", size(array), posts_in, split

    answers = data / "answers.jsonl"
    parse = [
        Run("zbatch", [zbatch, "parse", "-q", *names], out=answers),
        Run("jq", ["jq", "-Rc", "-f", PEERS / "parse.jq", *names]),
        Run("python json", [python, PEERS / "parse.py", "json", *names]),
        Run("orjson", [python, PEERS / "parse.py", "orjson", *names], needs=("module", "orjson")),
        Run("duckdb", [python, PEERS / "duck.py", "parse", data / "d.jsonl", *names], needs=("module", "duckdb")),
    ]
    yield "parse", size(*names), None, parse

    both = f"{zbatch} parse -q {' '.join(names)} | {zbatch} merge -q {posts} -"
    merge = [
        Run("zbatch", ["sh", "-c", both], out=data / "enhanced.jsonl"),
        Run("duckdb", [python, PEERS / "duck.py", "merge", data / "d.jsonl", posts, *names], needs=("module", "duckdb")),
        Run("python dict", ["sh", "-c", f"{python} {PEERS}/parse.py json {' '.join(names)} > {data}/p.jsonl; "
                            f"{python} {PEERS}/merge.py {posts} {data}/p.jsonl"], out=data / "d.jsonl"),
    ]
    yield "parse | merge → enhanced posts", posts_in + size(*names), None, merge

    for tool, ending in (("gzip", "gz"), ("zstd", "zst")):
        if not shutil.which(tool):
            print(f"skipped: {tool} is not installed", file=sys.stderr)
            continue
        packed = data / f"posts.jsonl.{ending}"
        with open(packed, "wb") as out:
            subprocess.run([tool, "-c", posts], stdout=out, check=True)
        one = ["--only", "sentiment_polarity"]
        unpack = [
            Run("zbatch", [zbatch, "gen", "-q", *one, packed]),
            Run(f"{tool} -dc", [tool, "-dc", packed]),
            Run("zbatch, plain", [zbatch, "gen", "-q", *one, posts]),
        ]
        yield f"{ending} in (gen of one analysis)", size(packed), None, unpack


ARRAY = """
import json, sys
for post in json.load(open(sys.argv[1], encoding="utf-8")):
    sys.stdout.write(json.dumps(post, ensure_ascii=False) + "\\n")
"""


def check_peer(requests, data, posts):
    """The plain script must do the same job: its first requests are ours, as values."""
    few = data / "few.jsonl"
    with open(posts, "rb") as lines, open(few, "wb") as out:
        for _ in range(50):
            out.write(lines.readline())
    command = [sys.executable, PEERS / "gen.py", data / "prompts.json", few, "json"]
    theirs = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()
    with open(requests, "rb") as ours:
        for theirs_line in theirs:
            mine, other = json.loads(ours.readline()), json.loads(theirs_line)
            if mine["body"]["model"] == other["body"]["model"] and mine != other:
                sys.exit(f"the peer renders another request than zbatch:\n{mine}\n{other}")


def table(rows):
    head = ("stage", "program", "wall s", "CPU s", "in MB/s", "out MB/s", "peak MiB", "wall ×", "CPU ×")
    text = [head, *rows]
    widths = [max(len(row[at]) for row in text) for at in range(len(head))]
    for row in text:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        print("  ".join(cells + [cell.rjust(width) for cell, width in zip(row[2:], widths[2:])]))


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--zbatch", required=True, type=Path)
    words.add_argument("--posts", type=int, default=100_000)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--stage", default="", help="only stages whose name begins so")
    words.add_argument("--json", type=Path)
    words.add_argument("--data", type=Path, help="a folder with posts_N.jsonl")
    args = words.parse_args()
    zbatch, target = args.zbatch.resolve(), args.json and args.json.resolve()
    source = args.data and args.data.resolve()
    shm_root = "/dev/shm" if os.path.isdir("/dev/shm") else None
    rows, kept = [], []
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=shm_root) as shm:
        data = Path(folder)
        os.chdir(data)
        posts = data / "posts.jsonl"
        if source:
            shutil.copyfile(source / f"posts_{args.posts}.jsonl", posts)
        else:
            with open(posts, "w", encoding="utf-8") as out:
                measure.make_posts(args.posts, out)
        results = write_results(args.posts, data)
        for stage, bytes_in, bytes_out, runs in stages(zbatch, data, Path(shm), posts, results):
            if not stage.startswith(args.stage):
                continue
            here = []
            for run in runs:
                lacking = run.missing()
                if lacking:
                    print(f"skipped: {lacking} is not installed", file=sys.stderr)
                else:
                    here.append(run)
            # Memory that the host of a virtual machine has not handed out yet is several times as slow to write: what goes to
            # tmpfs is written once before it is timed.
            unpaid = 1 if any(run.clean for run in here) else 0
            for _ in range(args.rounds + unpaid):
                for run in here:
                    run.go()
            for run in here:
                del run.walls[:unpaid], run.cpus[:unpaid]
            ours = here[0].medians()
            for run in here:
                wall, cpu, peak = run.medians()
                rate = [f"{size / 1e6 / wall:.0f}" if size else "" for size in (bytes_in, bytes_out)]
                ratios = [wall / ours[0], cpu / max(ours[1], 1e-3)]
                rows.append((stage if run is here[0] else "", run.who, f"{wall:.2f}", f"{cpu:.2f}", *rate, f"{peak / MIB:.0f}",
                             *(f"{ratio:.2f}" for ratio in ratios)))
                kept.append({
                    "stage": stage, "program": run.who, "wall_seconds": wall, "cpu_seconds": cpu, "peak_bytes": peak,
                    "bytes_in": bytes_in, "bytes_out": bytes_out, "wall_ratio": ratios[0], "cpu_ratio": ratios[1],
                })
    table(rows)
    if target:
        machine = {"cores": os.cpu_count(), "machine": os.uname().machine, "kernel": os.uname().release}
        report = {"posts": args.posts, "rounds": args.rounds, "machine": machine, "stages": kept}
        target.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_results(count, data):
    """The results of measure.py, a file for each batch of it."""
    whole = data / "results.jsonl"
    with open(whole, "w", encoding="utf-8") as out:
        measure.make_results(count, out)
    files = []
    with open(whole, "rb") as lines:
        while True:
            chunk = [line for line in (lines.readline() for _ in range(measure.CHUNK)) if line]
            if not chunk:
                break
            path = data / f"results_{len(files):04}.jsonl"
            path.write_bytes(b"".join(chunk))
            files.append(path)
    whole.unlink()
    return files


if __name__ == "__main__":
    main()
