"""Posts to request lines, as a plain Python script does it. Arguments: prompts.json, posts.jsonl, json|orjson."""

import sys

if sys.argv[3] == "orjson":
    import orjson

    load, dump = orjson.loads, orjson.dumps
else:
    import json

    load = json.loads

    def dump(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


FIELDS = ("content", "username", "location", "publish_time")
with open(sys.argv[1], "rb") as file:
    prompts = load(file.read())
out = sys.stdout.buffer
with open(sys.argv[2], "rb") as posts:
    for index, line in enumerate(posts):
        post = load(line)
        for name, prompt in prompts.items():
            for field in FIELDS:
                prompt = prompt.replace("{{" + field + "}}", post.get(field) or "")
            body = {
                "model": "glm-4-air",
                "messages": [{"role": "user", "content": prompt}],
                "temperature": 0.7,
            }
            request = {
                "custom_id": f"{name}_{index:04}",
                "method": "POST",
                "url": "/v4/chat/completions",
                "body": body,
            }
            out.write(dump(request) + b"\n")
