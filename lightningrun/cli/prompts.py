"""`prompt`: the prompt that a run ended with, and how it was found: the way there, the whole tree, one candidate."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from lightningrun.cli import options
from lightningrun.errors import UsageError
from lightningrun.tracking.formats import count, diff_lines, number, plural, unified_diff, usd

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from lightningrun.tracking.lineage import Gap, Lineage, Node, Step
    from lightningrun.tracking.summary import RunSummary

POINTS = 3
"""Of a critique, in the history; `--candidate` has it whole."""
DIFF_LINES = 60
_STYLES = {
    "seed": "blue",
    "winner": "bold green",
    "best found": "bold yellow",
    "new best": "green",
    "accepted": "blue",
    "rejected": "red",
    "invalid": "yellow",
    "duplicate": "dim",
}


@click.command("prompt", short_help="Print the best prompt of a run, or how it was found.")
@options.latest_run_argument
@click.option("--name", help="Which prompt, when there are several.")
@click.option("--diff", "as_diff", is_flag=True, help="As a diff from the prompt that the run began with.")
@click.option("--history", "view", flag_value="history", help="How it was found, step by step from the seed.")
@click.option("--tree", "view", flag_value="tree", help="Every candidate of the search, under its parent.")
@click.option("--candidate", type=click.IntRange(0), metavar="N", help="One candidate: critique, change, rows, text.")
@click.option("--stage", metavar="S", help="Which search, when there are several (default: the last).")
@options.runs_dir_option
@options.json_option("As JSON; alone: all prompts, by name.")
def prompt(
    run: str,
    name: str | None,
    as_diff: bool,
    view: str | None,
    candidate: int | None,
    stage: str | None,
    runs_dir: str,
    as_json: bool,
) -> None:
    """Print the prompt that RUN (default: the latest) ended with: its text and nothing else.

    With --history, --tree or --candidate, print how the search found it instead.
    """
    summary = options.open_run(run, runs_dir)
    if view is not None or candidate is not None:
        if as_diff or name or (view and candidate is not None):
            raise UsageError("--history, --tree and --candidate stand alone", hint="leave the other options out")
        _print_search(summary, _search(summary, stage), view, candidate, as_json)
        return
    best, seed, note = prompts_of(summary)
    if name is not None:
        if name not in best:
            raise UsageError(f"no prompt {name!r} in {summary.run}", hint=f"there is {', '.join(best) or 'none'}")
        best = {name: best[name]}
    if note:
        click.echo(note, err=True)
    if as_json:
        click.echo(json.dumps(best, indent=1, ensure_ascii=False))
    elif as_diff:
        for key, text in best.items():
            print_diff(unified_diff(seed.get(key, ""), text, f"{key} (before)", f"{key} (after)"))
    elif len(best) != 1:
        raise UsageError(f"{summary.run} has {len(best)} prompts", hint=f"--name one of {', '.join(best)}, or --json")
    else:
        click.echo(next(iter(best.values())).rstrip("\n"))


def prompts_of(run: RunSummary) -> tuple[dict[str, str], dict[str, str], str]:
    """(prompts that ship, prompts at the start, a note if the search's winner was not promoted)."""
    from lightningrun.tracking.summary import seed_prompts

    seed = seed_prompts(run.path)
    best = dict(seed)
    for stage in run.stages:
        for artifact in stage.outputs.values():
            if artifact["kind"] == "prompts":
                best.update(artifact["value"] or {})
    kept = [change.name for change in run.prompts if not change.promoted and change.best != change.seed]
    note = f"note: the search's {', '.join(kept)} did not win beyond chance; this is the prompt it began with"
    return best, seed, note if kept else ""


def print_diff(diff: str, indent: str = "") -> None:
    colors = {"+": "green", "-": "red", "@": "cyan"}
    for line in diff.splitlines():
        click.secho(f"{indent}{line}", fg=colors.get(line[:1]))


def _search(run: RunSummary, stage: str | None) -> Lineage:
    from lightningrun.tracking.lineage import lineages

    found = {search.stage: search for search in lineages(run)}
    if not found:
        raise UsageError(f"{run.run} has no prompt search to tell of", hint="an `apo` stage makes one")
    if stage is not None and stage not in found:
        raise UsageError(f"no search {stage!r} in {run.run}", hint=f"there is {', '.join(found)}")
    return found[stage] if stage is not None else list(found.values())[-1]


def _print_search(run: RunSummary, search: Lineage, view: str | None, candidate: int | None, as_json: bool) -> None:
    from lightningrun.cli import summaries
    from lightningrun.tracking.lineage import node_json

    if candidate is not None:
        if candidate not in search.nodes:
            raise UsageError(f"{search.stage} has no candidate {candidate}", hint=f"the last is {max(search.nodes)}")
        node = search.nodes[candidate]
        record: dict[str, Any] = node_json(node)
        sections = _candidate(search, node)
    elif view == "tree":
        record = search.to_json()
        sections = [_head(run, search), _tree(search, summaries.width())]
    else:
        record = search.to_json()
        steps = search.steps()
        record = {
            **{key: record[key] for key in ("stage", "verdict", "noise", "path")},
            "steps": [*map(node_json, steps)],
        }
        sections = [_head(run, search), *(_step(search, node, number) for number, node in enumerate(steps))]
    if as_json:
        click.echo(json.dumps(record, indent=1, ensure_ascii=False, default=str))
    else:
        summaries.show(*sections)


def _head(run: RunSummary, search: Lineage) -> RenderableType:
    from rich.text import Text

    counts = ", ".join(f"{amount} {outcome}" for outcome, amount in search.counts.items() if outcome != "seed")
    text = Text.assemble(("how the prompt was found", "bold"), f" by {search.stage} of {run.run}")
    by = f" ({search.algorithm})" if search.algorithm else ""
    text.append(f"\n{plural(len(search.nodes) - 1, 'proposal')}{by}{': ' if counts else ''}{counts}")
    if search.verdict:
        text.append(f"\n{search.verdict}", "bold green" if search.verdict.startswith("confirmed") else "bold yellow")
    return text.append(f"\n{search.noise}", "dim") if search.noise else text


def _title(node: Node) -> Text:
    """Sign, id, outcome and scores on one line."""
    from rich.text import Text

    from lightningrun.tracking.lineage import MARKS

    style = _STYLES.get(node.outcome, "")
    text = Text.assemble((f"{MARKS.get(node.outcome, '·')} ", style), (f"#{node.id} ", "bold"), (node.outcome, style))
    if node.val is not None:
        text.append(f"  val {number(node.val)}")
    if node.gain is not None:
        text.append(f" {node.gain:+.3f}", "green" if node.gain > 0 else "red" if node.gain < 0 else "dim")
    if "before" in node.acceptance:
        batch = node.acceptance
        text.append(f"  batch {number(batch['before'])} → {number(batch['after'])}", "dim")
    if len(node.parents) > 1:
        text.append(f"  merge of {' and '.join(f'#{id}' for id in sorted(node.parents))}", "dim")
    return text


def _facts(node: Node) -> Text:
    """What it cost, and what it did to the val rows."""
    from rich.text import Text

    took, spend = node.took, node.spend
    facts = [node.way] if node.way else []
    if node.better or node.worse:  # the parent may not have been scored on val
        facts.append(f"val rows against #{node.parents[0]}: {len(node.better)} better, {len(node.worse)} worse")
    if node.prompt_tokens is not None:
        facts.append(f"{node.prompt_tokens} prompt tokens")
    if took.get("rollouts"):
        facts.append(f"took {count(took['rollouts'])} rollouts, {count(took['llm_calls'])} calls, {usd(took['usd'])}")
    if "rollouts" in spend:
        facts.append(f"{count(spend['rollouts'])} rollouts, {usd(spend.get('usd'))} spent by then")
    return Text(" · ".join(facts), "dim")


def _step(search: Lineage, node: Node, step: int) -> RenderableType:
    """One step of the way to the winner: what it gained, what the coach saw, what it changed."""
    from rich.console import Group
    from rich.padding import Padding

    from lightningrun.tracking.lineage import points

    body: list[RenderableType] = [_facts(node)]
    told = points(node.critique)
    body += [_bullet(point) for point in told[:POINTS]]
    more = f"--candidate {node.id} has the rest"
    if len(told) > POINTS:
        body.append(_bullet(f"... and {plural(len(told) - POINTS, 'point')} more: {more}"))
    for parent, change in node.changes.items():
        lines = list(_diff(change, len(node.prompts) > 1))
        if len(node.changes) > 1:
            body.append(_dim(f"from #{parent}:"))
        body += lines[:DIFF_LINES]
        if len(lines) > DIFF_LINES:
            body.append(_dim(f"... {len(lines) - DIFF_LINES} lines more: {more}"))
    where = f"   step {step} of {len(search.path) - 1}" if step else ""
    return Group(_title(node).append(where, "dim"), *(Padding(part, (0, 0, 0, 2)) for part in body))


def _candidate(search: Lineage, node: Node) -> list[RenderableType]:
    """All that is known of one candidate."""
    from rich.console import Group
    from rich.text import Text

    sections: list[RenderableType] = [Group(_title(node), _facts(node), *([Text(node.reason)] if node.reason else []))]
    if node.critique:
        title = "the coach's critique" if node.took.get("coach_calls") else "made from"
        sections.append(Group(_bold(title), Text(node.critique)))
    for parent, change in node.changes.items():
        sections.append(
            Group(
                _bold(f"changed from #{parent}"),
                *(_diff(change, len(node.prompts) > 1) if change else [_dim("nothing")]),
            )
        )
    for word, gaps in (("better", node.better), ("worse", node.worse)):
        if gaps:
            heading = _bold(f"{plural(len(gaps), 'val row')} {word} than under #{node.parents[0]}")
            sections.append(Group(heading, *map(_gap, gaps)))
    for name, text in node.prompts.items():
        sections.append(Group(_bold(f"prompt {name!r}"), Text(text)))
    return sections


def _tree(search: Lineage, width: int) -> RenderableType:
    from rich.console import Group

    return Group(*(line for steps in search.tree() for line in _line(steps, "", width)))


def _line(steps: Sequence[Step], indent: str, width: int) -> Iterator[Text]:
    """A line of descent: what goes on stands below, what branches off one step to the right."""
    from rich.text import Text

    for position, step in enumerate(steps, 1):
        last = position == len(steps)
        heavy = step.node.on_path and not last
        rail = f"{indent}{' ' if last else '┃' if heavy else '│'} "
        yield Text(indent) + _title(step.node)
        for text in _folded(step.folded):
            yield from (Text(f"{rail}  {line}", "dim") for line in textwrap.wrap(text, max(20, width - len(rail) - 4)))
        for branch in step.branches:
            yield from _line(branch, f"{rail}  ", width)


def _folded(nodes: Sequence[Node]) -> Iterator[str]:
    """``2 rejected: #4, #7-#9`` for each outcome."""
    by_outcome: dict[str, list[int]] = {}
    for node in nodes:
        by_outcome.setdefault(node.outcome, []).append(node.id)
    for outcome, ids in by_outcome.items():
        runs: list[list[int]] = []
        for id in ids:
            if runs and id == runs[-1][-1] + 1:
                runs[-1].append(id)
            else:
                runs.append([id])
        shown = ", ".join(f"#{run[0]}" if len(run) == 1 else f"#{run[0]}-#{run[-1]}" for run in runs)
        yield f"{len(ids)} {outcome}: {shown}"


def _diff(diff: str, names: bool) -> Iterator[Text]:
    """A diff's lines in colour; ``names`` says which prompt each part is of."""
    from rich.text import Text

    styles = {"add": "green", "cut": "red", "at": "cyan", "name": "bold"}
    for kind, line in diff_lines(diff):
        if names or kind != "name":
            yield Text(line, styles.get(kind, "dim"))


def _gap(gap: Gap) -> RenderableType:
    return _bullet(f"{number(gap.before)} → {number(gap.after)}  {gap.row}  {gap.question}".rstrip())


def _bullet(text: str) -> RenderableType:
    from rich.table import Table

    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row("•", text)
    return table


def _bold(text: str) -> Text:
    from rich.text import Text

    return Text(text, "bold")


def _dim(text: str) -> Text:
    from rich.text import Text

    return Text(text, "dim")
