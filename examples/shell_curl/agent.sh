#!/usr/bin/env bash
# A SQL agent in shell, with curl, jq and sqlite3: the model calls a tool that runs its query, until the query is right.
set -euo pipefail

database=$(dirname "$0")/../../tasks/sql_agent/cricket.db
prompt=$(cat <<'END'
You are a data assistant for a cricket statistics site. Write one SQLite query that answers the user's question.

Try the query with the tool run_sql before you answer. If it fails, correct it and try again. Put the country, the
player or the number of runs that the question names into a WHERE clause. Country names are written in full, for
example 'West Indies'.

Reply with the SQL query only.
END
)
tools='[{"type": "function", "function": {
  "name": "run_sql",
  "description": "Run one query on CREATE TABLE top_batsmen (player_name, country_name, odi_runs, t20_runs, test_runs, odi_debut_year) and get its rows, or an error.",
  "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
}}]'

question=$(jq -r .question) # the task, one JSON text on standard input
messages=$(jq -n --arg prompt "$prompt" --arg question "$question" \
  '[{role: "system", content: $prompt}, {role: "user", content: $question}]')

for _ in 1 2 3 4 5 6; do
  message=$(jq -n --argjson messages "$messages" --argjson tools "$tools" '{model: "gpt-4.1-mini", $messages, $tools}' |
    curl -sS --fail-with-body "$OPENAI_BASE_URL/chat/completions" -H 'Content-Type: application/json' \
      -H "Authorization: Bearer $OPENAI_API_KEY" -d @- | jq '.choices[0].message')
  call=$(jq '.tool_calls[0] // empty' <<<"$message")
  if [ -z "$call" ]; then
    jq -c '{sql: .content | gsub("^```sql|```$"; "")}' <<<"$message" # the last line is the answer
    exit
  fi
  query=$(jq -r '.function.arguments | fromjson.query' <<<"$call")
  result=$(sqlite3 -readonly -json "$database" "$query" 2>&1 | head -c 2000) || true
  messages=$(jq --argjson message "$message" --argjson call "$call" --arg result "$result" \
    '. + [$message, {role: "tool", tool_call_id: $call.id, content: $result}]' <<<"$messages")
done
echo "no answer after six calls" >&2
exit 1
