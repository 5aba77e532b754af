"""Posts and answers to enhanced posts, joined in a dictionary. Arguments: posts.jsonl, answers.jsonl."""

import json
import sys

FIELDS = {
    "sentiment_polarity": "sentiment_polarity",
    "sentiment_attribute": "sentiment_attribute",
    "topic_analysis": "topics",
    "publisher_analysis": "publisher",
    "belief_system": "belief_signals",
    "publisher_decision": "publisher_decision",
}
answers = {}
with open(sys.argv[2], encoding="utf-8") as lines:
    for line in lines:
        answer = json.loads(line)
        answers[answer["index"], answer["analysis"]] = answer["value"]
with open(sys.argv[1], encoding="utf-8") as posts:
    for index, line in enumerate(posts):
        post = json.loads(line)
        for analysis, field in FIELDS.items():
            post[field] = answers.get((index, analysis))
        sys.stdout.write(json.dumps(post, ensure_ascii=False, separators=(",", ":")) + "\n")
