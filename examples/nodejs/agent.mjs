// A SQL agent in Node.js with the openai package: the model calls a tool that runs its query, until the query is right.
import { readFileSync } from "node:fs";
import OpenAI from "openai";
import initSqlJs from "sql.js";

const PROMPT = `You are a data assistant for a cricket statistics site. Write one SQLite query that answers the user's question.

Try the query with the tool run_sql before you answer. If it fails, correct it and try again. Put the country, the
player or the number of runs that the question names into a WHERE clause. Country names are written in full, for
example 'West Indies'.

Reply with the SQL query only.`;

const SQL = await initSqlJs();
const database = new SQL.Database(readFileSync(new URL("../../tasks/sql_agent/cricket.db", import.meta.url)));

function runSql({ query }) {
  try {
    return JSON.stringify(database.exec(query)[0]?.values.slice(0, 20) ?? []);
  } catch (error) {
    return `error: ${error.message}`;
  }
}

const tool = {
  type: "function",
  function: {
    name: "run_sql",
    description: "Run one query on CREATE TABLE top_batsmen (player_name, country_name, odi_runs, t20_runs, test_runs, " +
      "odi_debut_year) and get its rows, or an error.",
    parameters: { type: "object", properties: { query: { type: "string" } }, required: ["query"] },
    parse: JSON.parse,
    function: runSql,
  },
};

const { question } = JSON.parse(readFileSync(0, "utf8")); // the task, one JSON text on standard input
const messages = [
  { role: "system", content: PROMPT },
  { role: "user", content: question },
];
const client = new OpenAI(); // OPENAI_BASE_URL and OPENAI_API_KEY say where
const runner = client.chat.completions.runTools({ model: "gpt-4.1-mini", messages, tools: [tool] });
const reply = await runner.finalContent();
const sql = reply.replace(/^```sql|```$/g, "").trim();
console.log(JSON.stringify({ sql })); // the last line is the answer
