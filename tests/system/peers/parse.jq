# Result lines to answers: the text of a good line, out of its fence, read as JSON where it is some.
fromjson? | .custom_id as $id | select(.response.status_code == 200)
  | .response.body.choices[0].message.content
  | (capture("```(?:json)?\\s*(?<text>[\\s\\S]*?)\\s*```").text // .) as $text
  | ($id | rindex("_")) as $at
  | {index: ($id[$at + 1:] | tonumber), analysis: $id[:$at], value: (try ($text | fromjson) catch $text)}
