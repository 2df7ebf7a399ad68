"""DeepSeeks with experts: transformers' numbers and tokens, and what configs and files say of the experts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config, PreTrainedModel

from app.kernels import dispatch
from app.models.architectures import parse_config
from app.models.config import ConfigError, ExpertsConfig, GroupsConfig, MlpConfig
from tests.models.checkpoints import expected_logprobs, served_logprobs
from tests.models.deepseek.test_config import V2_LITE, V3
from tests.models.expert_files import ROUNDED_BFLOAT16, are_near, save_stacks
from tests.models.latent_serving import INT8, ServedLatentTests, native
from tests.models.parity import Loaded, ParityTests
from tests.models.scheduled import TOKENS, answers, engine_of, greedy
from tests.models.tiny import make_reference, save
from tests.runner.driver import runner_of

V2_LITE_EXPERTS: dict[str, Any] = {
    **V2_LITE,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 6,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "topk_group": 1,
    "topk_method": "greedy",
}
V2_GROUPS = {
    **V2_LITE_EXPERTS,
    "n_group": 8,
    "n_routed_experts": 160,
    "moe_intermediate_size": 1536,
    "routed_scaling_factor": 16.0,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
}
V3_EXPERTS: dict[str, Any] = {
    **V3,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 8,
    "num_nextn_predict_layers": 1,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
}
LITE = ExpertsConfig(count=64, chosen=6, width=1408, normalise=False, shared_width=2816)
IN_GROUPS = ExpertsConfig(
    count=160,
    chosen=6,
    width=1536,
    normalise=False,
    scale=16.0,
    groups=GroupsConfig(count=8, chosen=3, best=1),
    shared_width=3072,
)
THIRD = ExpertsConfig(
    count=256,
    chosen=8,
    width=2048,
    scoring="sigmoid",
    least_sum=1e-20,
    scale=2.5,
    correction=True,
    groups=GroupsConfig(count=8, chosen=4, best=2),
    shared_width=2048,
)


@pytest.fixture(
    scope="module",
    params=["deepseek_v2_experts", "deepseek_v2_groups", "deepseek_v3_experts", "deepseek_v3_one_group"],
)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp(request.param))


class TestParity(ParityTests):
    BFLOAT16 = ROUNDED_BFLOAT16


@pytest.fixture(scope="module", params=["deepseek_v2_groups", "deepseek_v3_experts"])
def reference(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_reference(request.param)


@pytest.fixture(scope="module")
def checkpoint(reference: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(reference, tmp_path_factory.mktemp("deepseek"))


class TestServed(ServedLatentTests):
    @native
    @pytest.mark.parametrize("formats", [INT8, {"dtype": "bfloat16", "kernels": "strict"}], ids=["int8", "bfloat16"])
    def test_rounded_formats_are_near(self, checkpoint: Path, formats: dict[str, Any]) -> None:
        are_near(served_logprobs(runner_of(checkpoint, **formats)), expected_logprobs(checkpoint))

    def test_tensors_as_they_are_in_memory_are_those_of_files(
        self, reference: PreTrainedModel, checkpoint: Path, tmp_path: Path
    ) -> None:
        stacks = save_stacks(reference, tmp_path / "stacks")
        assert torch.equal(served_logprobs(runner_of(stacks)), served_logprobs(runner_of(checkpoint)))


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    dispatch.configure(dispatch.Mode.AUTO, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("restored")
def test_interpreted_kernels_choose_the_same_tokens(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    reference = make_reference("deepseek_v3_experts", num_hidden_layers=1, first_k_dense_replace=0)
    engine = engine_of(save(reference, tmp_path), kernels="interpret", max_num_batched_tokens=16)
    assert answers(engine, [TOKENS[:18]], 2) == [greedy(reference, TOKENS[:18], 2)]


def test_the_correction_changes_the_choice(tmp_path: Path) -> None:
    reference = make_reference("deepseek_v3_experts")
    corrected = served_logprobs(runner_of(save(reference, tmp_path / "corrected")))
    for name, buffer in reference.named_buffers():
        if name.endswith("correction_bias"):
            assert buffer.count_nonzero() == 12
            buffer.zero_()
    assert (served_logprobs(runner_of(save(reference, tmp_path / "zero"))) - corrected).abs().max() > 0.1


@pytest.mark.parametrize(
    ("config", "dense", "experts"),
    [(V2_LITE_EXPERTS, 1, LITE), (V2_GROUPS, 1, IN_GROUPS), (V3_EXPERTS, 3, THIRD)],
    ids=["v2_lite", "v2", "v3"],
)
def test_the_published_experts(config: dict[str, Any], dense: int, experts: ExpertsConfig) -> None:
    parsed = parse_config(config)
    assert [layer.mlp for layer in parsed.layers] == [MlpConfig(width=10944)] * dense + [experts] * (27 - dense)
    kind = DeepseekV3Config if config["model_type"] == "deepseek_v3" else DeepseekV2Config
    saved = kind(**config).to_dict()
    assert parse_config({**saved, "architectures": config["architectures"]}) == parsed


@pytest.mark.parametrize("third", [False, True])
def test_absent_fields_are_what_transformers_takes_them_for(third: bool) -> None:
    given = {**(V3 if third else V2_LITE), "num_experts_per_tok": 8}
    del given["first_k_dense_replace"]
    theirs = (DeepseekV3Config if third else DeepseekV2Config)(**given)
    parsed = parse_config(given)
    sparse = [layer.mlp for layer in parsed.layers if isinstance(layer.mlp, ExpertsConfig)]
    assert len(sparse) == 27 - (theirs.first_k_dense_replace or 0)
    ours = sparse[0]
    assert (ours.count, ours.chosen) == (theirs.n_routed_experts, theirs.num_experts_per_tok)
    assert (ours.width, ours.scale) == (theirs.moe_intermediate_size, theirs.routed_scaling_factor)
    assert ours.shared_width == theirs.n_shared_experts * theirs.moe_intermediate_size
    assert ours.normalise == theirs.norm_topk_prob
    assert ours.groups == (GroupsConfig(count=8, chosen=4, best=2) if third else None)


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts"])
def test_the_number_of_experts_under_its_other_names(name: str) -> None:
    renamed = {key: value for key, value in V3_EXPERTS.items() if key != "n_routed_experts"} | {name: 256}
    assert parse_config(renamed) == parse_config(V3_EXPERTS)
    with pytest.raises(ConfigError, match=f"n_routed_experts = 256 and {name} = 8 differ"):
        parse_config({**V3_EXPERTS, name: 8})


def test_no_shared_experts_and_one_group() -> None:
    parsed = parse_config({**V3_EXPERTS, "n_shared_experts": None, "n_group": 1, "topk_group": 1})
    mlp = parsed.layers[-1].mlp
    assert isinstance(mlp, ExpertsConfig)
    assert (mlp.shared_width, mlp.groups) == (None, None)
    assert parse_config({**V2_LITE_EXPERTS, "n_group": 8}) == parse_config(V2_LITE_EXPERTS), "the greedy see no groups"


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (V2_GROUPS, {"topk_method": "noaux_tc"}, "topk_method = 'noaux_tc'"),
        (V2_GROUPS, {"topk_method": None}, "topk_method = None"),
        (V2_GROUPS, {"scoring_func": "sigmoid"}, "scoring_func = 'sigmoid'"),
        (V2_GROUPS, {"norm_topk_prob": True}, "norm_topk_prob = True"),
        (V2_GROUPS, {"num_experts_per_tok": None}, "num_experts_per_tok = None"),
        (V2_GROUPS, {"n_group": None}, "n_group = None"),
        (V2_GROUPS, {"mlp_bias": True}, "mlp_bias = True"),
        (V3_EXPERTS, {"topk_method": "greedy"}, "topk_method = 'greedy'"),
        (V3_EXPERTS, {"scoring_func": "softmax"}, "scoring_func = 'softmax'"),
        (V3_EXPERTS, {"moe_layer_freq": 2}, "moe_layer_freq = 2"),
        (V3_EXPERTS, {"n_group": 7}, "n_group = 7 does not part n_routed_experts = 256"),
        (V3_EXPERTS, {"n_group": 256}, "n_group = 256 does not part n_routed_experts = 256 in groups of 2"),
        (V3_EXPERTS, {"topk_group": 9}, "topk_group = 9 of n_group = 8"),
        (V3_EXPERTS, {"topk_group": 1, "num_experts_per_tok": 33}, "do not hold num_experts_per_tok = 33"),
        (V3_EXPERTS, {"num_experts_per_tok": 257}, "num_experts_per_tok = 257 is more than n_routed_experts = 256"),
        (V3_EXPERTS, {"n_routed_experts": 2048}, "n_routed_experts = 2048 is not supported"),
        (V3_EXPERTS, {"n_routed_experts": 0}, "more than n_routed_experts = 0"),
        (V3_EXPERTS, {"routed_scaling_factor": float("nan")}, "routed_scaling_factor"),
        (V3_EXPERTS, {"quantization_config": {"quant_method": "fp8", "fmt": "e5m2"}}, "quantization_config = 'fp8'"),
    ],
)
def test_experts_that_are_refused(config: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({**config, **fields})
