"""The decoder and its checkpoints: exact beside transformers and beside itself unpacked."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from lightningrun.errors import UsageError  # noqa: E402
from lightningrun.models.local import checkpoint  # noqa: E402
from lightningrun.models.local.decoder import Decoder, Shape, initialise  # noqa: E402
from lightningrun.models.local.packing import Segment, group, pack  # noqa: E402
from tests.models.local_checkpoints import model, saved, tokenizer  # noqa: E402

FAMILIES = ("llama", "qwen2")


def some_ids(length: int, seed: int = 0, vocab: int = 300) -> list[int]:
    return [random.Random(f"{seed}-{place}").randrange(vocab) for place in range(length)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_gives_transformers_the_same_logits(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    ours = checkpoint.load(saved(tmp_path / "model", family))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([some_ids(50)])
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)
    assert theirs.generation_config.eos_token_id == tokenizer(family).eos_id


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_saved_by_transformers_is_read_grouped_untied_stretched_and_in_shards(
    family: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    kind = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[family]
    stretch = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    stretch |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    config = kind(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, rms_norm_eps=1e-5,
        rope_parameters=stretch if family == "llama" else {"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config)
    theirs.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    ids = torch.tensor([some_ids(60)])
    torch.testing.assert_close(checkpoint.load(tmp_path / "model")(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequences_have_the_log_probs_and_gradients_that_they_have_alone(family: str) -> None:
    decoder = model(family)
    prompts = [some_ids(9, 1), some_ids(4, 2)]
    groups = [[some_ids(6, 3), some_ids(2, 4), some_ids(1, 5)], [some_ids(12, 6)]]
    turns = [some_ids(5, 7), some_ids(3, 8), some_ids(2, 9), some_ids(4, 10)]
    dialogue = [Segment(turns[0], learn=False), Segment(turns[1], 0), Segment(turns[2], 1, learn=False)]
    dialogue.append(Segment(turns[3], 2, learn=[True, False, True, True]))
    packed = pack([*map(group, prompts, groups), dialogue], row_tokens=30)
    assert packed.ids.shape[0] == 2, "two rows are enough"
    together = decoder.log_probs(packed, temperature=0.7)
    assert packed.counts == (0, 6, 2, 1, 0, 12, 0, 3, 0, 3)
    weights = torch.linspace(-1, 1, len(together))
    (together * weights).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in decoder.named_parameters()}
    decoder.zero_grad()

    def alone(before: list[int], after: list[int]) -> torch.Tensor:
        scores = (decoder(torch.tensor([before + after]))[0] / 0.7).log_softmax(-1)
        return scores[torch.arange(len(before) - 1, len(before + after) - 1), torch.tensor(after)]

    expected = [alone(prompt, each) for prompt, some in zip(prompts, groups, strict=True) for each in some]
    expected.append(alone(turns[0], turns[1]))
    expected.append(alone(turns[0] + turns[1] + turns[2], turns[3])[[0, 2, 3]])
    one_by_one = torch.cat(expected)
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)
    (one_by_one * weights).sum().backward()
    for name, weight in decoder.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-3, atol=1e-5)


def test_logits_too_many_to_hold_are_scored_in_pieces() -> None:
    decoder = model()
    packed = pack([[Segment(some_ids(20, seed))] for seed in range(4)])
    whole, entropy = decoder.log_probs_and_entropy(packed)
    decoder.logits_at_once = 300 * 7
    pieces, entropy_of_pieces = decoder.log_probs_and_entropy(packed)
    torch.testing.assert_close(whole, pieces)
    torch.testing.assert_close(entropy, entropy_of_pieces)
    assert entropy.detach().min() > 0 and entropy.detach().max() < 6


def test_a_new_model_is_decided_by_its_seed_and_has_the_size_it_says() -> None:
    first, again, other = model(seed=1), model(seed=1), model(seed=2)
    assert checkpoint.weights_digest(first.state_dict()) == checkpoint.weights_digest(again.state_dict())
    assert checkpoint.weights_digest(first.state_dict()) != checkpoint.weights_digest(other.state_dict())
    decoder = Decoder(Shape("llama", vocab=740, width=96, layers=2, heads=3, kv_heads=3, head_dim=32, feed_forward=256, context=64))  # fmt: skip  # noqa: E501
    initialise(decoder, 0)
    assert 280_000 < sum(weight.numel() for weight in decoder.parameters()) < 300_000
    with pytest.raises(UsageError, match="sizes tiny"):
        checkpoint.scratch(tokenizer(), size="huge")


def test_saving_replaces_a_checkpoint_whole_and_its_digest_tells_them_apart(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    first = checkpoint.save(model(seed=1), tokenizer(), folder, {"step": 3})
    assert json.loads((folder / "manifest.json").read_text())["step"] == 3
    assert checkpoint.save(model(seed=1), tokenizer(), folder) == first
    assert checkpoint.save(model(seed=2), tokenizer(), folder) != first
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is left beside it"
    loaded = checkpoint.load(folder).state_dict()
    assert checkpoint.weights_digest(loaded) == checkpoint.weights_digest(model(seed=2).state_dict())


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    weights = saved(tmp_path / "model") / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UsageError, match="damaged"):
        checkpoint.load(tmp_path / "model")


def test_what_cannot_be_served_says_why(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    (folder / "manifest.json").unlink()  # as a folder from elsewhere
    config = json.loads((folder / "config.json").read_text())

    def refusal(**changes: object) -> str:
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UsageError) as caught:
            checkpoint.load(folder)
        return str(caught.value)

    assert "model_type is 'gpt2'" in refusal(model_type="gpt2")
    assert "quantised" in refusal(quantization_config={"bits": 4})
    assert "'yarn' is not known" in refusal(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4})
    assert "in another shape than it should model." in refusal(hidden_size=64)
    assert "lacks lm_head.weight" in refusal(tie_word_embeddings=False)
    assert "cannot be used" in refusal(vocab_size=None) and "cannot be used" in refusal(num_hidden_layers="two")
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    assert "are code and are not read" in refusal()
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}, folder / "model.safetensors")  # fmt: skip  # noqa: E501
    assert "lacks model.layers.1.mlp.down_proj.weight" in refusal()
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    assert "cannot be read" in refusal()


def test_a_full_disk_keeps_the_checkpoint_that_was_there(tmp_path: Path) -> None:
    import subprocess
    import sys

    folder = saved(tmp_path / "model", seed=1)
    code = (
        "import signal, resource, sys\nfrom pathlib import Path\n"
        "from tests.models.local_checkpoints import model, tokenizer\n"
        "from lightningrun.models.local import checkpoint\n"
        "decoder, words = model(seed=2), tokenizer()\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    checkpoint.save(decoder, words, Path(sys.argv[1]))\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True).stdout
    assert said.startswith("DiskFull ") and "cannot write: " in said, said
    assert checkpoint.weights_digest(checkpoint.load(folder).state_dict()) == checkpoint.weights_digest(
        model(seed=1).state_dict()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
