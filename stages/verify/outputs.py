"""The judgement of the functional proof: do the experts make the same of the same tokens as before the update?"""

from __future__ import annotations

from dataclasses import dataclass

from stages.errors import BadInput
from stages.functional import FunctionalProof


@dataclass(frozen=True)
class Judgement:
    """`check`: what was compared, as a sentence; `fault`: in what it differs, else empty. `outputs`: how many there are,
    of which `different` differ."""

    outputs: int = 0
    different: int = 0
    check: str = ""
    fault: str = ""


def judge(proof: FunctionalProof | None, layers: int) -> Judgement:
    """Compare the digests of each layer, whatever else the proof says."""
    if proof is None or not proof.arithmetic:
        raise BadInput(
            "verify.functional=true needs the outputs that an update computes with update.functional=true, and this one "
            "has none."
        )
    if len(proof.before) != layers or len(proof.after) != layers:
        fault = (
            f"The functional proof is of {len(proof.before)} layers before the update and {len(proof.after)} after it, "
            f"and the model has {layers}."
        )
        return Judgement(fault=fault)
    different = [n for n, (was, now) in enumerate(zip(proof.before, proof.after, strict=True)) if was != now]
    check = (
        f"Sent random tokens through the experts of each layer, before the update and after it ({proof.arithmetic}): "
        f"{proof.products:,} outputs of an expert for a token, "
        + (f"which differ in {len(different)} of {layers} layers." if different else "bitwise the same.")
    )
    if not different:
        return Judgement(proof.products, 0, check)
    first = next((d for d in proof.differences if d.layer in different), None)
    fault = (
        f"The experts of {len(different)} of {layers} layers make something else of the same tokens than before the "
        f"update; the first: {first if first is not None else f'layer {different[0]}'}."
    )
    return Judgement(proof.products, max(proof.different, len(different)), check, fault)
