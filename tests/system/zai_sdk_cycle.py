"""The vendor's own client, zai-sdk 0.2.3, through a whole cycle with `zbatch emulate`.

    pip install zai-sdk==0.2.3
    python3 tests/system/zai_sdk_cycle.py PATH_TO_ZBATCH

If the client is satisfied with the emulator, then what satisfies the emulator is close to the real API.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from zai import ZhipuAiClient
from zai.core import APIAuthenticationError, APIReachLimitError, APIRequestFailedError, APIStatusError

ENDPOINT = "/v4/chat/completions"
ENDS = {"completed", "failed", "expired", "cancelled"}


def request(n, model="glm-4-air"):
    content = f"给出极性。<博文>第 {n} 条：谢谢你们</博文>"
    body = {"model": model, "messages": [{"role": "user", "content": content}]}
    return {"custom_id": f"sentiment_polarity_{n:04}", "method": "POST", "url": ENDPOINT, "body": body}


def refused(kind, status, code, call):
    """The call fails with the client's own error class, with this status and business code."""
    try:
        call()
    except APIStatusError as error:
        assert type(error) is kind, error
        assert error.response.status_code == status, error
        assert error.response.json()["error"]["code"] == code, error
        return
    raise AssertionError(f"expected a {kind.__name__}")


def cycle(base, scratch):
    client = ZhipuAiClient(api_key="id.secret", base_url=base, max_retries=0)

    path = scratch / "chunk.jsonl"
    path.write_text("".join(json.dumps(request(n), ensure_ascii=False) + "\n" for n in range(30)), "utf-8")
    with path.open("rb") as file:
        stored = client.files.create(file=file, purpose="batch")
    assert stored.bytes == path.stat().st_size and stored.filename == "chunk.jsonl", stored
    assert [file.id for file in client.files.list(purpose="batch").data] == [stored.id]

    metadata = {"job": "sdk", "part": "1"}
    batch = client.batches.create(
        input_file_id=stored.id, endpoint=ENDPOINT, metadata=metadata, auto_delete_input_file=False
    )
    assert batch.status == "validating" and batch.metadata == metadata, batch
    seen = []
    for _ in range(1000):
        batch = client.batches.retrieve(batch.id)
        seen += [batch.status] if batch.status not in seen else []
        if batch.status in ENDS:
            break
        time.sleep(0.01)
    assert seen == ["validating", "in_progress", "finalizing", "completed"], seen
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (30, 30, 0)
    assert batch.created_at > 10**11 and batch.error_file_id is None, batch

    lines = client.files.content(batch.output_file_id).content.decode("utf-8").splitlines()
    ids = [json.loads(line)["custom_id"] for line in lines]
    asked = [request(n)["custom_id"] for n in range(30)]
    assert sorted(ids) == asked and ids != asked, "all there, in another order"
    assert all(json.loads(line)["response"]["body"]["choices"][0]["message"]["content"] for line in lines)

    other = client.batches.create(input_file_id=stored.id, endpoint=ENDPOINT)
    assert client.batches.cancel(other.id).status == "cancelling"
    assert [client.batches.retrieve(other.id).status for _ in range(50)][-1] in {"cancelling", "cancelled"}

    more = [client.batches.create(input_file_id=refill(client, path), endpoint=ENDPOINT).id for _ in range(5)]
    listed = [batch.id for batch in client.batches.list(limit=2)]
    assert listed == [*reversed(more), other.id, batch.id], listed

    assert client.files.delete(batch.output_file_id).deleted
    refused(APIStatusError, 404, "1210", lambda: client.files.content(batch.output_file_id))
    refused(APIStatusError, 404, "1210", lambda: client.batches.retrieve("batch_1"))
    path.write_text(json.dumps(request(1, "glm-5.2")), "utf-8")
    refused(APIRequestFailedError, 400, "1210", lambda: refill(client, path))


def refill(client, path):
    with path.open("rb") as file:
        return client.files.create(file=file, purpose="batch").id


def faults(base):
    client = ZhipuAiClient(api_key="id.secret", base_url=base, max_retries=0)
    refused(APIAuthenticationError, 401, "1001", lambda: client.batches.retrieve("batch_1"))
    refused(APIReachLimitError, 429, "1302", lambda: client.batches.retrieve("batch_1"))


def with_server(zbatch, args, drive):
    server = subprocess.Popen([zbatch, "emulate", "--port", "0", *args], stdout=subprocess.PIPE, text=True)
    try:
        drive(server.stdout.readline().strip())
    finally:
        # Our own child, by its own id.
        server.terminate()
        server.wait(10)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    zbatch = str(Path(sys.argv[1]).resolve())
    with TemporaryDirectory() as scratch:
        with_server(zbatch, [], lambda base: cycle(base, Path(scratch)))
    with_server(zbatch, ["--fault", "bad_key=1,rate_limit=1"], faults)
    print("zai-sdk is satisfied")


if __name__ == "__main__":
    main()
