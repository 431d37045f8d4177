"""Config of the update stage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stages.contract import Content
from stages.errors import BadInput
from stages.model import ModelSpec
from stages.staging import Budget, Layout, budget
from stages.topology import Topology
from stages.update import machine
from stages.weight_shards import ShardSource
from stages.weight_source import FROM_FILES, ExpertSource, open_source

EXECUTORS = ("pipelined", "reference")
TRANSPORTS = ("auto", "nccl", "peer")
BACKENDS = ("auto", "gloo", "nccl")
RANKS = ("auto", "local", "attached")
WEIGHTS = ("synthetic", *FROM_FILES)
SAVE = (None, "shards")
DEFAULT_LINK_MIB = {"gloo": 16, "nccl": 1024}
MAX_TIMEOUT_SECONDS = 1e6


@dataclass
class UpdateOptions:
    """How the plan is carried out, and on what.

    executor:        what moves the weights: `pipelined` in checked batches, `reference` layer by layer
    transport:       what carries them between GPUs of one host: `nccl`, or `peer`, by copies into the other's memory
    staging_mib:     memory a rank may take beside its weights, send packing included
    verify_before_commit: hash what has arrived, and overwrite a slot only if all ranks found it right
    layers_per_step: so many layers are done before the next ones begin, so that a model waits for short moments; null: all
    retries:         how often a batch that arrived wrong is sent again
    journal:         folder for what each rank has committed, from which the same job continues after a failure; null: none
    backend:         `auto` takes NCCL where there is a GPU for every rank, gloo otherwise
    ranks:           `local` ranks are started on this host, `attached` ones were started by torchrun or Slurm
    weights:         where the weights come from: the generator, or files
    weights_path:    the folder of the files: a checkpoint of Hugging Face, or shards that an update saved
    save:            `shards` leaves what every slot holds in the end as files of the run
    functional:      also show that the experts make the same of random tokens before and after
    timeout_seconds: how long a rank waits for its peers before it fails
    oversubscribe:   let NCCL ranks share GPUs, over sockets: for tests, not for speed
    link_mib:        size of the message that the link is measured with; null: 1024 with NCCL, 16 with gloo
    """

    executor: str = "pipelined"
    transport: str = "auto"
    staging_mib: float = 1024
    verify_before_commit: bool = True
    layers_per_step: int | None = None
    retries: int = 2
    journal: str | None = "outputs/journal"
    backend: str = "auto"
    ranks: str = "auto"
    weights: str = "synthetic"
    weights_path: str | None = None
    save: str | None = None
    functional: bool = False
    timeout_seconds: float = 120.0
    oversubscribe: bool = False
    link_mib: int | None = None

    def __post_init__(self) -> None:
        allowed = {
            "executor": EXECUTORS, "transport": TRANSPORTS, "backend": BACKENDS, "ranks": RANKS, "weights": WEIGHTS,
        }  # fmt: skip
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                raise BadInput(f"update.{key}={getattr(self, key)} is not known; allowed are {', '.join(values)}.")
        if self.save not in SAVE:
            raise BadInput(f"update.save={self.save} is not known; allowed are null, shards.")
        if self.weights in FROM_FILES and not self.weights_path:
            raise BadInput(f"update.weights={self.weights} needs update.weights_path: the folder of the files.")
        if self.weights not in FROM_FILES and self.weights_path:
            raise BadInput(
                f"update.weights_path={self.weights_path} is not read with update.weights={self.weights}; it is with "
                f"{' or '.join(FROM_FILES)}."
            )
        if not 0 < self.timeout_seconds < MAX_TIMEOUT_SECONDS:
            raise BadInput(
                f"update.timeout_seconds={self.timeout_seconds} is not possible: it must be above 0 and below {MAX_TIMEOUT_SECONDS:g}."
            )
        if self.layers_per_step is not None and self.layers_per_step < 1:
            raise BadInput(f"update.layers_per_step={self.layers_per_step} is not possible: it must be at least 1.")
        if self.retries < 0:
            raise BadInput(f"update.retries={self.retries} must not be negative.")
        if not self.staging_mib > 0:
            raise BadInput(f"update.staging_mib={self.staging_mib} is not possible: it must be above 0.")
        if self.link_mib is not None and self.link_mib < 1:
            raise BadInput(f"update.link_mib={self.link_mib} is not possible: it must be at least 1.")


@dataclass
class UpdateStageConfig:
    update: UpdateOptions
    model: ModelSpec
    topology: Topology
    seed: int = 0

    def __post_init__(self) -> None:
        if self.update.weights in FROM_FILES and self.model.scale != 1:
            raise BadInput(
                f"update.weights={self.update.weights} needs model.scale=1, and it is {self.model.scale}: files hold "
                "whole experts."
            )

    @cached_property
    def weight_source(self) -> ExpertSource | None:
        """The files that the weights come from; None if they are generated. Raises `BadInput` if there are none."""
        if self.update.weights not in FROM_FILES or self.update.weights_path is None:
            return None
        return open_source(self.update.weights, Path(self.update.weights_path).expanduser(), self.model)

    def machine(self) -> machine.Machine:
        """What the ranks of this config run on. Raises `BadInput` if this machine cannot run them."""
        options = self.update
        return machine.find(
            options.backend, options.ranks, options.oversubscribe, self.topology.ranks, options.transport
        )

    def link_mib(self, backend: str) -> int:
        return self.update.link_mib or DEFAULT_LINK_MIB[backend]

    @property
    def origin(self) -> str:
        """The kind of weights (`update.weights`) that these were before any update saved them."""
        source = self.weight_source
        return source.index.origin if isinstance(source, ShardSource) else self.update.weights

    def check_weights(self, layers: int, experts: int) -> None:
        """Raise `BadInput` unless the files hold all of these experts, as the model has them."""
        if self.weight_source is not None:
            self.weight_source.check(layers, experts)

    @property
    def staging_layout(self) -> Layout:
        return Layout.of([spec.nbytes for spec in self.model.scaled_tensors()])

    def staging_budget(self, transport: str, most: int) -> Budget:
        """How the ranks use `update.staging_mib`, where none receives more than `most` experts."""
        return budget(self.staging_layout, self.update.staging_mib, packs=transport != "peer", most=most)

    def journal_folder(self, digest: str) -> Path | None:
        """Where the ranks keep the journals of the job `digest` with this config."""
        if self.update.journal is None:
            return None
        facts = [self.key_config(), digest]
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        return Path(self.update.journal).expanduser() / name

    def key_config(self) -> Mapping[str, object]:
        options, model = self.update, self.model
        names: dict[str, object] = {"top_k": model.top_k} if options.functional else {}
        if options.weights in FROM_FILES:  # where in the files a layer lies
            names |= {"first_moe_layer": model.first_moe_layer, "dense_layers": model.dense_layers}
        return {
            "update": {
                "executor": options.executor,
                "transport": options.transport,
                "staging_mib": options.staging_mib,
                "verify_before_commit": options.verify_before_commit,
                "layers_per_step": options.layers_per_step,
                "weights": options.weights,
                "save": options.save,
                "functional": options.functional,
                "oversubscribe": options.oversubscribe,
                "link_mib": self.link_mib(self.machine().backend),
            },
            "model": {"tensors": [[t.name, t.shape, t.dtype] for t in model.scaled_tensors()], **names},
            "topology": {"nodes": self.topology.nodes, "gpus_per_node": self.topology.gpus_per_node},
            "seed": self.seed,
        }

    def external_files(self) -> Mapping[str, Content]:
        return {} if self.weight_source is None else {"update.weights_path": self.weight_source}

    def environment(self) -> Mapping[str, object]:
        if self.model.layers is not None and self.model.experts is not None:
            self.check_weights(self.model.layers, self.model.experts)
        return self.machine().facts()
