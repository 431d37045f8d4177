"""What each engine's placement file must look like, written from its own loader's demands and not from our writers."""

from __future__ import annotations

from typing import Any

EXPERT = {"type": "integer", "minimum": 0}
EXPERT_OR_EMPTY = {"type": "integer", "minimum": -1}


def rows(slot: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1, "items": slot}}


SGLANG = {
    "type": "object",
    "properties": {"physical_to_logical_map": rows(EXPERT)},
    "required": ["physical_to_logical_map"],
    "additionalProperties": False,
}
VLLM = {
    "type": "object",
    "properties": {
        "record_type": {"const": "eplb_initial_mapping"},
        "version": {"const": 1},
        "num_redundant_experts": {"type": "integer", "minimum": 0},
        "num_slots": {"type": "integer", "minimum": 1},
        "initial_global_assignments": {
            "type": "object",
            "minProperties": 1,
            "patternProperties": {r"^(0|[1-9][0-9]*)$": {"type": "array", "items": EXPERT_OR_EMPTY}},
            "additionalProperties": False,
        },
    },
    "required": ["record_type", "version", "num_redundant_experts", "num_slots", "initial_global_assignments"],
    "additionalProperties": False,
}
TRTLLM = {  # of the YAML, whose layer numbers are whole numbers: as texts here, since JSON knows no other keys
    "type": "object",
    "properties": {
        "num_slots": {"type": "integer", "minimum": 1},
        "layer_updates_per_iter": {"type": "integer", "minimum": 0},
        "initial_global_assignments": {
            "type": "object",
            "minProperties": 1,
            "patternProperties": {r"^[0-9]+$": {"type": "array", "items": EXPERT}},
            "additionalProperties": False,
        },
    },
    "required": ["num_slots", "layer_updates_per_iter", "initial_global_assignments"],
    "additionalProperties": False,
}
ASCEND = {
    "type": "object",
    "properties": {
        "moe_layer_count": {"type": "integer", "minimum": 1},
        "layer_list": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "layer_id": {"type": "integer", "minimum": 0},
                    "device_count": {"type": "integer", "minimum": 1},
                    "device_list": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "properties": {
                                "device_id": {"type": "integer", "minimum": 0},
                                "device_expert": {"type": "array", "minItems": 1, "items": EXPERT},
                            },
                            "required": ["device_id", "device_expert"],
                            "additionalProperties": False,
                        },
                    },
                },
                "required": ["layer_id", "device_count", "device_list"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["moe_layer_count", "layer_list"],
    "additionalProperties": False,
}
