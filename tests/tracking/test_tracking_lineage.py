"""The lineage of a search: the tree that is drawn, what is said of each candidate, and the page that shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightningrun.tracking.formats import diff_lines, unified_diff
from lightningrun.tracking.lineage import Lineage, Step, gist, lineages, verdict_words
from lightningrun.tracking.report import render, render_lineage
from lightningrun.tracking.summary import summarise
from tests.tracking.fake_run import whole_run
from tests.tracking.fake_search import SEED, FakeSearch, search_run
from tests.tracking.test_tracking_report import HOSTILE, Page


def lineage(run: Path) -> Lineage:
    (found,) = lineages(summarise(run))
    return found


def drawn(steps: tuple[Step, ...], depth: int = 0) -> list[tuple[int, int]]:
    """(id, depth) of everything in a line, folded nodes included."""
    found = []
    for step in steps:
        found += [(step.node.id, depth), *((node.id, depth) for node in step.folded)]
        for branch in step.branches:
            found += drawn(branch, depth + 1)
    return found


def small(tmp_path: Path) -> FakeSearch:
    """Seed; 1 from it; 2 and 3 from 1; 4 a merge of 2 and 3; 5 rejected, from 4."""
    search = FakeSearch(tmp_path)
    search.start()
    ids = search.ids
    for id, parents, good in ((1, [0], 4), (2, [1], 6), (3, [1], 8), (4, [2, 3], 11)):
        prompts = {**SEED, "system": SEED["system"] + f"\nStep {id}."}
        val = {row: float(n < good) for n, row in enumerate(ids)}
        search.tell(id, parents, prompts, "accepted", val, way="merge" if len(parents) > 1 else "rewrite")
    search.tell(5, [4], {**SEED, "system": "Worse."}, "rejected", None)
    return search


def test_the_path_leads_from_the_seed_to_the_winner_through_the_better_parent(tmp_path: Path) -> None:
    search = small(tmp_path)
    search.finish()
    found = lineage(search.run.path)
    assert found.path == (0, 1, 3, 4)
    merged = found.nodes[4]
    assert merged.outcome == "winner" and merged.parents == (3, 2) and merged.way == "merge"
    assert set(merged.changes) == {2, 3}
    assert "-Step 2." in merged.changes[2] and "-Step 3." in merged.changes[3] and "+Step 4." in merged.changes[3]
    assert merged.gain == pytest.approx(3 / 12) and len(merged.better) == 3 and not merged.worse
    assert merged.better[0].question.endswith(("?", "."))
    assert merged.acceptance["n"] == 8, "the verdict does not hide how it came about"
    edges = {(edge["from"], edge["to"]): edge["on_path"] for edge in found.to_json()["edges"]}
    assert edges == {(0, 1): True, (1, 2): False, (1, 3): True, (2, 4): False, (3, 4): True, (4, 5): False}


def test_what_led_no_further_is_folded_and_nothing_is_lost(tmp_path: Path) -> None:
    search = small(tmp_path)
    search.finish(promoted=False)
    found = lineage(search.run.path)
    (line,) = found.tree()
    assert [step.node.id for step in line] == [0, 1, 3, 4]
    assert [[inner.node.id for inner in branch] for branch in line[1].branches] == [[2]]
    assert [node.id for node in line[3].folded] == [5]
    assert found.nodes[4].outcome == "best found" and "not confirmed" in found.verdict


@pytest.mark.parametrize("candidates", [1, 10, 300])
def test_every_candidate_is_drawn_once_and_the_tree_stays_shallow(tmp_path: Path, candidates: int) -> None:
    run = search_run(tmp_path, candidates)
    found = lineage(run)
    everything = [place for line in found.tree() for place in drawn(line)]
    assert sorted(id for id, _ in everything) == list(range(candidates))
    assert max(depth for _, depth in everything) <= 8
    page = Page(render(summarise(run)))
    assert not page.open and not page.unbalanced
    shown = [value for name, value in page.attributes if name == "id"]
    assert sorted(shown) == sorted(f"apo-{id}" for id in range(candidates))
    links = {value.removeprefix("#") for name, value in page.attributes if name == "href" and value.startswith("#")}
    assert links <= set(shown)


def test_a_candidate_costs_what_ran_with_its_prompts_once(tmp_path: Path) -> None:
    found = lineage(whole_run(tmp_path))
    assert found.nodes[0].took["rollouts"] == 12 and found.nodes[2].took["rollouts"] == 12
    assert found.nodes[2].took["usd"] == pytest.approx(12 * 0.0001)
    assert "rollouts" not in found.nodes[1].took, "no rollout of it is in this journal"


def test_candidates_of_other_versions_are_read_leniently(tmp_path: Path) -> None:
    search = FakeSearch(tmp_path)
    search.start()
    emit = search.run.emit
    emit("candidate", "apo", id=1, parents=[0, 99], verdict="half_scored", component="system, judge", diff="+x")
    emit("candidate", "apo", id=2, parents=[3], verdict="rejected")
    emit("candidate", "apo", id=3, parents=[2], verdict="rejected", components=["judge"])
    run = summarise(search.run.path)
    (found,) = lineages(run)
    assert found.nodes[1].outcome == "half scored" and found.nodes[1].components == ("system", "judge")
    assert found.nodes[1].parents == (0,) and found.nodes[1].changes == {0: "+x"}
    assert found.nodes[2].parents == () and found.nodes[3].parents == (2,), "no circle"
    page = Page(render(run))
    assert "half scored" in page.text and not page.unbalanced


def test_hostile_prompts_are_text_on_both_pages(tmp_path: Path) -> None:
    run = summarise(search_run(tmp_path, 12, hostile=HOSTILE))
    for html in (render(run), render_lineage(run, lineages(run)[0])):
        page = Page(html)
        assert not {"script", "img", "iframe"} & set(page.tags)
        assert not [name for name, _ in page.attributes if name.startswith("on")]
        assert "<script>alert(1)</script>" in page.text
        assert not page.open and not page.unbalanced


def test_the_page_says_what_was_confirmed_what_is_noise_and_what_was_forecast(tmp_path: Path) -> None:
    text = " ".join(Page(render(summarise(search_run(tmp_path, 10)))).text.split())
    assert "confirmed: p=0.001 <= 0.01, gain on val +" in text and "on test +0.300 [+0.100, +0.450]" in text
    assert "A/A: the seed against itself scores +0.010 [-0.020, +0.040]" in text
    assert "of at most 9,000 rollouts" in text and "forecast $0.9000" in text


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({}, ""),
        ({"promoted": False, "best_val": 0.5, "p_value": 1.0}, "nothing scored better than the seed on val"),
        ({"promoted": False, "p_value": 0.2, "p_threshold": 0.1}, "not confirmed: p=0.2 > 0.1, gain on val +0.300;"),
        ({"promoted": True, "p_value": 0.01, "p_threshold": 0.1}, "confirmed: p=0.01 <= 0.1, gain on val +0.300"),
        ({"promoted": True, "p_value": 0.2, "p_threshold": 0.1}, "not confirmed: p=0.2 > 0.1, gain on val +0.300; it"),
        ({"promoted": True, "p_value": 0.2, "p_threshold": 1.0}, "not confirmed: p=0.2, gain on val +0.300; it ships"),
    ],
)
def test_the_confirmation_in_words(metrics: dict[str, float], words: str) -> None:
    base = {"seed_val": 0.5, "best_val": 0.8} if metrics else {}
    said = verdict_words({**base, **metrics})
    assert said.startswith(words) and bool(said) == bool(words)


def test_the_gist_of_a_critique_is_its_first_point() -> None:
    assert gist("In short:\n- It never counts.\n- It guesses.", 80) == "It never counts."
    assert gist("It never\ncounts.", 80) == "It never counts." and gist("", 80) == ""
    assert gist("word " * 50, 20).endswith("…") and len(gist("word " * 50, 20)) <= 20


def test_a_lineage_is_json_and_loads_nothing_heavy(tmp_path: Path) -> None:
    run = search_run(tmp_path, 30)
    record = json.loads(json.dumps(lineage(run).to_json()))
    assert [node["id"] for node in record["nodes"]] == list(range(30)) and record["path"][0] == 0
    code = (
        "import sys; from pathlib import Path; from lightningrun.tracking.summary import summarise; "
        f"from lightningrun.tracking.lineage import lineages; lineages(summarise(Path({str(run)!r}))); "
        "print([name for name in ('mlflow', 'pandas', 'jinja2', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_diff_loses_no_line_of_a_text_that_looks_like_a_heading(tmp_path: Path) -> None:
    diff = unified_diff("-- total\nSELECT 1", "++ total\nSELECT 1", "a", "b")
    assert diff_lines(diff) == [
        ("name", "b"),
        ("at", "@@ -1,2 +1,2 @@"),
        ("cut", "--- total"),
        ("add", "+++ total"),
        ("same", " SELECT 1"),
    ]
