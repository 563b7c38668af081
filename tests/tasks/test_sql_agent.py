"""The agent against a real endpoint on loopback, served by a script or by the simulated student."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tasks.sql_agent.agent import answer, answer_once, extract_sql, gold
from tasks.sql_agent.reward import DATABASE, execution_match
from tasks.sql_agent.simulation import student

Model = Callable[[dict[str, Any]], str]


@contextmanager
def _endpoint(model: Model) -> Iterator[dict[str, str]]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"role": "assistant", "content": model(request)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = json.dumps(
                {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield {"base_url": f"http://127.0.0.1:{server.server_port}/v1", "api_key": "none", "model": "m"}
    finally:
        server.shutdown()
        server.server_close()


def _scripted(*replies: str) -> tuple[Model, list[dict[str, Any]]]:
    requests: list[dict[str, Any]] = []

    def model(request: dict[str, Any]) -> str:
        requests.append(request)
        return replies[min(len(requests), len(replies)) - 1]

    return model, requests


def test_it_asks_with_the_schema_and_returns_the_rows() -> None:
    model, requests = _scripted("```sql\nSELECT COUNT(*) FROM top_batsmen;\n```")
    with _endpoint(model) as llm:
        output = answer("How many?", {"system": "Use this: {schema}"}, llm, str(DATABASE))
    assert output == {"sql": "SELECT COUNT(*) FROM top_batsmen", "rows": [[79]], "tries": 1}
    system, user = requests[0]["messages"]
    assert system["content"].startswith("Use this: CREATE TABLE top_batsmen (")
    assert user == {"role": "user", "content": "How many?"}


def test_it_shows_the_model_its_error_and_tries_again() -> None:
    model, requests = _scripted("SELECT runs FROM top_batsmen", "SELECT MAX(odi_runs) FROM top_batsmen")
    with _endpoint(model) as llm:
        output = answer("Highest?", {"system": "{schema}"}, llm, str(DATABASE))
    assert output["rows"] == [[18426]] and output["tries"] == 2
    assert "no such column: runs" in requests[1]["messages"][-1]["content"]


def test_it_gives_up_after_two_retries_and_reports_the_last_query() -> None:
    model, requests = _scripted("DROP TABLE top_batsmen", "nothing", "SELECT nope")
    with _endpoint(model) as llm:
        output = answer("?", {"system": "{schema}"}, llm, str(DATABASE))
    assert len(requests) == 3
    assert output["sql"] == "SELECT nope" and "no such column" in output["error"]
    assert execution_match({"sql": "SELECT 1"}, output)["score"] == 0.0


def test_the_agent_of_one_call_does_not_repair() -> None:
    model, requests = _scripted("SELECT runs FROM top_batsmen", "SELECT MAX(odi_runs) FROM top_batsmen")
    with _endpoint(model) as llm:
        output = answer_once("Highest?", {"system": "Columns: odi_runs."}, llm, str(DATABASE))
    assert output == {"sql": "SELECT runs FROM top_batsmen"} and len(requests) == 1
    assert requests[0]["messages"][0] == {"role": "system", "content": "Columns: odi_runs."}


def test_gold_answers_are_paid(all_rows: dict) -> None:
    for row in all_rows["sft"] + all_rows["rl"]:
        question, answered = gold(row)
        assert question["content"] == row["question"]
        assert execution_match(row, {"sql": extract_sql(answered["content"])})["score"] == 1.0


def test_it_answers_the_promised_easy_question_with_the_base_prompt(base_prompt: str) -> None:
    gold = {"sql": "SELECT player_name FROM top_batsmen WHERE country_name = 'India'"}
    with _endpoint(lambda request: student({**request, "seed": 1})) as llm:
        output = answer("List all batsmen from India", {"system": base_prompt}, llm, str(DATABASE))
    assert execution_match(gold, output)["score"] == 1.0


@pytest.mark.parametrize(
    ("reply", "sql"),
    [
        ("SELECT 1;", "SELECT 1"),
        ("```sql\nSELECT 1\n```", "SELECT 1"),
        ("```\nwith a as (select 1) select * from a;\n```", "with a as (select 1) select * from a"),
        ("First try:\n```sql\nSELECT 1\n```\nBetter:\n```sql\nSELECT 2\n```\nDone.", "SELECT 2"),
        ("```sql SELECT 3 ```", "SELECT 3"),
        ("The query is: SELECT 4", "SELECT 4"),
        ("Example output:\n```\n42\n```\nSELECT 5", "SELECT 5"),
        ("I cannot do that.", ""),
        ("", ""),
    ],
)
def test_the_query_is_found_in_a_reply(reply: str, sql: str) -> None:
    assert extract_sql(reply) == sql
