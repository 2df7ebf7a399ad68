"""A family whose GGUF files hold everything in another form than its checkpoints."""

from __future__ import annotations

from app.models.gguf_names import GGUFNames, GGUFTensor, less_one
from app.models.names import FamilyNames

NAMES = FamilyNames(
    gguf=GGUFNames(
        model={"token_embd": "wte"},
        layer={
            "attn_norm": GGUFTensor("ln_1", less_one),
            "attn_qkv": GGUFTensor("attn.c_attn", transposed=True),
            "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
            "ssm_dt.bias": "mixer.dt_bias",
            "ssm_a": "mixer.A_log",
        },
        layers="h",
    ),
)
