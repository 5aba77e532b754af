"""Peak memory of gen, parse and merge, for N and 10 N posts. Standard library only; Linux or macOS.

    python3 tests/measure.py --zbatch target/release/zbatch --posts 100000

Posts and result lines are made here, from a seed, with the labels of data/: the same bytes every time. Results come
as they do from the provider: batch by batch, shuffled inside each. Peaks are those the kernel counted for the child
(wait4); a child starts from a copy of this process, so a peak below this one's own, some 15 MiB, cannot be seen.
Ends with 1 if a bound of the contract is broken. Growth from N to 10 N (at most 10 %) is judged from 100,000 posts on:
below that, buffers are still filling.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
# Bound, and whether growth is judged. By default merge keeps some tens of MiB of answers before it spills, which
# 100,000 posts do not fill; a small store is full at both sizes, so that whatever grew would show.
ROWS = {
    "gen": (32 * MIB, True),
    "parse": (32 * MIB, True),
    "merge": (256 * MIB, False),
    "merge --memory 8MiB": (256 * MIB, True),
}
GROWTH = 1.10
GROWTH_FROM = 100_000
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


def measure(command, **streams):
    """Runs one program; its peak memory in bytes and its time."""
    begun = time.monotonic()
    child = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, **streams)
    told = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {child.returncode}:\n{told.decode('utf-8', 'replace')}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, time.monotonic() - begun


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
    for row in (row for row in ROWS if row.startswith("merge")):
        merge = [zbatch, *row.split(), posts, told, "--tmp-dir", folder, *sources]
        seen[row] = measure(merge, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
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
    print(f"{'peak memory':19} {small:>12,} {large:>12,} posts   growth      bound      time")
    for row, (bound, growth_counts) in ROWS.items():
        (low, _), (high, seconds) = at[small][row], at[large][row]
        print(
            f"{row:19} {low / MIB:8.1f} MiB {high / MIB:8.1f} MiB       {high / low - 1:+7.1%}   {bound // MIB:4} MiB"
            f"  {seconds:6.1f} s"
        )
        if max(low, high) > bound:
            broken.append(f"{row} is above {bound // MIB} MiB")
        if growth_counts and small >= GROWTH_FROM and high > low * GROWTH:
            broken.append(f"{row} grows with the number of posts")
    if broken:
        sys.exit("broken: " + "; ".join(broken))
    print("every bound holds" + ("" if small >= GROWTH_FROM else " (growth not judged below 100,000 posts)"))


if __name__ == "__main__":
    main()
