"""Peak memory of gen, parse and merge, for N and 10 N posts. Standard library only; Linux or macOS.

    python3 tests/system/measure.py --zbatch target/release/zbatch --posts 100000

Posts and result lines are made here, from a seed, with the labels of data/: the same bytes every time. Results come
as they do from the provider: batch by batch, shuffled inside each. What is judged are the defaults.

Peaks are those the kernel counted for the child. Since a child begins as a copy of this process, wait4 tells no peak
below our own, some 15 MiB; smaller ones are read from /proc while the child runs.

Ends with 1 if a bound of the contract is broken. Growth from N to 10 N (at most 10 %) is judged from 100,000 posts on:
below that, buffers are still filling.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MIB = 1 << 20
BOUNDS = {"gen": 32 * MIB, "parse": 32 * MIB, "merge": 256 * MIB}
GROWTH = 1.10
GROWTH_FROM = 100_000
# Seconds between looks at a child that has lived for SHORT seconds.
LOOK = 0.005
SHORT = 0.3
ANALYSES = (
    "sentiment_polarity",
    "sentiment_attribute",
    "topic_analysis",
    "publisher_analysis",
    "belief_system",
    "publisher_decision",
)
CHUNK = 10_000
# A prime that does not divide CHUNK: i * STEP % CHUNK visits every line of a chunk once.
STEP = 7919

WORDS = (
    "雨下了一夜 桥上的灯还亮着 有人在群里报平安 排队的人没有走 客服说已加急 食堂换了新老板 地铁终于通了 手机烫得握不住 "
    "最后一分钟扳平 孩子睡了 水退了 门口多了一把扫帚 今天的面条好吃 求转发 谢谢各位 真棒，又停水了 {{content}} \"引号\" 😭"
).split()


def make_posts(count, out):
    choose = random.Random(count)
    for index in range(count):
        post = {
            "username": f"用户{choose.randrange(10**6)}",
            "user_id": str(choose.randrange(10**9, 10**10)),
            "content": "，".join(choose.choices(WORDS, k=choose.randrange(1, 24))),
            "publish_time": f"2026-08-{1 + index % 28:02} {index % 24:02}:{index % 60:02}:00",
            "location": choose.choice(("白石县", "澜州市", None)),
            "like_count": choose.randrange(5000),
            "image_urls": [],
        }
        out.write(json.dumps(post, ensure_ascii=False) + "\n")


def answers(choose, analysis, count=64):
    """Some texts that a model might send, each escaped to stand inside a JSON string."""
    def read(name):
        return json.loads((ROOT / "data" / name).read_text(encoding="utf-8"))

    if analysis == "sentiment_polarity":
        texts = [str(n) for n in range(1, 6)]
    elif analysis == "publisher_analysis":
        texts = read("publisher_objects.json")
    elif analysis == "publisher_decision":
        texts = [entry["category"] for entry in read("publisher_decision.json")]
    else:
        if analysis == "sentiment_attribute":
            labels = read("sentiment_attributes.json")
            values = [choose.sample(labels, choose.randrange(1, 4)) for _ in range(count)]
        elif analysis == "topic_analysis":
            parents = choose.choices(read("topics.json"), k=count)
            values = [[{"parent_topic": p["parent_topic"], "sub_topic": choose.choice(p["sub_topics"])}] for p in parents]
        else:
            parents = choose.choices(read("believe_system_common.json"), k=count)
            values = [[{"category": p["category"], "subcategories": p["subcategories"][:2]}] for p in parents]
        texts = [json.dumps(value, ensure_ascii=False) for value in values]
        texts[::3] = [f"```json\n{text}\n```" for text in texts[::3]]
    return [json.dumps(text, ensure_ascii=False) for text in texts]


def make_results(count, out):
    choose = random.Random(count)
    batch = 0
    for analysis in ANALYSES:
        texts = answers(choose, analysis)
        for begin in range(0, count, CHUNK):
            batch += 1
            for line in range(CHUNK):
                index = begin + line * STEP % CHUNK
                if index >= count:
                    continue
                out.write(
                    f'{{"response":{{"status_code":200,"body":{{"created":1788420001,"usage":{{"completion_tokens":12,'
                    f'"prompt_tokens":640,"total_tokens":652}},"model":"glm-4-air","id":"{batch}-{line}","choices":[{{'
                    f'"finish_reason":"stop","index":0,"message":{{"role":"assistant","content":'
                    f'{texts[(index * 31 + batch) % len(texts)]}}}}}]}}}},"custom_id":"{analysis}_{index:04}",'
                    f'"id":"batch_{batch}"}}\n'
                )


def high_water(pid):
    """Peak memory of a running process so far; 0 where the kernel does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith(b"VmHWM:")), b"VmHWM: 0")
    return int(line.split()[1]) * 1024


def measure(command, **streams):
    """Runs one program; its peak memory in bytes and its time."""
    unit = 1 if sys.platform == "darwin" else 1024
    command = [str(part) for part in command]
    begun = time.monotonic()
    with tempfile.TemporaryFile() as told:
        child = subprocess.Popen(command, stderr=told, **streams)
        # Until the exec, what /proc shows is a copy of ourselves.
        program = os.path.realpath(command[0])
        peak = 0
        while True:
            ended, status, usage = os.wait4(child.pid, os.WNOHANG)
            if ended:
                break
            seconds = time.monotonic() - begun
            try:
                if os.readlink(f"/proc/{child.pid}/exe") == program:
                    peak = max(peak, high_water(child.pid))
            except OSError:
                pass
            # A short life is looked at without a pause.
            time.sleep(LOOK if seconds > SHORT else 0)
        seconds = time.monotonic() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            told.seek(0)
            sys.exit(f"{' '.join(command)} ended with {child.returncode}:\n{told.read().decode('utf-8', 'replace')}")
    if usage.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss or peak == 0:
        peak = usage.ru_maxrss * unit
    return peak, seconds


def make(what, count, **streams):
    command = [sys.executable, "-B", str(Path(__file__).resolve()), "--make", what, "--posts", str(count)]
    return subprocess.Popen(command, **streams)


def run(zbatch, count, folder):
    """Peaks by verb for so many posts."""
    posts, told = folder / "posts.jsonl", folder / "answers.jsonl"
    with posts.open("wb") as file:
        if make("posts", count, stdout=file).wait() != 0:
            sys.exit("making posts failed")
    seen = {}
    sources = ["--data-dir", ROOT / "data"]
    seen["gen"] = measure([zbatch, "gen", posts, *sources], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    maker = make("results", count, stdout=subprocess.PIPE)
    seen["parse"] = measure([zbatch, "parse", "-o", told, *sources], stdin=maker.stdout, stdout=subprocess.DEVNULL)
    maker.stdout.close()
    if maker.wait() != 0:
        sys.exit("making results failed")
    merge = [zbatch, "merge", posts, told, "--tmp-dir", folder, *sources]
    seen["merge"] = measure(merge, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for path in (posts, told):
        path.unlink()
    return seen


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--zbatch", default="target/release/zbatch")
    options.add_argument("--posts", type=int, default=100_000)
    options.add_argument("--make", choices=("posts", "results"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.make:
        with open(1, "w", encoding="utf-8", newline="\n") as out:
            {"posts": make_posts, "results": make_results}[chosen.make](chosen.posts, out)
        return
    zbatch = Path(chosen.zbatch).resolve()
    if not zbatch.is_file():
        sys.exit(f"{zbatch} is not there; `make build` makes it")
    folder = ROOT / "target/measure"
    folder.mkdir(parents=True, exist_ok=True)
    small, large = chosen.posts, 10 * chosen.posts
    at = {count: run(zbatch, count, folder) for count in (small, large)}
    broken = []
    judged = small >= GROWTH_FROM
    print(f"{'peak memory':11} {small:>12,} {large:>12,} posts   growth      bound      time")
    for verb, bound in BOUNDS.items():
        (low, _), (high, seconds) = at[small][verb], at[large][verb]
        growth = f"{high / low - 1:+.1%}" if judged else "-"
        print(
            f"{verb:11} {low / MIB:8.1f} MiB {high / MIB:8.1f} MiB       {growth:>7}   {bound // MIB:4} MiB"
            f"  {seconds:6.1f} s"
        )
        if max(low, high) > bound:
            broken.append(f"{verb} is above {bound // MIB} MiB")
        if judged and high > low * GROWTH:
            broken.append(f"{verb} grows with the number of posts")
    if broken:
        sys.exit("broken: " + "; ".join(broken))
    print("every bound holds" + ("" if judged else " (growth not judged below 100,000 posts)"))


if __name__ == "__main__":
    main()
