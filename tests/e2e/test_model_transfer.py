"""A worker with an empty store fetches the model from peers and serves it."""

import hashlib
import pathlib
import tempfile

import client
from grid import MODEL, Grid, model_file, run, wait_until

NO_OTHER_SOURCE = {"OPENGRID_MODELS_SOURCES": "peers"}


def test_model_is_fetched_from_peers():
    with Grid() as grid, tempfile.TemporaryDirectory(prefix="opengrid-empty-") as empty:
        gateway = grid.add("gateway")
        grid.add("worker-1", serve=MODEL, join=gateway)
        grid.wait_for_workers(1)
        fetching = grid.add("worker-2", serve=MODEL, join=gateway, models_dir=empty, env=NO_OTHER_SOURCE)
        grid.wait_for_workers(2, timeout_s=60)
        (file,) = blobs(empty)
        assert sha256(file) == sha256(model_file())
        grid.nodes[1].kill()
        answered = ask(gateway)
        assert answered.complete and "Paris" in answered.text
        assert answered.headers["x-opengrid-worker"] == fetching.peer_id


def test_a_gateway_with_an_empty_store_gets_the_vocabulary_alone():
    with Grid() as grid, tempfile.TemporaryDirectory(prefix="opengrid-empty-") as empty:
        worker = grid.add("worker", serve=MODEL)
        gateway = grid.add("gateway", join=worker, models_dir=empty, env=NO_OTHER_SOURCE)
        grid.wait_for_workers(1, at=gateway)
        answered = ask(gateway)
        assert answered.complete and "Paris" in answered.text
        assert blobs(empty) == [], "the gateway did not fetch the weights"


def test_pull_through_a_running_node_asks_its_peers():
    with Grid() as grid, tempfile.TemporaryDirectory(prefix="opengrid-empty-") as empty:
        # Has the file and serves nothing.
        holder = grid.add("holder")
        node = grid.add("node", join=holder, models_dir=empty, env=NO_OTHER_SOURCE)
        wait_until("they are connected", lambda: holder.peer_id in node.connected(), 10)
        pulled = run("pull", MODEL, "--home", str(node.home), "--json", env=node.env)
        assert pulled.returncode == 0, pulled.stderr
        assert "from peers" in pulled.stderr
        (file,) = blobs(empty)
        assert sha256(file) == sha256(model_file())
        again = run("pull", MODEL, "--home", str(node.home), env=node.env)
        assert again.returncode == 0 and "already" in again.stdout, again.stderr


def ask(node):
    question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    body = {"model": MODEL, "messages": question, "temperature": 0, "max_tokens": 40}
    return client.stream(node.url, "/v1/chat/completions", body)


def blobs(store):
    return [path for path in pathlib.Path(store).rglob("*") if path.is_file() and path.stat().st_size > 50_000_000]


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
