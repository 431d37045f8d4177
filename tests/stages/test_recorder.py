"""Counting what routers choose: equal to a count by hand, for every family, window by window and over ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.errors import BadInput
from stages.load import LoadStats, read_load, write_load
from stages.recorder import ExpertLoadRecorder
from stages.routers import chosen, find_routers
from tests.stages import tiny_models
from tests.stages.recorder_ranks import count_on_rank, part_of
from tests.stages.update.test_api_ranks import start_ranks


def by_hand(model: Any, ids: torch.Tensor) -> np.ndarray:
    """[L, E]: a brute-force count over what the routers return, told from their logits where nothing else decides."""
    found: dict[str, Any] = {}
    routers = find_routers(model)
    handles = [
        router.module.register_forward_hook(
            lambda module, inputs, output, name=router.name: found.update({name: output})
        )
        for router in routers
    ]
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    count = np.zeros((len(routers), routers[0].experts), dtype=np.int64)
    for layer, router in enumerate(routers):
        logits, _, indices = found[router.name]
        assert logits.shape == (ids.numel(), router.experts)
        if type(router.module).__name__ != "DeepseekV3TopkRouter":  # which chooses by groups
            best = np.sort(np.argsort(-logits.numpy(), axis=1, kind="stable")[:, : router.top_k], axis=1)
            np.testing.assert_array_equal(np.sort(indices.numpy(), axis=1), best)
        for token in indices.tolist():
            assert len(set(token)) == router.top_k
            for expert in token:
                count[layer, expert] += 1
    return count


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
class TestFamilies:
    def test_counts_equal_a_count_by_hand(self, family: str) -> None:
        model = tiny_models.build(family)
        routers = find_routers(model)
        assert [router.layer for router in routers] == tiny_models.MOE_LAYERS.get(family, [0, 1, 2, 3])
        assert {(router.experts, router.top_k) for router in routers} == {(8, 2)}
        batches = torch.randint(0, 256, (3, 2, 17), generator=torch.Generator().manual_seed(1))
        recorder = ExpertLoadRecorder(len(routers), 8)
        with recorder.watching(model), torch.no_grad():
            for number, batch in enumerate(batches):
                model(input_ids=batch)
                recorder.end_window(f"batch {number}")
        load = recorder.load_stats()
        np.testing.assert_array_equal(load.logical_count, [by_hand(model, batch) for batch in batches])
        assert (load.logical_count.sum(axis=2) == 2 * 17 * 2).all()
        assert load.labels == ("batch 0", "batch 1", "batch 2")

    def test_the_model_is_left_as_it_was(self, family: str) -> None:
        model = tiny_models.build(family)
        ids = torch.arange(20).reshape(1, 20)
        with torch.no_grad():
            before = model(input_ids=ids).logits
        recorder = ExpertLoadRecorder(len(find_routers(model)), 8)
        with recorder.watching(model), torch.no_grad():
            during = model(input_ids=ids).logits
        with pytest.raises(RuntimeError, match="in between"), recorder.watching(model):
            raise RuntimeError("in between")
        assert torch.equal(before, during)
        assert not any(module._forward_hooks for module in model.modules())
        with torch.no_grad():
            model(input_ids=ids)
        recorder.end_window()
        assert recorder.load_stats().logical_count.sum() == len(find_routers(model)) * 20 * 2


def test_a_training_loop_counts_too() -> None:
    model = tiny_models.build("olmoe")
    recorder = ExpertLoadRecorder(4, 8)
    with recorder.watching(model):
        ids = torch.arange(24).reshape(2, 12)
        model(input_ids=ids, labels=ids).loss.backward()
    recorder.end_window()
    assert (recorder.load_stats().logical_count.sum(axis=2) == 48).all()
    assert all(parameter.grad is not None for parameter in model.model.layers[0].mlp.gate.parameters())
    model.zero_grad(set_to_none=True)


def test_by_hand_with_padding_and_without_a_model() -> None:
    recorder = ExpertLoadRecorder(2, 4)
    recorder.record(0, torch.tensor([[0, 3], [3, -1]], dtype=torch.int32))
    recorder.record(1, torch.tensor([2, 2, 99]))
    recorder.enabled = False
    recorder.record(1, torch.tensor([0]))
    recorder.enabled = True
    recorder.end_window()
    recorder.end_window()
    load = recorder.load_stats()
    np.testing.assert_array_equal(load.logical_count, [[[1, 0, 0, 2], [0, 0, 2, 0]], np.zeros((2, 4))])
    assert load.labels == ()
    assert recorder.windows == 2
    recorder.reset()
    with pytest.raises(BadInput, match="Nothing was recorded"):
        recorder.load_stats()


def test_it_makes_the_artifact_that_stages_read(tmp_path: Path) -> None:
    recorder = ExpertLoadRecorder(1, 3)
    recorder.record(0, torch.tensor([0, 1, 1]))
    recorder.end_window("one")
    write_load(tmp_path, recorder.load_stats())
    assert isinstance(read_load(tmp_path / "load.safetensors"), LoadStats)
    np.testing.assert_array_equal(read_load(tmp_path / "load.safetensors").logical_count, [[[1, 2, 0]]])


def test_what_does_not_fit_is_refused() -> None:
    model = tiny_models.build("olmoe")
    words = r"4 MoE layers of \[8\] experts, but the recorder is of 3 layers and 8"
    with pytest.raises(BadInput, match=words), ExpertLoadRecorder(3, 8).watching(model):
        pass
    with pytest.raises(BadInput, match="Linear has no routers that are known; families known to work: mixtral"):
        find_routers(torch.nn.Linear(2, 2))
    with pytest.raises(BadInput, match="0 layers and 4 experts is not possible"):
        ExpertLoadRecorder(0, 4)
    with pytest.raises(BadInput, match="returns no indices of 2 experts a token"):
        chosen((torch.ones(3, 8), torch.ones(3, 2)), 2, "mlp.gate")


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_are_summed_by_one_all_reduce(tmp_path: Path, ranks: int) -> None:
    start_ranks(count_on_rank, ranks, str(tmp_path))
    expected = sum(part_of(rank).astype(np.int64) for rank in range(ranks))
    for rank in range(ranks):
        load = read_load(tmp_path / str(rank) / "load.safetensors")
        np.testing.assert_array_equal(load.logical_count, expected)
        assert load.labels == ("a", "b")
        assert (tmp_path / str(rank) / "calls").read_text() == "1"
