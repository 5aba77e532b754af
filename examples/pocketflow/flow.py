"""Label posts, then look at what came out.

    python3 flow.py posts.json enhanced.json --emulate        no key, no network
    ZHIPUAI_API_KEY=… python3 flow.py posts.json enhanced.json
"""

import asyncio
import sys
from pathlib import Path

from nodes import AsyncZbatchNode
from pocketflow import AsyncFlow, Node


class Summary(Node):
    """Stands for the stages that follow: they stream the enhanced posts from the file."""

    def exec(self, _):
        return None

    def post(self, shared, _prepared, _done):
        job = shared["zbatch"]
        print(f"{job['output_path']}: {'complete' if job['complete'] else 'with gaps'}")
        for name, seen in job["counts"].get("analyses", {}).items():
            print(f"  {name:22} {seen['processed']} labelled, {seen['missing']} not")


def build():
    # Three attempts, a minute apart: each goes on where the last one stopped.
    label = AsyncZbatchNode(max_retries=3, wait=60)
    label >> Summary()
    return AsyncFlow(start=label)


def main(posts, output, *args):
    output = Path(output)
    shared = {"zbatch": {"posts": posts, "output": output, "work_dir": output.with_suffix(".work"), "args": list(args)}}
    asyncio.run(build().run_async(shared))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
