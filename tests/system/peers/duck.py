"""The same two steps in DuckDB, on all cores. Arguments: parse OUT FILE… | merge OUT posts.jsonl FILE…"""

import sys

import duckdb

RESULTS = """read_json([{files}], format = 'newline_delimited', ignore_errors = true, columns = {{
    custom_id: 'VARCHAR',
    response: 'STRUCT(status_code INT, body STRUCT(choices STRUCT(message STRUCT(content VARCHAR))[]))'
}})"""
ANSWERS = """
    SELECT regexp_extract(custom_id, '_([0-9]+)$', 1)::INT AS "index",
           regexp_extract(custom_id, '^(.*)_[0-9]+$', 1) AS analysis,
           CASE WHEN text LIKE '%```%' THEN regexp_extract(text, '```(?:json)?\\s*([\\s\\S]*?)\\s*```', 1) ELSE text END AS value
    FROM (SELECT custom_id, response.body.choices[1].message.content AS text FROM {results}
          WHERE response.status_code = 200)
"""
FIELDS = {
    "sentiment_polarity": "sentiment_polarity",
    "sentiment_attribute": "sentiment_attribute",
    "topic_analysis": "topics",
    "publisher_analysis": "publisher",
    "belief_system": "belief_signals",
    "publisher_decision": "publisher_decision",
}


def answers(files):
    return ANSWERS.format(results=RESULTS.format(files=", ".join(f"'{name}'" for name in files)))


step, out, *rest = sys.argv[1:]
db = duckdb.connect()
if step == "parse":
    db.execute("SET preserve_insertion_order = false")
    db.execute(f"COPY ({answers(rest)}) TO '{out}' (FORMAT json)")
else:
    posts, *files = rest
    pivot = ", ".join(f"max(CASE WHEN analysis = '{name}' THEN value END) AS {field}" for name, field in FIELDS.items())
    columns = """{username: 'VARCHAR', user_id: 'VARCHAR', content: 'VARCHAR', publish_time: 'VARCHAR',
        location: 'VARCHAR', repost_count: 'INT', comment_count: 'INT', like_count: 'INT', image_urls: 'VARCHAR[]'}"""
    db.execute(f"""
        COPY (
            WITH wide AS (SELECT "index", {pivot} FROM ({answers(files)}) GROUP BY 1),
                 post AS (SELECT row_number() OVER () - 1 AS place, *
                          FROM read_json('{posts}', format = 'newline_delimited', columns = {columns}))
            SELECT post.* EXCLUDE (place), {", ".join("wide." + field for field in FIELDS.values())}
            FROM post LEFT JOIN wide ON wide."index" = post.place ORDER BY post.place
        ) TO '{out}' (FORMAT json)
    """)
