"""Result lines to answers, as a plain Python script does it. Arguments: json|orjson, result files."""

import re
import sys

if sys.argv[1] == "orjson":
    import orjson

    load, dump = orjson.loads, orjson.dumps
else:
    import json

    load = json.loads

    def dump(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


FENCE = re.compile(r"```(?:json)?\s*([\s\S]*?)\s*```")
out = sys.stdout.buffer
for name in sys.argv[2:]:
    with open(name, "rb") as results:
        for line in results:
            try:
                row = load(line)
                response = row["response"]
                if response["status_code"] != 200:
                    continue
                text = response["body"]["choices"][0]["message"]["content"]
            except (ValueError, KeyError, TypeError):
                continue
            fenced = FENCE.search(text)
            if fenced:
                text = fenced.group(1)
            try:
                value = load(text)
            except ValueError:
                value = text
            analysis, _, index = row["custom_id"].rpartition("_")
            out.write(dump({"index": int(index), "analysis": analysis, "value": value}) + b"\n")
