"""Sparse updates: the frames, which entries are sent, and what is kept of the others."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import refold
from refold.consumers.detectors import Cohort, Ensemble
from refold.consumers.features import FeatureExtractor, Features
from refold.consumers.inspection import Inspector
from refold.schemas.canonical import decode, encode
from refold.schemas.chunks import SPARSE, open_chunks
from refold.schemas.codec import decode_integers, pack_frame
from refold.schemas.errors import InvalidRecord, UsageError
from refold.schemas.events import Genesis
from refold.schemas.layout import BLOCK, Integers, Layout
from refold.schemas.payload import CHUNK_BYTES, describe
from refold.schemas.plans import WHOLE_PPM, PlanPolicy, RoundPlan
from refold.schemas.topk import (
    Entries,
    decode_sparse,
    encode_sparse,
    most_bytes,
    most_entries,
)
from refold.schemas.updates import TRAIN, ClientUpdate, UpdateBody
from refold.state.delta import RANGE_BITS, decode_update
from refold.state.largest import REST_LIMIT, sparse_delta
from refold.state.model_state import ModelState, initial_state

ONE = Layout([1000], [32])


def entries(*pairs: tuple[int, int]) -> Entries:
    places, values = zip(*pairs, strict=True) if pairs else ((), ())
    return Entries(np.array(places, np.int64), np.array(values, np.int32))


def decoded(chunks: list[bytes], layout: Layout) -> list[Integers]:
    found: list[Integers] = [
        np.zeros(size, np.int32 if width == 32 else np.int64) for size, width in zip(layout.sizes, layout.widths, strict=True)
    ]
    for block, values in decode_sparse(chunks, layout):
        found[block.tensor][block.elements] = values
    return found


def reason_of(work: Callable[[], object]) -> str:
    with pytest.raises(InvalidRecord) as caught:
        work()
    return caught.value.reason


# Frames.


@pytest.mark.parametrize(
    ("pairs", "mask"),
    [
        ((), 0b0_0000_000),
        (((0, 5),), 0b0_0001_000),
        (((0, 5), (1, -128), (2, 127)), 0b0_0001_000),
        (((1, 5),), 0b0_0001_001),
        (((256, 5),), 0b0_0001_010),
        (((257, 5), (999, 256)), 0b0_0011_011),
        (((0, 256), (999, 2**16)), 0b0_0110_011),
        (((999, -(2**31)),), 0b0_1000_011),
    ],
)
def test_only_the_planes_that_are_needed_are_written(pairs: tuple[tuple[int, int], ...], mask: int) -> None:
    chunks = list(encode_sparse([entries(*pairs)], ONE))
    [[part]] = list(open_chunks(chunks, ONE, SPARSE))
    assert part.mask == mask
    dense = np.zeros(1000, np.int32)
    for place, value in pairs:
        dense[place] = value
    assert np.array_equal(decoded(chunks, ONE)[0], dense)


def test_a_gap_of_a_whole_block_needs_a_third_plane_and_no_escape() -> None:
    layout = Layout([2 * BLOCK], [32])
    sent = entries((BLOCK - 1, 7), (BLOCK, -7), (2 * BLOCK - 1, 1))
    chunks = list(encode_sparse([sent], layout))
    parts = [part for parts in open_chunks(chunks, layout, SPARSE) for part in parts]
    assert [part.mask & 0b111 for part in parts] == [0b111, 0b111]
    assert np.flatnonzero(decoded(chunks, layout)[0]).tolist() == sent.places.tolist()


def test_the_decoded_integers_do_not_depend_on_the_size_of_chunks(rng: np.random.Generator) -> None:
    layout = Layout([BLOCK + 500, 3], [32, 64])
    places = np.sort(rng.choice(BLOCK + 500, 900, replace=False))
    tensors = [Entries(places, rng.integers(1, 300, 900).astype(np.int32)), np.array([-7, 0, 2**40])]
    whole = decoded(list(encode_sparse(tensors, layout)), layout)
    assert np.array_equal(whole[0][places], tensors[0].values)
    assert whole[1].tolist() == [-7, 0, 2**40]
    for most in (1, 700):
        found = decoded(list(encode_sparse(tensors, layout, max_chunk_bytes=most)), layout)
        assert all(np.array_equal(left, right) for left, right in zip(found, whole, strict=True))


def test_the_worst_entries_fit_one_chunk_and_the_bound_of_the_payload(rng: np.random.Generator) -> None:
    layout = Layout([BLOCK], [32])
    for step in (1, 2, 3):
        places = np.arange(0, BLOCK, step)
        values = rng.integers(-(2**31), 2**31 - 1, len(places)).astype(np.int32)
        values[values == 0] = 1
        [chunk] = encode_sparse([Entries(places, values)], layout)
        assert len(chunk) <= min(CHUNK_BYTES, most_bytes(layout, len(places)))


def chunk_of(mask: int, *planes: bytes) -> bytes:
    frames = [pack_frame(plane) for plane in planes]
    head = struct.pack("<BBHIIB", 1, SPARSE, 0, 0, 1, mask) + b"".join(struct.pack("<I", len(frame)) for frame in frames)
    return head + bytes(-len(head) % 8) + b"".join(frames)


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (chunk_of(0b0_0001_001, b"\xff" * 4, b"\1" * 4), "layout"),
        (chunk_of(0b0_0001_110, b"\3" * 2, b"\xff" * 2, b"\1" * 2), "layout"),
        (chunk_of(0b0_0001_001, b"\1\1", b"\1\0"), "layout"),
        (chunk_of(0b0_0011_000, b"\1\1", b"\0\0"), "layout"),
        (chunk_of(0b0_0001_001, b"\0\0", b"\1\1"), "layout"),
        (chunk_of(0b0_0000_001, b"\1\1"), "layout"),
        (chunk_of(0b1_0001_000, b"\1", b"\1"), "layout"),
        (chunk_of(0b0_0001_001, b"\1\1\1", b"\1\1"), "lengths"),
        (chunk_of(0b0_0011_000, b"\1\1\1", b"\1\1"), "lengths"),
        (chunk_of(0b0_0001_000, b""), "lengths"),
        (chunk_of(0b0_0001_000, b"\1" * 1001), "lengths"),
        (chunk_of(0b0_0001_000, b"\1" * (1 << 24)), "lengths"),
        (chunk_of(0b0_0001_000, b"\1") + b"\0", "lengths"),
    ],
    ids=[
        "beyond the block",
        "far beyond the block",
        "a value of zero",
        "a plane of zeros among the values",
        "a plane of zeros among the gaps",
        "gaps without values",
        "a plane that has no meaning",
        "more gaps than values",
        "planes of unlike length",
        "no entry",
        "more entries than elements",
        "a bomb",
        "a byte at the end",
    ],
)
def test_a_block_that_has_another_form_is_refused(chunk: bytes, reason: str) -> None:
    assert reason_of(lambda: list(decode_sparse([chunk], ONE))) == reason


def test_forms_are_not_taken_for_each_other() -> None:
    chunks = list(encode_sparse([entries((3, 1))], ONE))
    assert reason_of(lambda: list(decode_integers(chunks, ONE))) == "layout"


def test_the_share_of_entries_is_rounded_up_and_at_least_one() -> None:
    assert [most_entries(n, 10_000) for n in (0, 1, 99, 100, 101, 10**8)] == [0, 1, 1, 1, 2, 10**6]
    assert most_entries(1000, WHOLE_PPM) == 1000


# Which entries are sent.


def state_of(**arrays: npt.NDArray[Any]) -> ModelState:
    return initial_state(arrays)


def dense_of(tensors: list[Any], sizes: list[int]) -> list[Integers]:
    found = []
    for tensor, size in zip(tensors, sizes, strict=True):
        dense = np.zeros(size, np.int32)
        dense[tensor.places] = tensor.values
        found.append(dense)
    return found


def rests(rng: np.random.Generator, state: ModelState) -> list[npt.NDArray[np.int32]]:
    return [rng.integers(-3000, 3000, t.size if t.is_float else 0).astype(np.int32) for t in state.schema.tensors]


@pytest.mark.parametrize("with_rest", [False, True])
def test_what_is_sent_and_what_is_left_are_exactly_what_was_wanted(rng: np.random.Generator, with_rest: bool) -> None:
    base = state_of(w=rng.normal(0, 1, (300, 70)).astype("f4"), n=np.array([3, 4]), b=rng.normal(0, 0.01, 40).astype("f4"))
    local = base.numpy()
    local["w"] += rng.standard_t(2, (300, 70)).astype("f4") * np.float32(1e-3)
    local["b"] += rng.normal(0, 1e-3, 40).astype("f4")
    local["n"] += 1
    rest = rests(rng, base) if with_rest else None
    before = [r.copy() for r in rest] if rest else [np.zeros(1, np.int32)] * 3
    whole = sparse_delta(base, local, rest=None, density_ppm=WHOLE_PPM, divisor=1 << 16)
    change = [dense << k for dense, k in zip(dense_of([whole.tensors[0], whole.tensors[2]], [21000, 40]), (0, 0), strict=True)]
    found = sparse_delta(base, local, rest=rest, density_ppm=10_000)
    sent = dense_of([found.tensors[0], found.tensors[2]], [21000, 40])
    for index, tensor in enumerate((0, 2)):
        assert np.array_equal((sent[index] << found.exponents[tensor]) + found.unsent[tensor], change[index])
    assert np.array_equal(found.tensors[1], [1, 1]) or np.array_equal(found.tensors[1], [4, 5])
    assert 190 <= sum(int(np.count_nonzero(dense)) for dense in sent) <= most_entries(21040, 10_000) == 211
    wanted = [c + (b if with_rest else 0) for c, b in zip(change, (before[0], before[2]), strict=True)]
    magnitudes = np.concatenate(
        [np.abs(w) * 2.0 ** -base.schema.tensors[t].exponent for w, t in zip(wanted, (0, 2), strict=True)]
    )
    taken = np.concatenate(sent) != 0
    assert magnitudes[taken].min() >= np.sort(magnitudes)[-211]


def test_of_equal_entries_the_first_are_sent() -> None:
    base = state_of(a=np.zeros(30, "f4"), b=np.zeros(70, "f4"))
    local = {"a": np.full(30, 0.5, "f4"), "b": np.full(70, -0.5, "f4")}
    local["b"][40] = 0.75
    found = sparse_delta(base, local, rest=None, density_ppm=320_000)
    assert found.tensors[0].places.tolist() == list(range(30))  # type: ignore[union-attr]
    assert found.tensors[1].places.tolist() == [0, 40]  # type: ignore[union-attr]


def test_entries_of_zero_are_never_sent() -> None:
    base = state_of(a=np.zeros(100, "f4"))
    local = {"a": np.zeros(100, "f4")}
    assert len(sparse_delta(base, local, rest=None, density_ppm=100_000).tensors[0].places) == 0  # type: ignore[union-attr]
    local["a"][7] = 1.0
    assert sparse_delta(base, local, rest=None, density_ppm=100_000).tensors[0].places.tolist() == [7]  # type: ignore[union-attr]


def test_tensors_are_compared_by_what_changes_in_the_parameters_not_by_their_lattices() -> None:
    base = state_of(coarse=np.full(50, 1000.0, "f4"), fine=np.full(50, 0.001, "f4"))
    assert base.schema.tensors[0].exponent < base.schema.tensors[1].exponent
    local = base.numpy()
    local["coarse"][3] += 1.0
    local["fine"] += np.float32(0.01)
    found = sparse_delta(base, local, rest=None, density_ppm=10_000)
    assert [len(tensor.places) for tensor in found.tensors] == [1, 0]  # type: ignore[union-attr]


def test_a_rest_at_its_limit_is_sent_as_far_as_an_update_may_ask_and_the_update_is_sound() -> None:
    base = state_of(a=np.ones(100, "f4"))
    local = base.numpy()
    local["a"][5] += np.float32(2.0)
    rest = [np.zeros(100, np.int32)]
    rest[0][5], rest[0][6] = REST_LIMIT, -REST_LIMIT
    found = sparse_delta(base, local, rest=rest, density_ppm=20_000)
    for block, integers in decode_update(
        "topk", found.exponents, encode_sparse(found.tensors, Layout.of(base.schema)), base.schema
    ):
        assert np.flatnonzero(integers).tolist() == [5, 6]
        assert np.abs(integers).max() == (1 << (RANGE_BITS - found.exponents[0])) - 1
        assert block.count == 100


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "not-finite"), (np.inf, "not-finite"), (1e6, "out-of-range")])
def test_what_no_update_may_ask_for_is_refused_at_the_client(value: float, reason: str) -> None:
    base = state_of(a=np.ones(100, "f4"))
    local = base.numpy()
    local["a"][5] = value
    assert reason_of(lambda: sparse_delta(base, local, rest=None, density_ppm=10_000)) == reason


# The plan.


def test_a_plan_says_the_density_and_the_round_repeats_it() -> None:
    assert refold.Plan(codec="topk").policy().density_ppm == 10_000
    assert refold.Plan(codec="topk", density=0.001).policy().density_ppm == 1000
    assert refold.Plan().policy().density_ppm == WHOLE_PPM


@pytest.mark.parametrize("said", [{"density": 0.1}, *({"codec": "topk", "density": d} for d in (0.0, -0.1, 0.5, float("nan")))])
def test_a_density_that_means_nothing_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="density"):
        refold.Plan(**said).policy()


def test_plans_from_before_there_was_a_density_carry_everything() -> None:
    folder = Path(__file__).parent / "golden"
    policy = decode(bytes.fromhex((folder / "PlanPolicy.v1.hex").read_text()), PlanPolicy)
    plan = decode(bytes.fromhex((folder / "RoundPlan.v1.hex").read_text()), RoundPlan)
    genesis = decode(bytes.fromhex((folder / "Genesis.v1.hex").read_text()), Genesis)
    assert {policy.density_ppm, plan.density_ppm, genesis.policy.density_ppm, genesis.first_plan.density_ppm} == {WHOLE_PPM}
    assert decode(encode(genesis)) == genesis


# What consistency says.


@pytest.fixture
def genesis(tmp_path: Path) -> Genesis:
    plan = refold.Plan(codec="topk", density=0.05)
    initial = {"w": np.zeros((40, 50), "f4"), "n": np.array(0)}
    with refold.create("memory:?federation=toy", initial, plan=plan, keys=tmp_path) as federation:
        return federation.genesis


def body_of(genesis: Genesis, chunks: list[bytes], codec: str = "topk") -> UpdateBody:
    golden = Path(__file__).parent / "golden" / "ClientUpdate.v1.hex"
    body = decode(bytes.fromhex(golden.read_text()), ClientUpdate).body
    schema = genesis.schema
    return replace(
        body,
        federation=genesis.federation,
        kind=TRAIN,
        schema_digest=schema.digest,
        codec=codec,
        exponents=(0, 0),
        num_examples=5,
        payload=describe(chunks),
        raw_bytes=Layout.of(schema).size_bytes,
    )


def sparse_chunks(genesis: Genesis, count: int) -> list[bytes]:
    sent = Entries(np.arange(count) * 2, np.full(count, 9, np.int32))
    return list(encode_sparse([sent, np.array([1])], Layout.of(genesis.schema)))


def test_as_many_entries_as_the_plan_asks_for_are_taken_and_one_more_is_refused(genesis: Genesis) -> None:
    inspector = Inspector.of(genesis, bytes(32))
    for count in (1, 100):
        chunks = sparse_chunks(genesis, count)
        body = body_of(genesis, chunks)
        inspector.check_claims(body)
        assert inspector.examine(body, chunks).facts[0, 4] == 2000 - count
    chunks = sparse_chunks(genesis, 101)
    assert reason_of(lambda: inspector.examine(body_of(genesis, chunks), chunks)) == "codec"


@pytest.mark.parametrize("codec", ["grid", "exact", "float32"])
def test_whole_deltas_and_sparse_ones_do_not_mix(genesis: Genesis, codec: str) -> None:
    chunks = sparse_chunks(genesis, 3)
    sparse = Inspector.of(genesis, bytes(32))
    assert reason_of(lambda: sparse.check_claims(body_of(genesis, chunks, codec))) == "codec"
    dense = Inspector.of(replace(genesis, policy=replace(genesis.policy, codec=codec)), bytes(32))
    assert reason_of(lambda: dense.check_claims(body_of(genesis, chunks))) == "codec"
    dense.check_claims(body_of(genesis, chunks, codec))


def test_a_payload_longer_than_so_many_entries_can_be_is_refused_before_it_is_read(genesis: Genesis) -> None:
    inspector = Inspector.of(genesis, bytes(32))
    most = most_bytes(Layout.of(genesis.schema), 100)
    inspector.check_claims(body_of(genesis, [bytes(most)]))
    assert reason_of(lambda: inspector.check_claims(body_of(genesis, [bytes(most + 1)]))) == "lengths"


# What detection says.


def features_of(dense: npt.NDArray[np.int32], state: ModelState) -> Features:
    features = FeatureExtractor(state.schema, bytes(32)).start()
    for block in Layout.of(state.schema):
        features.add(block, dense[block.elements], 2.0**-22)
    return features.finish()


def test_an_honest_sparse_update_is_not_refused_for_an_entry_more_than_the_others(rng: np.random.Generator) -> None:
    """A share of exactly 1 % puts the 99 % quantile where zeros end: one entry more is worth thirty powers of two there."""
    state = state_of(w=np.zeros(20_000, "f4"))
    cohort = []
    for client in range(10):
        dense = np.zeros(20_000, np.int32)
        count = 200 if client == 3 else 199
        places = rng.choice(20_000, count, replace=False)
        dense[places] = rng.choice([-1, 1], count) * rng.integers(20_000, 40_000, count)
        cohort.append(features_of(dense, state))
    opinions = Ensemble().judge(Cohort(1, tuple(f"c{i}" for i in range(10)), tuple(cohort), {}))
    assert [opinion.reasons for opinion in opinions] == [()] * 10


def test_a_sparse_update_of_the_usual_length_in_a_few_huge_entries_is_refused(rng: np.random.Generator) -> None:
    state = state_of(w=np.zeros(20_000, "f4"))
    cohort = []
    for client in range(10):
        dense = np.zeros(20_000, np.int32)
        places = rng.choice(20_000, 200, replace=False)
        dense[places] = rng.choice([-1, 1], 200) * rng.integers(20_000, 40_000, 200)
        if client == 3:
            dense[places[:3]] = 300_000
            dense[places[3:]] = 10
        cohort.append(features_of(dense, state))
    opinions = Ensemble().judge(Cohort(1, tuple(f"c{i}" for i in range(10)), tuple(cohort), {}))
    assert [bool(opinion.reasons) for opinion in opinions] == [client == 3 for client in range(10)]
