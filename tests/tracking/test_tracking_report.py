"""The report as its reader meets it: complete, honest about simulations, and safe with hostile text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from lightningrun.tracking.advice import next_steps
from lightningrun.tracking.report import write_report
from lightningrun.tracking.summary import summarise
from tests.tracking.fake_run import SEED_PROMPT, FakeRun, whole_run

HOSTILE = '</pre></style><script>alert(1)</script><img src=x onerror=alert(1)>" onmouseover="alert(1)'


class Page(HTMLParser):
    """Collects a page's tags, attributes and text; ``unbalanced`` counts tags that are not closed."""

    VOID = frozenset({"meta", "br", "img", "line", "path", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.open: list[str] = []
        self.unbalanced = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced += 1

    def handle_data(self, data: str) -> None:
        self.text += data


def read(run: Path) -> Page:
    return Page(write_report(run).read_text("utf-8"))


def test_a_stranger_finds_everything(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    page = read(run)
    head = summarise(run).headline
    assert head is not None
    for told in (
        "sql_agent",
        "simulated: no real model is called",
        f"{head.gain:+.3f}",
        "95% interval",
        "Pipeline",
        "+For totals use SUM, then GROUP BY.",
        "better on 8 of 8 changed rows",
        "Failed before, right after",
        "Still failing",
        "By kind of question",
        "aggregate",
        "Cost and time",
        "What to try next",
        f"lightningrun export {run.name}",
    ):
        assert told in page.text, told
    assert not page.open and not page.unbalanced


def test_the_page_is_self_contained_and_runs_nothing(tmp_path: Path) -> None:
    page = read(whole_run(tmp_path, hostile=HOSTILE))
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    assert not [value for name, value in page.attributes if name == "href" and not value.startswith(("http", "#"))]
    assert "<script>alert(1)</script>" in page.text, "hostile text is shown as text"
    assert not page.open and not page.unbalanced


def test_a_script_link_from_a_tampered_mirror_file_is_not_a_link(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    (run / "mirror.json").write_text('{"deep_link": "javascript:alert(1)", "experiment_id": "1", "uri": "x"}')
    assert not [value for name, value in read(run).attributes if "javascript" in value]


def test_the_curve_rises_from_the_seed_to_the_best(tmp_path: Path) -> None:
    html = write_report(whole_run(tmp_path)).read_text("utf-8")
    path = re.search(r'class="curve" d="M[\d.]+ ([\d.]+)H[\d.]+V([\d.]+)', html)
    assert path is not None and float(path[2]) < float(path[1]), "up is a smaller y"
    assert html.count('class="dot') == 3 and html.count(" low") == 1, "the rejected one lies at the bottom"


def test_unfinished_and_empty_runs_have_a_page_too(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path)
    fake.start()
    assert "killed" in read(fake.path).text
    fake.evaluate("baseline", 1, SEED_PROMPT, 0.3)
    fake.apo(finish=False)
    fake.end("failed", 3, "stage apo failed: the model did not answer")
    page = read(fake.path)
    assert "the model did not answer" in page.text and f"lightningrun resume {fake.path.name}" in page.text


def test_advice_follows_from_facts(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path)
    fake.start()
    fake.evaluate("baseline", 1, SEED_PROMPT, 0.5)
    fake.evaluate("final", 3, SEED_PROMPT, 0.5)
    metrics = {"seed_val": 0.5, "best_val": 0.6, "promoted": False, "rollouts": 40, "n_infra_errors": 2}
    fake.emit("stage_started", "apo", type="apo", ordinal=2, attempt=1, key="", reason="")
    fake.finish_stage("apo", metrics, {})
    fake.emit("gate", "final", met=False, checks=[{"name": "min.reward", "value": 0.5, "bound": 0.8, "met": False}])
    fake.end()
    said = "\n".join(next_steps(summarise(fake.path)))
    for part in (
        "cannot be told from chance",
        "did not rule out luck",
        "gate of final",
        "infrastructure",
        "simulations",
    ):
        assert part in said, part
