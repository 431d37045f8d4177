"""How MLflow's UI shows the experiment: the columns of its runs table, and a note that says how to read it.

The UI keeps views that people share as tags of the experiment, under a key that the address names.
"""

from __future__ import annotations

import json

from pipeline.store import NOTE, TAG, Store
from pipeline.story import MODE

KEY = "moesaic"
VIEW_TAG = f"mlflow.sharedViewState.{KEY}"
COLUMNS = (
    f"tags.`{TAG}outcome`",
    "attributes.`Dataset`",
    "metrics.`place.balancedness_before`",
    "metrics.`place.balancedness`",
    "metrics.`place.moved_slots`",
    "metrics.`plan.cross_node_bytes`",
    "metrics.`update.update_seconds`",
    "metrics.`verify.mismatches`",
)
ABOUT = """\
Runs of **moesaic**, which moves the experts of Mixture-of-Experts models to the GPUs where they are needed.

A run has a nested run for each stage that it did not take from an earlier one. Its description says what came out, from
which data, config, code and machine, and which run made the result of each stage; `report.html` among its artifacts has
the pictures. A sweep's description compares its points. `moesaic audit RUN` tells whether a run is still what it was,
`moesaic compare A B` how two differ.
"""


def set_view(store: Store) -> None:
    """Give the experiment its note, unless someone wrote one, and its view."""
    tags = store.client.get_experiment(store.experiment_id).tags
    view = json.dumps({"selectedColumns": COLUMNS, "columnWidths": {"runName": 320}, "runsExpanded": {}})
    for name, text in {NOTE: tags.get(NOTE) or ABOUT, VIEW_TAG: view}.items():
        if tags.get(name) != text:
            store.client.set_experiment_tag(store.experiment_id, name, text)


def page(store: Store, address: str) -> str:
    """The runs table in the UI that is served at `address`."""
    return f"{address}/#/experiments/{store.experiment_id}/runs?{MODE}&viewStateShareKey={KEY}"
