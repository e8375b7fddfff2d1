"""docs/WIRE.md says what the code does, and its golden vectors hold for Refold and for a client that has only the page."""

import ast
import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# Neither the tools nor the foreign client are part of the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import wire_tables
import wire_vectors
from foreign import arrays, records
from foreign.checkpoints import Checkpoints, extends
from foreign.log import Chain as ForeignChain
from foreign.log import draw
from wire_values import formula

from refold.schemas import merkle
from refold.schemas.canonical import decode
from refold.schemas.codec import decode_floats, decode_integers, decode_raw
from refold.schemas.commits import Chain
from refold.schemas.errors import InvalidRecord
from refold.schemas.layout import Layout
from refold.schemas.proofs import proof_from_json, require_proof
from refold.schemas.reasons import REASONS
from refold.schemas.topk import decode_sparse
from refold.schemas.updates import ClientUpdate

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "vectors"
NEVER_WRITTEN = {
    "refold 2026 record content",  # bus/comparing.py compares two copies by it, in memory
    "refold 2026 packed tree",  # producers/trees.py: a client compares it with its own alone
    "refold 2026 client noise",  # producers/noise.py draws from it
}
STALE = "run tools/wire_tables.py and tools/wire_vectors.py, and see whether the change of the wire format was meant"


def vectors(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def value_of(said: Any) -> Any:
    """Return what a vector's JSON stands for."""
    if isinstance(said, list):
        return [value_of(item) for item in said]
    if not isinstance(said, dict):
        return said
    if len(said) == 1:
        ((form, inner),) = said.items()
        if form in ("hex", "int", "float"):
            return {"hex": bytes.fromhex, "int": int, "float": float}[form](inner)
    return {name: value_of(item) for name, item in said.items()}


def array_of(said: Any, size: int) -> Any:
    """Return the array that a vector describes."""
    if "formula" in said:
        array = formula(size, **said["formula"])
        return (array / said["over"]).astype("f4") if "over" in said else array.astype(said["dtype"])
    if "places" in said:
        array = np.zeros(size, said["dtype"])
        array[said["places"]] = said["values"]
        return array
    return np.array(value_of(said["values"]), said["dtype"])


def floats_of(text: str) -> Any:
    return np.frombuffer(bytes.fromhex(text), "<f4")


# The page.


def test_the_pages_tables_are_as_the_code_has_them() -> None:
    page = wire_tables.PAGE.read_text()
    assert page == wire_tables.renewed(page), STALE


def test_every_reason_code_is_explained_and_no_other() -> None:
    assert wire_tables.MEANINGS.keys() == REASONS.keys()


def test_every_link_within_the_page_leads_somewhere() -> None:
    page = wire_tables.PAGE.read_text()
    heads = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in page.splitlines() if line[:1] == "#"
    }
    assert {link for link in re.findall(r"\]\(#([^)]+)\)", page) if link not in heads} == set()


def test_every_digest_context_of_the_code_is_on_the_page() -> None:
    page = wire_tables.PAGE.read_text()
    rooms = ("schemas", "state", "bus", "producers", "consumers", "refold")
    sources = [path.read_text() for room in rooms for path in (ROOT / room).glob("*.py")]
    said = {context for text in sources for context in re.findall(r'"(refold 2026 [a-z ]+)', text)} - NEVER_WRITTEN
    assert len(said) > 10
    assert {context for context in said if context not in page} == set()


def test_the_foreign_client_knows_nothing_of_refold_but_the_bus() -> None:
    for path in (ROOT / "tests" / "foreign").glob("*.py"):
        tree = ast.parse(path.read_text())
        named = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        named += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert [name for name in named if name.split(".")[0] == "refold" and name != "refold.bus"] == [], path


# The vectors and Refold.


@pytest.mark.parametrize("name", wire_vectors.EXACT)
def test_refold_makes_the_golden_vectors_today(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == wire_vectors.text_of(wire_vectors.EXACT[name]()), STALE


@pytest.mark.parametrize("case", vectors("refused"), ids=lambda case: case["why"])
def test_both_refuse_what_is_no_canonical_record_and_for_the_same_reason(case: Any) -> None:
    with pytest.raises(InvalidRecord) as ours:
        decode(bytes.fromhex(case["hex"]))
    with pytest.raises(records.RefusedError) as theirs:
        records.decode(bytes.fromhex(case["hex"]))
    assert (ours.value.reason, theirs.value.reason) == (case["reason"], case["reason"])


@pytest.mark.parametrize("case", vectors("chunks")["cases"], ids=lambda case: case["why"])
def test_both_read_the_golden_chunks(case: Any) -> None:
    schema = value_of(vectors("chunks")["schemas"][case["schema"]])
    chunks = [bytes.fromhex(chunk) for chunk in case["chunks"]]
    expected = [array_of(said, arrays.size(t)) for said, t in zip(case["arrays"], schema["tensors"], strict=True)]
    theirs = {1: arrays.integers, 2: arrays.floats, 3: arrays.raw, 4: arrays.sparse}[case["form"]](chunks, schema)
    assert [array.tolist() for array in theirs] == [array.tolist() for array in expected]
    read = {1: decode_integers, 2: decode_floats, 3: decode_raw, 4: decode_sparse}[case["form"]]
    model = wire_vectors.SMALL if case["schema"] == "small" else wire_vectors.LARGE
    for block, found in read(chunks, Layout.of(model)):
        assert found.tolist() == expected[block.tensor][block.elements].tolist()


def test_both_take_and_skip_the_same_records_of_a_log() -> None:
    golden = vectors("chain")
    ours, theirs, events = Chain.of(golden["topic"]), ForeignChain(golden["topic"]), []
    assert ours.head.hex() == theirs.head.hex() == golden["root"]
    for record in golden["records"]:
        value, kind = bytes.fromhex(record["hex"]), record["ce_type"]
        told = theirs.offer(value, kind.encode())
        if kind == "refold.Commit":
            assert (ours.offer(value) is not None) is record["taken"], record["why"]
        assert (told is not None) is record["taken"], record["why"]
        assert ours.head.hex() == theirs.head.hex() == record["head"]
        assert ours.next_index == theirs.next_index == record["next_index"]
        events += told or []
    assert events == [records.decode(bytes.fromhex(event)) for event in golden["events"]]
    assert sum(record["taken"] for record in golden["records"]) == 3


def test_refold_reads_the_golden_updates_and_their_signatures() -> None:
    for golden in vectors("update")["updates"]:
        update = decode(bytes.fromhex(golden["manifest"]), ClientUpdate)
        assert update.digest.hex() == golden["digest"]
        assert wire_vectors.KEY.sign(wire_vectors.UPDATE_TAG, update.digest) == update.signature


# The vectors and a client that has only the page.


@pytest.mark.parametrize("case", vectors("records"), ids=lambda case: f"{case['name']} {case['version']}")
def test_the_foreign_client_reads_every_record_and_writes_the_newest_version(case: Any) -> None:
    data = bytes.fromhex(case["hex"])
    assert records.decode(data) == (case["name"], value_of(case["value"]))
    assert (records.encode(case["name"], value_of(case["value"])) == data) is case["newest"]


def test_the_foreign_client_gets_the_golden_digests() -> None:
    golden = vectors("digests")
    assert [records.plain(bytes.fromhex(c["chunk"])).hex() for c in golden["chunks"]] == [c["digest"] for c in golden["chunks"]]
    parts = [bytes.fromhex(chunk["chunk"]) for chunk in golden["chunks"]]
    assert records.payload_root([records.plain(p) for p in parts], [len(p) for p in parts]).hex() == golden["payload_root"]
    assert records.payload_root([], []).hex() == golden["payload_root_of_nothing"]
    assert records.key_id(bytes.fromhex(golden["key"]["public"])).hex() == golden["key"]["key_id"]
    for schema in golden["schemas"]:
        assert records.encode("ModelSchema", value_of(schema["value"])).hex() == schema["hex"]
        assert records.schema_digest(value_of(schema["value"])).hex() == schema["digest"]
    assert {topic: records.log_root(topic).hex() for topic in golden["log_roots"]} == golden["log_roots"]
    assert records.derived("server secret", bytes.fromhex(golden["secret"]["secret"])).hex() == golden["secret"]["digest"]


def test_the_foreign_client_chooses_the_golden_partitions() -> None:
    for said in vectors("digests")["partitions"]:
        key = bytes.fromhex(said["key"])
        assert (records.partition_of(key, 4), records.partition_of(key, 7)) == (said["of_4"], said["of_7"]), said["text"]


def test_the_foreign_client_signs_as_the_golden_key_did() -> None:
    golden = vectors("digests")
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(golden["key"]["private"]))
    assert key.public_key().public_bytes_raw().hex() == golden["key"]["public"]
    command = golden["command"]
    digest = records.command_digest(command["federation"], *(bytes.fromhex(command[name]) for name in ("command_id", "body")))
    assert digest.hex() == command["digest"]
    message = b"refold 2026 command\0" + digest
    assert (message.hex(), key.sign(message).hex()) == (command["message"], command["signature"])
    for update in vectors("update")["updates"]:
        body = value_of(update["body"])
        assert records.encode("UpdateBody", body).hex() == update["body_record"]
        assert records.update_digest(body).hex() == update["digest"]
        assert records.signed_update(body, key).hex() == update["manifest"]


def test_the_foreign_client_draws_as_the_golden_plans_do() -> None:
    for said in vectors("plans"):
        plan = {"seed": bytes.fromhex(said["seed"]), "round": said["round"]}
        for client in said["draws"]:
            assert str(draw(client["client"], plan)) == client["draw"]
            assert (int(client["draw"]) < int(said["select_below"])) is client["selected"]
    assert {client["selected"] for said in vectors("plans") for client in said["draws"]} == {True, False}


def test_the_foreign_client_converts_as_the_golden_lattices_do() -> None:
    golden = vectors("lattice")
    for case in golden["to_float"]:
        tensor = {"dtype": "float32", "exponent": case["exponent"]}
        assert arrays.value_of(np.array(case["integers"], "i4"), tensor).tobytes().hex() == case["floats"]
    for case in golden["to_lattice"]:
        scaled = np.rint(floats_of(case["floats"]).astype("f8") * 2.0 ** case["exponent"])
        assert scaled.astype("i4").tolist() == case["integers"]
    for case in golden["changes"]:
        tensor = {"dtype": "float32", "exponent": case["exponent"]}
        q = arrays.grid(floats_of(case["local"]), np.array(case["held"], "i4"), tensor, case["k"])
        assert q.tolist() == case["q"]
    for case in golden["float32_changes"]:
        zero = np.zeros(len(case["q"]), "i4")
        tensor = {"dtype": "float32", "exponent": case["exponent"]}
        assert arrays.grid(floats_of(case["floats"]), zero, tensor, 0).tolist() == case["q"]


def test_the_foreign_client_folds_the_golden_step_to_the_golden_digests() -> None:
    golden = vectors("fold")
    schema = value_of(golden["schema"])
    held = [array_of(said, 0) for said in golden["before"]["arrays"]]
    assert arrays.parameters_digest(schema, held).hex() == golden["before"]["parameters_digest"]
    assert arrays.state_digest(schema, held, []).hex() == golden["before"]["state_digest"]
    step = arrays.integers([bytes.fromhex(chunk) for chunk in golden["step"]["chunks"]], schema)
    arrays.add_step(held, step, golden["step"]["exponents"])
    assert [array.tolist() for array in held] == [array_of(said, 0).tolist() for said in golden["after"]["arrays"]]
    assert arrays.parameters_digest(schema, held).hex() == golden["after"]["parameters_digest"]
    slots = [
        (name, golden["slots"]["exponents"][name], [array_of(said, 0) for said in each])
        for name, each in golden["slots"]["arrays"].items()
    ]
    assert arrays.state_digest(schema, held, slots).hex() == golden["slots"]["state_digest"]


@pytest.mark.parametrize(
    ("form", "read"),
    [(arrays.PLANES, decode_integers), (arrays.FLOATS, decode_floats), (arrays.SPARSE, decode_sparse)],
    ids=["planes", "floats", "sparse"],
)
def test_the_foreign_client_packs_chunks_that_refold_reads(form: int, read: Any) -> None:
    schema = value_of(vectors("chunks")["schemas"]["large"])
    large = formula(arrays.size(schema["tensors"][0]), times=7, mod=251, minus=125, shift=6)
    given = [large.astype("f4" if form == arrays.FLOATS else "i4"), np.array([2**40, -1, 0], "i8")]
    chunks = arrays.encoded(given, schema, form, most_bytes=64)
    assert len(chunks) == 3
    assert struct.unpack_from("<II", chunks[1], 4) == (1, 1)
    for block, found in read(chunks, Layout.of(wire_vectors.LARGE)):
        assert found.tolist() == given[block.tensor][block.elements].tolist()


def test_the_golden_proofs_hold_and_are_the_ones_that_refold_makes() -> None:
    said = vectors("checkpoints")
    for kind in ("inclusion", "consistency"):
        for value in said[kind]:
            require_proof(proof_from_json(value), log_keys=[wire_vectors.KEY.public])
    every = [merkle.leaf_hash(bytes.fromhex(data)) for data in said["events"]]
    assert [leaf.hex() for leaf in every] == said["leaves"]
    assert {size: merkle.root_of(every[: int(size)]).hex() for size in said["roots"]} == said["roots"]


def test_the_foreign_client_believes_the_golden_checkpoints_and_no_others() -> None:
    every = [records.decode(bytes.fromhex(one["record"]))[1] for one in vectors("checkpoints")["checkpoints"]]
    for value in vectors("checkpoints")["consistency"]:
        old, new = every[value["old"]["events"] - 1], every[value["new"]["events"] - 1]
        path = [bytes.fromhex(node) for node in value["path"]]
        assert extends(old, new, path)
        assert not extends(old, new, [*path, bytes(32)])
        assert not extends(old, {**new, "root": bytes(32)}, path)
        assert not path or not extends({**old, "root": bytes(32)}, new, path)


def test_the_foreign_client_checks_what_a_commit_of_rounds_signs() -> None:
    first, second = vectors("checkpoints")["checkpoints"][2], vectors("checkpoints")["checkpoints"][6]
    path = next(v["path"] for v in vectors("checkpoints")["consistency"] if v["old"]["events"] == 3)
    reader = Checkpoints("toy", [wire_vectors.KEY.public])
    reader.take(*_carried(first, 0, []))
    with pytest.raises(records.RefusedError):
        reader.take(*_carried(second, 3, []))
    commit, event = _carried(second, 3, path)
    with pytest.raises(records.RefusedError):
        reader.take({**commit, "first_index": 1}, event)
    with pytest.raises(records.RefusedError):
        reader.take(commit, {**event, "signed": {**event["signed"], "signature": bytes(64)}})
    reader.take(commit, event)


def _carried(one: Any, previous_events: int, path: list[str]) -> tuple[Any, Any]:
    """Return a commit of `rounds` and the checkpoint in it, as the foreign client reads them."""
    said = records.decode(bytes.fromhex(one["record"]))[1]
    position = {"accepted_index": said["events"], "accepted_hash": said["head"]}
    commit = {"position": position, "first_index": said["rounds_index"], "previous": said["rounds_head"]}
    signed = {
        "checkpoint": said,
        "key_id": wire_vectors.KEY.key_id,
        "signature": bytes.fromhex(one["kept"]["signature"]),
    }
    proof = [bytes.fromhex(node) for node in path]
    return commit, {"signed": signed, "previous_events": previous_events, "consistency": proof}
