"""The lineage of a prompt search: every candidate, whom it came from, what became of it, and the way to the winner.

Made from the ``candidate`` events of a run's summary; terminal, report and MLflow show the same. Events are read
leniently: what an older or a newer version does not tell is unknown, and a parent nobody told of is no parent. A merge
has two parents; the tree is drawn along the one that scored better. Light imports only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from lightningrun.tracking.comparison import questions
from lightningrun.tracking.formats import interval, number, unified_diff
from lightningrun.tracking.summary import RunSummary, recipe_of
from lightningrun.types import Json

MARKS = {
    "seed": "◆",
    "winner": "★",
    "best found": "☆",
    "new best": "▲",
    "accepted": "✓",
    "rejected": "✗",
    "invalid": "!",
    "duplicate": "=",
}
"""What can become of a candidate, with its sign. ``new best``: accepted, and ahead of all before it on val."""
MEANINGS = {
    "seed": "the prompt the search began with",
    "winner": "confirmed against the seed; it ships",
    "best found": "scored best, but the confirmation did not rule out luck; the seed ships",
    "new best": "good enough on training rows, scored on val, and the best so far there",
    "accepted": "good enough on training rows; not the best on val, or not scored there",
    "rejected": "not good enough on training rows: never scored on val",
    "invalid": "refused before it cost a rollout",
    "duplicate": "the same text as an earlier candidate",
}


_LEAVES = 5
"""Children of one candidate that were scored on val and led no further: more of them are folded too."""


class Gap(NamedTuple):
    """A val row that scored otherwise than under the parent."""

    row: str
    question: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Node:
    """One candidate."""

    id: int
    outcome: str
    """A name in ``MARKS``, or the verdict as told if it is none that this version knows."""
    parents: tuple[int, ...] = ()
    """The one with the better val score first: the tree is drawn along it."""
    reason: str = ""
    critique: str = ""
    components: tuple[str, ...] = ()
    way: str = ""
    """How it was made: rewrite | edits | merge | demos | beam; empty where that was not told."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[int, str] = field(default_factory=dict)
    """Parent -> unified diff from it."""
    acceptance: Mapping[str, float] = field(default_factory=dict)
    """Before, after and n on training rows."""
    val: float | None = None
    val_rows: int = 0
    gain: float | None = None
    """On val, against the first parent."""
    better: tuple[Gap, ...] = ()
    worse: tuple[Gap, ...] = ()
    prompt_tokens: int | None = None
    took: Mapping[str, float] = field(default_factory=dict)
    """Rollouts with its prompts, their LLM calls and dollars, and the coach's calls for it."""
    spend: Mapping[str, float] = field(default_factory=dict)
    """What the search had spent when it was decided."""
    on_path: bool = False


class Step(NamedTuple):
    """A node in a line of descent: with it, what led no further from it, and the lines that branch off."""

    node: Node
    folded: tuple[Node, ...]
    branches: tuple[tuple[Step, ...], ...]


@dataclass(frozen=True, slots=True)
class Lineage:
    """One search. ``path`` leads from the seed to the winner (to the best so far while it runs)."""

    stage: str
    nodes: Mapping[int, Node]
    path: tuple[int, ...]
    verdict: str
    """The confirmation in words; empty before it."""
    algorithm: str = ""
    noise: str = ""
    """What two runs of the same prompt differ by, in words; empty unless that was measured."""

    @property
    def counts(self) -> dict[str, int]:
        """Outcome -> how many candidates; in the order of ``MARKS``."""
        found = Counter(node.outcome for node in self.nodes.values())
        return {name: found[name] for name in [*MARKS, *(name for name in found if name not in MARKS)] if found[name]}

    def steps(self) -> list[Node]:
        return [self.nodes[id] for id in self.path]

    def tree(self) -> list[tuple[Step, ...]]:
        """The lines of descent from each root, children in order of ids.

        The path is one line and ends at the winner; any other line goes on with the child that has most descendants,
        so that even a search of hundreds is only a few levels deep. What led no further is folded under its parent.
        """
        children: dict[int | None, list[Node]] = {}
        for node in self.nodes.values():
            children.setdefault(node.parents[0] if node.parents else None, []).append(node)
        size = dict.fromkeys(self.nodes, 1)
        for node in reversed(list(self.nodes.values())):
            if node.parents:
                size[node.parents[0]] += size[node.id]

        def line(node: Node) -> tuple[Step, ...]:
            steps = []
            after: Node | None = node
            while after is not None:
                node, born = after, children.get(after.id, [])
                leaves = [child for child in born if child.id not in children and not child.on_path]
                scored = [child for child in leaves if child.val is not None]
                folded = tuple(
                    c for c in leaves if c.val is None or (len(scored) > _LEAVES and c.outcome == "accepted")
                )
                ids = {child.id for child in folded}
                grown = [child for child in born if child.id not in ids]
                ahead = grown if node.id != (self.path or (None,))[-1] else []
                after = max(ahead, key=lambda child: (child.on_path, size[child.id], -child.id), default=None)
                steps.append(Step(node, folded, tuple(line(child) for child in grown if child is not after)))
            return tuple(steps)

        return [line(root) for root in children.get(None, [])]

    def to_json(self) -> dict[str, Json]:
        """Nodes and edges, as the files and ``--json`` have them."""
        edges = [
            {"from": parent, "to": node.id, "on_path": node.on_path and parent in self.path[: self.path.index(node.id)]}
            for node in self.nodes.values()
            for parent in node.parents
        ]
        return {
            "stage": self.stage,
            "algorithm": self.algorithm,
            "verdict": self.verdict,
            "noise": self.noise,
            "path": list(self.path),
            "counts": self.counts,
            "nodes": [node_json(node) for node in self.nodes.values()],
            "edges": edges,
        }


def points(text: str) -> list[str]:
    """What a text says, each on one line: its list items, else all of it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    items = [line[2:].strip() for line in lines if line[:2] in ("- ", "* ", "• ")]
    return items or [" ".join(lines)] * bool(lines)


def gist(text: str, most: int) -> str:
    """The first point that a text makes, in at most so many characters."""
    first = next(iter(points(text)), "")
    return first if len(first) <= most else f"{first[: most - 1].rstrip()}…"


def tally(nodes: Sequence[Node]) -> str:
    """``3 rejected, 1 duplicate``."""
    return ", ".join(f"{amount} {outcome}" for outcome, amount in Counter(node.outcome for node in nodes).items())


def node_json(node: Node) -> dict[str, Json]:
    """A node with its val wins and losses as objects."""
    record = asdict(node)
    for name in ("better", "worse"):
        record[name] = [gap._asdict() for gap in getattr(node, name)]
    return record


def lineages(run: RunSummary) -> list[Lineage]:
    """One lineage for each search of the run that told of candidates."""
    return [_lineage(run, stage, told) for stage, told in run.candidates.items()]


def _lineage(run: RunSummary, stage: str, events: Sequence[Mapping[str, Any]]) -> Lineage:
    told = {int(event["id"]): event for event in events}
    parents = {id: _parents(id, told) for id in told}
    path = _path(told, parents)
    asked = questions(run.path, {((recipe_of(run.path).get("stages") or {}).get(stage) or {}).get("val") or "val"})
    summary = run.stage(stage)
    metrics = summary.metrics if summary else {}
    nodes = {id: _node(id, told, parents[id], id in path, asked) for id in sorted(told)}
    algorithm = next((str(event["algorithm"]) for event in events if event.get("algorithm")), "")
    return Lineage(stage, nodes, path, verdict_words(metrics), algorithm, noise_words(metrics))


def _parents(id: int, told: Mapping[int, Mapping[str, Any]]) -> tuple[int, ...]:
    """Known parents, the better first. Ids follow the order of proposals: a parent of a later one would be a circle."""
    known = [parent for parent in dict.fromkeys(told[id].get("parents") or ()) if parent in told and parent < id]
    return tuple(sorted(known, key=lambda parent: -(_val(told[parent]) or 0.0)))


def _val(event: Mapping[str, Any]) -> float | None:
    value = (event.get("val") or {}).get("mean")
    return float(value) if isinstance(value, (int, float)) else None


def _path(told: Mapping[int, Mapping[str, Any]], parents: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    if not told:
        return ()
    crowned = [id for id, event in told.items() if event.get("verdict") in ("promoted", "not_promoted")]
    last = told[max(told)].get("incumbent")
    at: int | None = crowned[-1] if crowned else last if last in told else min(told)
    path: list[int] = []
    while at is not None:
        path.insert(0, at)
        at = parents[at][0] if parents[at] else None
    return tuple(path)


def _node(
    id: int,
    told: Mapping[int, Mapping[str, Any]],
    parents: tuple[int, ...],
    on_path: bool,
    asked: Mapping[str, str],
) -> Node:
    event = told[id]
    val = _val(event)
    base = told[parents[0]] if parents else {}
    before = _val(base)
    old, new = ((side.get("val") or {}).get("scores") or {} for side in (base, event))
    gaps = [Gap(row, asked.get(row, ""), old[row], score) for row, score in new.items() if row in old]
    component = event.get("components") or str(event.get("component") or "").split(", ")
    return Node(
        id=id,
        outcome=_outcome(event),
        parents=parents,
        reason=str(event.get("reason") or ""),
        critique=str(event.get("critique") or "").strip(),
        components=tuple(name for name in component if name),
        way=str(event.get("way") or ""),
        prompts=event.get("prompts") or {},
        changes=_changes(event, {parent: told[parent] for parent in parents}),
        acceptance=event.get("acceptance") or {},
        val=val,
        val_rows=int((event.get("val") or {}).get("n") or 0),
        gain=None if val is None or before is None else val - before,
        better=tuple(sorted((g for g in gaps if g.after - g.before > 1e-9), key=lambda g: g.before - g.after)),
        worse=tuple(sorted((g for g in gaps if g.before - g.after > 1e-9), key=lambda g: g.after - g.before)),
        prompt_tokens=event.get("prompt_tokens"),
        took={**(event.get("took") or {}), "coach_calls": len(event.get("coach") or ())},
        spend=event.get("spend") or {},
        on_path=on_path,
    )


def _outcome(event: Mapping[str, Any]) -> str:
    verdict = str(event.get("verdict") or "unknown")
    if verdict == "accepted" and event.get("incumbent") == event["id"]:
        return "new best"
    return {"promoted": "winner", "not_promoted": "best found"}.get(verdict, verdict.replace("_", " "))


def _changes(event: Mapping[str, Any], parents: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """Parent -> diff from it; the diff as told where the texts are not."""
    texts = event.get("prompts") or {}
    found = {}
    for id, parent in parents.items():
        old = parent.get("prompts") or {}
        names = [name for name in texts if name in old and texts[name] != old[name]]
        diffs = [
            unified_diff(old[name], texts[name], f"{name} of #{id}", f"{name} of #{event['id']}") for name in names
        ]
        found[id] = "\n".join(diffs) if texts and old else str(event.get("diff") or "")
    return found


def verdict_words(metrics: Mapping[str, Any]) -> str:
    """What the confirmation said: p, and the gain on val and on test. Empty while a search has no end."""
    seed, best, p_value = (metrics.get(name) for name in ("seed_val", "best_val", "p_value"))
    if seed is None or best is None or p_value is None:
        return ""
    if best <= seed and not metrics.get("promoted"):
        return "nothing scored better than the seed on val; the seed ships"
    threshold = metrics.get("p_threshold")
    beyond = threshold is None or p_value <= threshold
    word, end = ("confirmed", "") if beyond else ("not confirmed", "; the seed ships")
    if metrics.get("promoted") and (not beyond or threshold == 1.0):
        word, end = "not confirmed", "; it ships because the recipe says so"
    bound = "" if threshold in (None, 1.0) else f" {'<=' if beyond else '>'} {threshold:.2g}"
    words = f"{word}: p={p_value:.2g}{bound}, gain on val {best - seed:+.3f}"
    gain = metrics.get("test_gain")
    if gain is not None:
        words += f", on test {gain:+.3f}{interval(metrics.get('test_gain_low'), metrics.get('test_gain_high'), '+')}"
    return words + end


def noise_words(metrics: Mapping[str, Any]) -> str:
    """What the A/A run said: how far apart two runs of the seed are."""
    noise = metrics.get("noise")
    if noise is None:
        return ""
    apart = interval(metrics.get("noise_low"), metrics.get("noise_high"), "+")
    return f"A/A: the seed against itself scores {number(noise, '+')}{apart} on val; what lies within is noise"
