"""Having proposals written: failures chosen and shown to the coach, its answers guarded, candidates made of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lightningrun.stages.apo.attempts import Attempt, choose_failures, in_shares
from lightningrun.stages.apo.candidates import Candidate
from lightningrun.stages.apo.coach import Proposal, answer_form, shown_failures, shown_prompts, write_question
from lightningrun.stages.apo.config import FIELD
from lightningrun.stages.apo.demos import with_demos, without_demos
from lightningrun.stages.apo.edits import edit_form
from lightningrun.stages.apo.examples import example_pools, fitting
from lightningrun.stages.apo.merging import Pair, combined, write_merge_question
from lightningrun.stages.apo.replies import refused
from lightningrun.stages.apo.search import Setting
from lightningrun.stages.apo.traces import neutralised, shortened
from lightningrun.types import Rollout

MAX_CRITIQUE_TOKENS = 1000


class Writer:
    """Writes the proposals of a generation together. ``failures`` gives what is known to go wrong with a candidate,
    ``is_good`` whether it mostly succeeds: then it is changed with more care, in one round."""

    def __init__(
        self, setting: Setting, failures: Callable[[Candidate], list[Rollout]], is_good: Callable[[Candidate], bool]
    ) -> None:
        self._setting = setting
        self._failures = failures
        self._is_good = is_good

    async def write(self, attempts: Sequence[Attempt]) -> None:
        """Have the coach write all proposals, in rounds, and guard them in order.

        Each round shows the next share of the failures and rewrites what the round before has written. An answer of no
        use is passed over if another round gave a better one.
        """
        config = self._setting.config
        reflection = config.reflection
        shares: dict[int, list[list[Rollout]]] = {}
        for one in attempts:
            shown = choose_failures(self._failures(one.parent), self._setting.top, reflection, one.rng)
            rounds = 1 if self._is_good(one.parent) else reflection.rounds
            shares[one.index] = in_shares(shown, reflection.batch, rounds)
            one.texts = {name: without_demos(one.parent.prompts[name]) for name in one.components}
        for number in range(reflection.rounds):
            asked = [one for one in attempts if number < len(shares[one.index])]
            asked = asked[: int(min(len(asked), self._setting.coach.calls_left // config.calls_a_round()))]
            answers = await asyncio.gather(
                *(self._ask(one, shares[one.index][number]) for one in asked), return_exceptions=True
            )
            for one, answer in zip(asked, answers, strict=True):
                if isinstance(answer, BaseException):
                    raise answer
                self._take(one, answer)
        for one in attempts:
            one.way = config.mode
            self._admit(one)

    async def merge(self, attempt: Attempt, pair: Pair) -> None:
        """Write the merge of two candidates; the coach is asked only about prompts that both have changed."""
        setting = self._setting
        bare = Pair(*(_bare(one) for one in (pair.first, pair.second, pair.ancestor)))
        attempt.texts, both = combined(bare, attempt.components)
        if both:
            config, failed = setting.config.reflection, list[list[str]]()
            for one in (pair.first, pair.second):
                shown = choose_failures(self._failures(one), setting.top, config, attempt.rng)[: config.batch // 2]
                failed.append([setting.describe(rollout, one.prompts) for rollout in shown])
            current = {name: attempt.texts[name] for name in both}
            question = write_merge_question(bare, both, failed)
            self._take(attempt, [await setting.coach.rewrite(attempt.index, current, question)])
        else:
            prompts = {**pair.first.prompts, **attempt.texts}
            attempt.reason = setting.guards.objection(prompts, attempt.components)
            attempt.written = not attempt.reason
        self._admit(attempt, (pair.first.id, pair.second.id))

    async def _ask(self, attempt: Attempt, shown: Sequence[Rollout]) -> list[Proposal]:
        """One round: the rewrite, after a critique of its own if there is a question for it."""
        config, coach, current = self._setting.config, self._setting.coach, attempt.texts
        written = [self._setting.describe(rollout, attempt.parent.prompts) for rollout in shown]
        own = config.coach_prompts
        said: list[Proposal] = []
        if own.critique:
            said.append(await coach.ask(attempt.index, fill(own.critique.text or "", current, written)))
            if said[0].problem or refused(said[0].answer):
                return [replace(said[0], problem=said[0].problem or "the coach gave no critique")]
        form = edit_form(current) if config.mode == "edits" else ""
        critique = said[0].answer if said else ""
        if own.rewrite:
            question = fill(own.rewrite.text or "", current, written, critique, form or answer_form(current))
        else:
            question = write_question(current, [critique] if said else written, form)
        change = coach.edit if config.mode == "edits" else coach.rewrite
        return [*said, await change(attempt.index, current, question)]

    def _take(self, attempt: Attempt, said: Sequence[Proposal]) -> None:
        """Note one round's answers; the texts replace the ones before if the guards have no objection."""
        attempt.answers += said
        answer = said[-1]
        attempt.notes += answer.dropped
        prompts = {**attempt.parent.prompts, **attempt.texts, **answer.texts}
        problem = answer.problem or self._setting.guards.objection(prompts, answer.texts)
        if problem:
            attempt.reason = problem
        else:
            attempt.texts = {**attempt.texts, **answer.texts}
            attempt.written = True

    def _admit(self, attempt: Attempt, parents: tuple[int, ...] = ()) -> None:
        """Make a candidate of a proposal that is fit for rollouts; ``parents`` if they are two."""
        if not attempt.written:
            return
        shown = self._examples(attempt)
        prompts = {**attempt.parent.prompts, **attempt.texts}
        twin = self._setting.guards.duplicate_of(prompts)
        if twin is not None:
            attempt.verdict, attempt.reason = "duplicate", f"the same as candidate {twin}"
        else:
            self._setting.guards.remember(prompts, attempt.index)
            attempt.child = Candidate(attempt.index, prompts, parents or (attempt.parent.id,), shown=shown)

    def _examples(self, attempt: Attempt) -> frozenset[str]:
        """Put fresh examples of what the parent does well at the end of the texts. Returns the training rows shown:
        none of those that the proposal is compared on first."""
        setting, most = self._setting, self._setting.config.demos.max
        if not most:
            return frozenset()
        pools = example_pools(setting, attempt.parent, 1)
        compared = {task.id for task in attempt.batch}
        rows = [row for row in dict.fromkeys(row for pool in pools.values() for row in pool) if row not in compared]
        drawn = attempt.rng.sample(rows, min(most, len(rows)))
        shown: set[str] = set()
        texts = dict(attempt.texts)
        for name in attempt.components:
            text = without_demos(texts[name])
            demos = fitting(setting, text, [pools[name][row] for row in drawn if row in pools[name]])
            texts[name] = with_demos(text, demos)
            shown |= {demo.task_id for demo in demos}
        kept = attempt.parent.shown if len(attempt.components) < len(setting.optimize) else frozenset()
        attempt.texts = texts
        return kept | shown


def _bare(candidate: Candidate) -> Candidate:
    """The candidate's prompts without their examples."""
    texts = {name: without_demos(text) for name, text in candidate.prompts.items()}
    return Candidate(candidate.id, texts, candidate.parents)


def fill(template: str, current: Mapping[str, str], failures: Sequence[str], critique: str = "", form: str = "") -> str:
    """A question to the coach from a template; ``form``, how to answer, comes last unless the template places it."""
    values = {
        "current_prompt": "\n\n".join(shown_prompts(current)),
        "failures": "\n\n".join(shown_failures(failures)),
        "prompt_names": ", ".join(current),
        "critique": shortened(neutralised(critique.strip()), MAX_CRITIQUE_TOKENS),
        "answer_form": form,
    }
    placed = "answer_form" in FIELD.findall(template)
    # Fields are filled in one pass, so that braces in traces and prompts stay as they are.
    parts = re.split(r"(\{\{|\}\}|\{[A-Za-z_]\w*\})", template)
    known = {"{{": "{", "}}": "}", **{f"{{{name}}}": text for name, text in values.items()}}
    text = "".join(known.get(part, part) for part in parts)
    return text if placed or not form else f"{text.rstrip()}\n\n{form}"
