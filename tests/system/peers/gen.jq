# Posts to request lines, as somebody with jq would write it. $prompts: name → text.
def place($post): gsub("\\{\\{content\\}\\}"; $post.content // "") | gsub("\\{\\{username\\}\\}"; $post.username // "")
  | gsub("\\{\\{location\\}\\}"; $post.location // "") | gsub("\\{\\{publish_time\\}\\}"; $post.publish_time // "");
def id: tostring | if length < 4 then "0" * (4 - length) + . else . end;
foreach inputs as $post (-1; . + 1;
  . as $index | $prompts[0] | to_entries[] | {
    custom_id: "\(.key)_\($index | id)", method: "POST", url: "/v4/chat/completions",
    body: {model: "glm-4-air", messages: [{role: "user", content: (.value | place($post))}], temperature: 0.7}})
