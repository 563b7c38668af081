"""The embedded engine: exact, continuous, fair, and never a hang."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from lightningrun.errors import ModelError, UsageError  # noqa: E402
from lightningrun.models.local.engine import Completion, LocalEngine, Token  # noqa: E402
from lightningrun.models.local.sampling import Sampling, draw  # noqa: E402
from lightningrun.models.provider import RefusedRequest  # noqa: E402
from tests.models.local_checkpoints import model, saved  # noqa: E402

PROMPTS = [[5, 6, 7], list(range(20, 59)), [9], list(range(100, 117)), list(range(20, 59))]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    started = LocalEngine(saved(tmp_path_factory.mktemp("engine") / request.param, request.param), max_batch=24)
    yield started
    started.close()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_ids_have_the_log_probs_that_the_training_pass_gives_them(engine: LocalEngine, temperature: float) -> None:
    decoder = model(engine.shape.family)
    sampling = Sampling(temperature=temperature, top_p=0.8, top_k=40, max_tokens=30, seed=3)
    for prompt, group in zip(PROMPTS, engine.generate_many(PROMPTS, sampling, n=3), strict=True):
        assert len({tuple(completion.ids) for completion in group}) == 3
        for completion in group:
            assert completion.weights == engine.weights
            logits = decoder(torch.tensor([prompt + completion.ids]))[0, len(prompt) - 1 : -1]
            expected = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=1e-4, atol=1e-4)


def test_a_completion_does_not_depend_on_its_company(engine: LocalEngine) -> None:
    sampling = Sampling(max_tokens=40, seed=11)
    together = engine.generate_many(PROMPTS, sampling, n=6)  # 30 rows, 24 places: some join later
    alone = [engine.generate_many([prompt], sampling, n=6)[0] for prompt in PROMPTS]
    assert [[each.ids for each in group] for group in together] == [[each.ids for each in group] for group in alone]
    for group, other in zip(together, alone, strict=True):
        for one, two in zip(group, other, strict=True):
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-5)
    assert together[1] == together[4], "equal prompts and seeds, equal answers"
    assert together[0] != engine.generate_many(PROMPTS, Sampling(max_tokens=40, seed=12), n=6)[0]


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    count = 4000
    noise = torch.rand(count, generator=torch.Generator().manual_seed(0)).tolist()

    def shares(sampling: Sampling) -> list[float]:
        ids, _, _ = draw(logits.expand(count, -1), [sampling] * count, noise)
        return [(ids == token).float().mean().item() for token in range(4)]

    assert shares(Sampling()) == pytest.approx(logits.softmax(-1)[0].tolist(), abs=0.03)
    assert shares(Sampling(temperature=2.0)) == pytest.approx((logits / 2).softmax(-1)[0].tolist(), abs=0.03)
    two = logits[:, :2].softmax(-1)[0].tolist()
    assert shares(Sampling(top_k=2)) == pytest.approx([*two, 0, 0], abs=0.03)
    assert shares(Sampling(top_p=0.7)) == pytest.approx([*two, 0, 0], abs=0.03)
    assert shares(Sampling(temperature=0.0)) == [1, 0, 0, 0]


def test_completions_end_where_they_are_told_to(engine: LocalEngine) -> None:
    prompt = PROMPTS[1]
    free = engine.generate_many([prompt], Sampling(max_tokens=40, temperature=0.0))[0][0]
    if free.finish == "length":
        assert len(free.ids) == 40
    at = free.ids[7]
    first = free.ids.index(at)
    ended = engine.generate_many([prompt], Sampling(max_tokens=40, temperature=0.0, stop_ids=(at,)))[0][0]
    assert (ended.ids, ended.finish) == (free.ids[: first + 1], "stop")
    word = engine.tokenizer.decode(free.ids[3:6]).strip("\ufffd")
    stopped = engine.generate_many([prompt], Sampling(max_tokens=40, temperature=0.0, stop=(word, "never said")))[0][0]
    assert (stopped.finish, stopped.stop) == ("stop", word)
    assert stopped.ids == free.ids[: len(stopped.ids)] and len(stopped.ids) <= 7
    assert word in engine.tokenizer.decode(stopped.ids) and word not in engine.tokenizer.decode(stopped.ids[:-1])


async def test_a_stream_says_what_a_whole_answer_says(engine: LocalEngine) -> None:
    sampling = Sampling(max_tokens=25, seed=5, top_logprobs=3)
    whole = await engine.generate(PROMPTS[3], sampling, n=2)
    tokens: list[list[Token]] = [[], []]
    async for token in engine.stream(PROMPTS[3], sampling, n=2):
        tokens[token.index].append(token)
    for completion, said in zip(whole, tokens, strict=True):
        assert [token.id for token in said] == completion.ids
        assert [token.logprob for token in said] == completion.logprobs
        assert [token.tops for token in said] == completion.tops
        assert said[-1].completion == completion
        for token in said:
            assert len(token.tops) == 3 and token.tops[0][1] >= token.tops[1][1] >= token.tops[2][1]
            if token.id in dict(token.tops):
                assert dict(token.tops)[token.id] == token.logprob


async def test_who_goes_away_frees_the_engine(tmp_path: Path) -> None:
    engine = LocalEngine(saved(tmp_path / "model"), max_batch=4)
    endless = Sampling(max_tokens=900, stop_ids=())
    engine.end_ids = frozenset()
    tasks = [asyncio.create_task(engine.generate([7, seed], endless, n=4)) for seed in range(3)]
    streamed = engine.stream([8], endless)
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    assert all(
        isinstance(result, asyncio.CancelledError) for result in await asyncio.gather(*tasks, return_exceptions=True)
    )
    assert (await streamed.__anext__()).index == 0
    await streamed.aclose()
    sampled = engine.tokens
    began = time.monotonic()
    assert len((await engine.generate([9], Sampling(max_tokens=3)))[0].ids) == 3
    assert time.monotonic() - began < 5 and engine.tokens - sampled < 400, "nobody waits for the other 4,000 tokens"
    await engine.aclose()


async def test_new_weights_answer_later_requests_and_only_those(tmp_path: Path) -> None:
    engine = LocalEngine(saved(tmp_path / "old", seed=1))
    other = LocalEngine(saved(tmp_path / "new", seed=2))
    sampling = Sampling(max_tokens=30, seed=1)
    before = await engine.generate([5, 6], sampling)
    under_way = asyncio.create_task(engine.generate([5, 6], sampling))
    await asyncio.sleep(0)
    trained = model(seed=2)
    swap = engine.update_weights(trained, "step-1")
    after = asyncio.create_task(engine.generate([5, 6], sampling))
    assert await asyncio.wrap_future(swap) == "step-1" == engine.weights
    with torch.no_grad():
        trained.model.norm.weight.zero_()  # training goes on; the engine has its own copy
    expected = (await other.generate([5, 6], sampling))[0]
    assert await under_way == before
    assert ((await after)[0].ids, (await after)[0].weights) == (expected.ids, "step-1")
    named_by_content = engine.update_weights(model(seed=1).state_dict()).result()
    assert named_by_content != "step-1" and (await engine.generate([5, 6], sampling))[0].ids == before[0].ids
    with pytest.raises(UsageError, match="another shape"):
        engine.update_weights(model("qwen2"))
    with pytest.raises(UsageError, match="do not fit"):
        engine.update_weights({"model.norm.weight": torch.ones(3)})
    await engine.aclose()
    await other.aclose()


async def test_what_cannot_be_answered_is_refused_with_its_numbers(engine: LocalEngine, tmp_path: Path) -> None:
    with pytest.raises(RefusedRequest, match=r"has 1000 tokens and 30 are asked for: 1030 .* context of 1024"):
        await engine.generate([5] * 1000, Sampling(max_tokens=30))
    with pytest.raises(RefusedRequest, match="at least one"):
        await engine.generate([], Sampling())
    with pytest.raises(RefusedRequest, match=f"from 0 to {engine.shape.vocab - 1}"):
        await engine.generate([engine.shape.vocab], Sampling())
    short = LocalEngine(saved(tmp_path / "model"), context=32)
    filled = (await short.generate([5] * 20, Sampling(stop_ids=())))[0]
    assert len(filled.ids) <= 12 and (filled.finish == "stop" or len(filled.ids) == 12)
    await short.aclose()


async def test_broken_weights_and_a_closed_engine_are_errors_not_waits(tmp_path: Path) -> None:
    engine = LocalEngine(saved(tmp_path / "model"))
    broken = model()
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    await asyncio.wrap_future(engine.update_weights(broken))
    with pytest.raises(ModelError, match="not numbers") as caught:
        await engine.generate([5], Sampling(max_tokens=5))
    assert caught.value.kind == "nan"
    await asyncio.wrap_future(engine.update_weights(model()))
    assert len((await engine.generate([5], Sampling(max_tokens=5, temperature=0.0)))[0].ids) <= 5
    engine.end_ids = frozenset()
    waiting = asyncio.create_task(engine.generate([5], Sampling(max_tokens=1000)))
    await asyncio.sleep(0.01)
    await engine.aclose()
    with pytest.raises(ModelError, match="was closed"):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(ModelError, match="was closed"):
        await engine.generate([5], Sampling())


async def test_a_failure_inside_the_worker_fails_its_requests_and_no_others(tmp_path: Path) -> None:
    engine = LocalEngine(saved(tmp_path / "model"))
    bad = Sampling(max_tokens=5, top_p="much")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="the engine failed: TypeError"):
        await asyncio.wait_for(engine.generate([5], bad), 5)
    fine = await asyncio.wait_for(engine.generate([5], Sampling(max_tokens=5)), 5)
    assert isinstance(fine[0], Completion)
    await engine.aclose()
