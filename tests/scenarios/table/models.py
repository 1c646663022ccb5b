"""`/v1/models` and `/health`."""

from grid import MODEL
from scenario import Scenario
from table.reasons import client_fault

OURS = "ours: what the file is, and how long a prompt and its answer may be"
THEIRS = "llama-server's own"
LIST = {"-models": THEIRS, "-data[].aliases": THEIRS, "-data[].meta": THEIRS, "-data[].tags": THEIRS,
        "+data[].max_model_len": OURS, "+data[].root": OURS,
        "+data[].task": "ours: whether it writes or embeds"}

ROWS = [
    Scenario("models: list", "/v1/models", method="GET", differs=LIST),
    Scenario("models: one", f"/v1/models/{MODEL}", method="GET",
             differs={"status: 200 != 404": "llama-server has no such path"}),
    Scenario("models: an unknown one", "/v1/models/gpt-nonexistent", method="GET", differs=client_fault(404, 404)),
    Scenario("health", "/health", method="GET"),
]
