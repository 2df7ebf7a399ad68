"""What families with experts share when they read a ``config.json`` (torch-free)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec.structs import replace

from app.models.config import ConfigError, ExpertsConfig, GroupsConfig, ModelConfig
from app.models.reading import Count, DecoderFields, Positive

MAX_EXPERTS: Final = 1024
"""That kernels choose among."""


class SparseFields(DecoderFields, kw_only=True):
    """Fields of a decoder and of its experts as Qwens call them, some layers of which are dense.

    A family gives those their defaults that transformers gives them.
    """

    num_experts: Count | None = None
    num_local_experts: Count | None = None
    """The same, as transformers 5 may write it."""
    num_experts_per_tok: Positive
    moe_intermediate_size: Positive
    norm_topk_prob: bool = False
    decoder_sparse_step: Positive = 1
    mlp_only_layers: list[int] | None = None

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts, of a model that has any."""
        return layer not in (self.mlp_only_layers or ()) and (layer + 1) % self.decoder_sparse_step == 0


def expert_count(counts: Mapping[str, int | None], *, silent: int, dense: bool = True) -> int:
    """Experts of a layer, 0 where there are none.

    Args:
        counts: what the fields that say it, each, say.
        silent: how many there are when none does.
        dense: a model without experts is one of the family.

    Raises:
        ConfigError: two differ, or there are none in a family that has no dense models.
    """
    said = {name: count for name, count in counts.items() if count is not None}
    if len(set(said.values())) > 1:
        raise ConfigError(f"{' and '.join(f'{name} = {count}' for name, count in said.items())} differ")
    name, count = next(iter(said.items()), ("", silent))
    if count == 0 and not dense:
        raise ConfigError(f"{name} = 0 is not supported: all layers of this family have experts")
    return count


def check_experts(experts: ExpertsConfig, *, count: str = "num_experts", chosen: str = "num_experts_per_tok") -> None:
    """Checks that there are experts to choose, and no more than can be chosen among.

    Args:
        count: the field that says how many there are.
        chosen: likewise of a token.

    Raises:
        ConfigError: it is not so.
    """
    if experts.count > MAX_EXPERTS:
        raise ConfigError(f"{count} = {experts.count} is not supported: more than {MAX_EXPERTS}")
    if experts.chosen > experts.count:
        raise ConfigError(f"{chosen} = {experts.chosen} is more than {count} = {experts.count}")


def read_groups(count: int | None, chosen: int | None, experts: ExpertsConfig, *, best: int) -> GroupsConfig | None:
    """The groups that a token's experts are chosen from, None where all experts are one group.

    Args:
        count: ``n_group``.
        chosen: ``topk_group``.
        best: as of :class:`~app.layers.config.GroupsConfig`.

    Raises:
        ConfigError: groups are of unequal size or too small, or those chosen do not hold a token's experts.
    """
    if count is None or chosen is None:
        raise ConfigError(f"n_group = {count} and topk_group = {chosen} are no numbers of groups")
    if experts.count % count or experts.count < best * count:
        raise ConfigError(
            f"n_group = {count} does not part n_routed_experts = {experts.count} in groups of {best} or more"
        )
    if chosen > count or chosen * (experts.count // count) < experts.chosen:
        raise ConfigError(
            f"topk_group = {chosen} of n_group = {count} do not hold num_experts_per_tok = {experts.chosen} experts"
        )
    return None if count == 1 else GroupsConfig(count=count, chosen=chosen, best=best)


def with_experts(
    model: ModelConfig, experts: ExpertsConfig, is_sparse: Callable[[int], bool] = lambda _layer: True
) -> ModelConfig:
    """A decoder with experts in place of some layers' feed-forward parts.

    Args:
        is_sparse: tells in which.
    """
    layers = (replace(layer, mlp=experts) if is_sparse(i) else layer for i, layer in enumerate(model.layers))
    return replace(model, layers=tuple(layers))
