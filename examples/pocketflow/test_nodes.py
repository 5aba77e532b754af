"""Run with the real pocketflow package:  python3 -m unittest -v test_nodes

The tests of the contract use a stand-in for zbatch that ends as it is told. With ZBATCH=path/to/zbatch in the
environment the same nodes also run the real program against its emulator.
"""

import asyncio
import json
import os
import signal
import stat
import sys
import tempfile
import threading
import time
import unittest
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from nodes import AsyncZbatchNode, ZbatchError, ZbatchNode  # noqa: E402
from pocketflow import AsyncFlow, Flow, Node  # noqa: E402

# Takes one exit code a call from FAKE/codes, notes its arguments, and writes what a finished job writes.
FAKE = """#!{python}
import json, os, pathlib, signal, sys, time
home = pathlib.Path(os.environ["FAKE"])
with open(home / "calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
codes = (home / "codes").read_text().split()
(home / "codes").write_text(" ".join(codes[1:] or codes))
option = lambda name: sys.argv[sys.argv.index(name) + 1]
if os.environ.get("FAKE_NOISE"):
    for n in range(20000):
        sys.stderr.write("progress line %d, quite long, and there are many of them\\n" % n)
    sys.stderr.write("x" * 300000 + "\\n")
if codes[0] == "wait":
    def interrupted(*_):
        (home / "interrupted").write_text("SIGTERM")
        sys.exit(143)
    signal.signal(signal.SIGTERM, interrupted)
    (home / "pid").write_text(str(os.getpid()))
    time.sleep(60)
code = int(codes[0])
sys.stderr.write("zbatch: this is how it ended: %d\\n" % code)
if code in (0, 1):
    pathlib.Path(option("-o")).write_text("[\\n]\\n")
    seen = {{"total_posts": 3, "processed_posts": 3 - code, "missing_posts": code, "status": "completed"}}
    report = {{"integration_stats": {{"total_posts": 3, "analyses": {{"topic_analysis": seen}}}}}}
    place = option("--report") if "--report" in sys.argv else option("-d") + "/integration_report.json"
    pathlib.Path(place).write_text(json.dumps(report))
sys.exit(code)
"""


def run_sync(shared, **settings):
    return ZbatchNode(**settings).run(shared)


def run_async(shared, **settings):
    return asyncio.run(AsyncZbatchNode(**settings).run_async(shared))


BOTH = (run_sync, run_async)


class Case(unittest.TestCase):
    def setUp(self):
        temp = tempfile.TemporaryDirectory()
        self.addCleanup(temp.cleanup)
        self.dir = Path(temp.name)


class WithAStandIn(Case):
    def setUp(self):
        super().setUp()
        self.fresh = 0

    def shared(self, codes, **env):
        self.fresh += 1
        self.home = self.dir / str(self.fresh)
        self.home.mkdir()
        fake = self.home / "zbatch"
        fake.write_text(FAKE.format(python=sys.executable))
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
        (self.home / "codes").write_text(codes)
        return {
            "zbatch": {
                "binary": fake,
                "posts": "posts.json",
                "output": self.home / "out.json",
                "work_dir": self.home,
                "args": ["--emulate"],
                "env": {"FAKE": str(self.home), **env},
            }
        }

    def calls(self):
        return [json.loads(line) for line in (self.home / "calls").read_text().splitlines()]

    def test_exit_0_puts_paths_and_counts_into_shared(self):
        for run in BOTH:
            with self.subTest(run.__name__):
                shared = self.shared("0")
                self.assertEqual(run(shared), "default")
                job = shared["zbatch"]
                self.assertEqual((job["exit_code"], job["complete"]), (0, True))
                self.assertEqual(job["output_path"], str(self.home / "out.json"))
                self.assertEqual(job["counts"]["total_posts"], 3)
                topics = {"processed": 3, "missing": 0, "status": "completed"}
                self.assertEqual(job["counts"]["analyses"], {"topic_analysis": topics})
                (call,) = self.calls()
                self.assertEqual(call[:2], ["run", "posts.json"])
                self.assertEqual(call[-1], "--emulate")

    def test_without_a_work_directory_the_report_is_beside_the_output(self):
        for run in BOTH:
            with self.subTest(run.__name__):
                shared = self.shared("0")
                del shared["zbatch"]["work_dir"]
                run(shared)
                self.assertEqual(shared["zbatch"]["report_path"], str(self.home / "out.json.report.json"))
                self.assertEqual(shared["zbatch"]["counts"]["total_posts"], 3)

    def test_exit_1_is_a_finished_job(self):
        for run in BOTH:
            with self.subTest(run.__name__):
                shared = self.shared("1")
                self.assertEqual(run(shared, max_retries=3), "default")
                self.assertEqual((shared["zbatch"]["exit_code"], shared["zbatch"]["complete"]), (1, False))
                self.assertEqual(shared["zbatch"]["counts"]["analyses"]["topic_analysis"]["missing"], 1)
                self.assertEqual(len(self.calls()), 1)

    def test_exit_75_is_tried_again_with_the_same_command(self):
        for run in BOTH:
            with self.subTest(run.__name__):
                shared = self.shared("75 75 0")
                run(shared, max_retries=3)
                first, second, third = self.calls()
                self.assertEqual(first, second)
                self.assertEqual(first, third)
                self.assertTrue(shared["zbatch"]["complete"])

    def test_other_codes_raise_with_the_last_lines_of_stderr(self):
        for run in BOTH:
            for code in (64, 65, 69, 74, 75, 77):
                with self.subTest(run=run.__name__, code=code):
                    shared = self.shared(str(code))
                    with self.assertRaises(ZbatchError) as raised:
                        run(shared, max_retries=2)
                    self.assertEqual(raised.exception.code, code)
                    self.assertIn(f"this is how it ended: {code}", str(raised.exception))
                    self.assertEqual(len(self.calls()), 2)
                    self.assertNotIn("output_path", shared["zbatch"])

    def test_a_flood_on_stderr_does_not_block(self):
        for run in BOTH:
            with self.subTest(run.__name__):
                with self.assertRaises(ZbatchError) as raised:
                    run(self.shared("69", FAKE_NOISE="1"))
                self.assertIn("this is how it ended: 69", raised.exception.stderr[-1])
                self.assertLessEqual(len(raised.exception.stderr), 40)
                self.assertLess(len(str(raised.exception)), 400_000)

    def test_a_program_that_is_not_there(self):
        for run in BOTH:
            with self.subTest(run.__name__):
                shared = self.shared("0")
                shared["zbatch"]["binary"] = self.home / "absent"
                with self.assertRaises(FileNotFoundError):
                    run(shared)

    def test_an_output_is_required(self):
        for run in BOTH:
            with self.subTest(run.__name__), self.assertRaises(ValueError):
                run({"zbatch": {"posts": "posts.json"}})

    def test_cancelling_interrupts_the_child_and_waits_for_it(self):
        shared = self.shared("wait")

        async def cancel_once_it_runs():
            task = asyncio.create_task(AsyncZbatchNode(max_retries=3).run_async(shared))
            while not (self.home / "pid").exists():
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.1)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task

        begun = time.monotonic()
        asyncio.run(cancel_once_it_runs())
        self.assertLess(time.monotonic() - begun, 20)
        self.assertEqual((self.home / "interrupted").read_text(), "SIGTERM")
        self.assertEqual(len(self.calls()), 1, "a cancelled node is not tried again")
        with self.assertRaises(ProcessLookupError):
            os.kill(int((self.home / "pid").read_text()), 0)

    def test_in_a_flow_gaps_can_take_their_own_way(self):
        class Mark(Node):
            def __init__(self, name):
                super().__init__()
                self.name = name

            def post(self, shared, _prepared, _done):
                shared["came_to"] = self.name

        for code, place in (("0", "next"), ("1", "gaps")):
            with self.subTest(code=code):
                label = ZbatchNode()
                label >> Mark("next")
                label - "faults" >> Mark("gaps")
                shared = self.shared(code)
                Flow(start=label).run(shared)
                self.assertEqual(shared["came_to"], place)

                label = AsyncZbatchNode()
                label >> Mark("next")
                label - "faults" >> Mark("gaps")
                shared = self.shared(code)
                asyncio.run(AsyncFlow(start=label).run_async(shared))
                self.assertEqual(shared["came_to"], place)


POSTS = [
    {"username": "白石发布", "content": "【通报】三号桥今日恢复通行。", "location": "白石县", "image_urls": []},
    {"username": "早八人早八魂", "content": "早", "location": None, "image_urls": []},
    {"username": "豆豆他爹", "content": "中午吃的啥？\n「他说没吃饱」😭", "image_urls": ["https://img.example/p/1.jpg"]},
]


@unittest.skipUnless(os.environ.get("ZBATCH"), "ZBATCH does not name the program")
class WithTheProgram(Case):
    def shared(self, name):
        posts = self.dir / "posts.json"
        posts.write_text(json.dumps(POSTS, ensure_ascii=False), encoding="utf-8")
        return {
            "zbatch": {
                "posts": posts,
                "output": self.dir / name / "enhanced.json",
                "work_dir": self.dir / name / "work",
                "args": ["--emulate", "--data-dir", str(HERE.parent.parent / "data")],
            }
        }

    def test_the_posts_come_back_labelled(self):
        outputs = []
        for run in BOTH:
            with self.subTest(run.__name__):
                shared = self.shared(run.__name__)
                (self.dir / run.__name__).mkdir()
                run(shared)
                job = shared["zbatch"]
                self.assertTrue(job["complete"])
                self.assertEqual(job["counts"]["total_posts"], len(POSTS))
                self.assertEqual(len(job["counts"]["analyses"]), 6)
                enhanced = json.loads(Path(job["output_path"]).read_text(encoding="utf-8"))
                self.assertEqual(len(enhanced), len(POSTS))
                for before, after in zip(POSTS, enhanced):
                    self.assertEqual(before, {key: after[key] for key in before})
                    self.assertIn(after["sentiment_polarity"], range(1, 6))
                first = Path(job["output_path"]).read_bytes()
                run(shared)
                self.assertEqual(Path(job["output_path"]).read_bytes(), first, "the same command again changes nothing")
                outputs.append(first)
        self.assertEqual(outputs[0], outputs[1])

    def test_what_went_wrong_is_exit_1_and_has_a_way_of_its_own(self):
        for run in BOTH:
            with self.subTest(run.__name__):
                shared = self.shared(run.__name__)
                (self.dir / run.__name__).mkdir()
                shared["zbatch"]["args"] += ["--fault", "invalid=100%", "--only", "topic_analysis"]
                self.assertEqual(run(shared), "default", "the node has no successor for faults")
                job = shared["zbatch"]
                self.assertEqual((job["exit_code"], job["complete"]), (1, False))
                self.assertEqual(job["counts"]["analyses"]["topic_analysis"]["missing"], len(POSTS))
                self.assertEqual(len(json.loads(Path(job["output_path"]).read_text(encoding="utf-8"))), len(POSTS))

    def kill_next(self, work, dead=None):
        """Once a batch has been created, kills the program that holds the directory: our own child, not `dead`."""
        killed = []

        def kill():
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and not killed:
                time.sleep(0.005)
                journal, lock = work / "journal.jsonl", work / "lock"
                if journal.exists() and '"event":"created"' in journal.read_text(encoding="utf-8"):
                    holder = lock.read_text().split()[1:]
                    if holder and int(holder[0]) != dead:
                        os.kill(int(holder[0]), signal.SIGKILL)
                        killed.append(int(holder[0]))

        killer = threading.Thread(target=kill)
        killer.start()
        return killer, killed

    def created(self, work):
        """How often a batch was created for each chunk, by the books of the emulator."""
        events = map(json.loads, (work / "emulator/state.jsonl").read_text(encoding="utf-8").splitlines())
        return Counter(e["create"]["metadata"]["chunk"] for e in events if e["event"] == "created")

    def test_a_retry_goes_on_after_a_kill_and_pays_for_nothing_twice(self):
        (self.dir / "whole").mkdir()
        whole = self.shared("whole")
        run_sync(whole)
        for run in BOTH:
            with self.subTest(run.__name__):
                shared = self.shared(run.__name__)
                (self.dir / run.__name__).mkdir()
                shared["zbatch"]["args"] += ["--latency", "500ms"]
                work = Path(shared["zbatch"]["work_dir"])
                killer, killed = self.kill_next(work)
                with self.assertRaises(ZbatchError) as raised:
                    run(shared)
                killer.join()
                self.assertEqual(raised.exception.code, -signal.SIGKILL)
                self.assertTrue(self.created(work))

                # The same job by a node that tries twice: killed again, and then done.
                killer, killed = self.kill_next(work, dead=killed[0])
                run(shared, max_retries=2)
                killer.join()
                self.assertEqual(len(killed), 1)
                self.assertTrue(shared["zbatch"]["complete"])
                self.assertEqual(set(self.created(work).values()), {1}, "one batch a chunk")
                self.assertEqual(
                    Path(shared["zbatch"]["output_path"]).read_bytes(), Path(whole["zbatch"]["output"]).read_bytes()
                )

    def test_cancelling_leaves_a_job_that_goes_on(self):
        shared = self.shared("cancelled")
        (self.dir / "cancelled").mkdir()
        shared["zbatch"]["args"] += ["--latency", "2s"]
        work = Path(shared["zbatch"]["work_dir"])

        async def cancel_once_a_batch_runs():
            task = asyncio.create_task(AsyncZbatchNode().run_async(shared))
            journal = work / "journal.jsonl"
            while '"event":"created"' not in (journal.read_text() if journal.exists() else ""):
                await asyncio.sleep(0.02)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task

        asyncio.run(cancel_once_a_batch_runs())
        self.assertFalse(Path(shared["zbatch"]["output"]).exists())
        run_sync(shared)
        self.assertTrue(shared["zbatch"]["complete"])
        self.assertEqual(set(self.created(work).values()), {1}, "one batch a chunk")

    def test_a_wrong_flag_is_an_error_with_its_reason(self):
        shared = self.shared("wrong")
        (self.dir / "wrong").mkdir()
        shared["zbatch"]["args"].append("--no-such-flag")
        with self.assertRaises(ZbatchError) as raised:
            run_sync(shared)
        self.assertEqual(raised.exception.code, 64)
        self.assertIn("--no-such-flag", str(raised.exception))


if __name__ == "__main__":
    unittest.main()
