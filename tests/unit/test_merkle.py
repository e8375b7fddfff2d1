"""Merkle trees: Certificate Transparency's known answers, every proof of small trees, and what must not pass."""

import hashlib
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refold.schemas.merkle import (
    EMPTY,
    Gatherer,
    Span,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

# The tree that Certificate Transparency's implementations are tested with: eight leaves and the roots of their first n.
INPUTS = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
INPUTS.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSIONS = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCIES = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
MOST = 40


def naive_root(leaves: Sequence[bytes]) -> bytes:
    """The definition, word for word: D[n] split at the largest power of two below n."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return hashlib.sha256(b"\1" + naive_root(leaves[:middle]) + naive_root(leaves[middle:])).digest()


def data(count: int) -> list[bytes]:
    return [b"event %d" % number for number in range(count)]


def inclusion(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    return gathered(leaves, inclusion_ranges(index, len(leaves)))


def consistency(leaves: Sequence[bytes], old: int) -> tuple[bytes, ...]:
    return gathered(leaves, consistency_ranges(old, len(leaves)))


def gathered(leaves: Sequence[bytes], ranges: list[tuple[int, int]]) -> tuple[bytes, ...]:
    found = Gatherer(ranges)
    for leaf in leaves:
        found.add(leaf_hash(leaf))
    return found.hashes()


def flips(value: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(value)):
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    assert root_of(map(leaf_hash, INPUTS[:size])).hex() == ROOTS[size]
    assert naive_root(INPUTS[:size]).hex() == ROOTS[size]


@pytest.mark.parametrize("place", INCLUSIONS, ids=str)
def test_inclusion_proofs_are_those_of_certificate_transparency(place: tuple[int, int]) -> None:
    index, size = place
    path = inclusion(INPUTS[:size], index)
    assert [node.hex() for node in path] == INCLUSIONS[place]
    assert verify_inclusion(leaf_hash(INPUTS[index]), index, size, path, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize("sizes", CONSISTENCIES, ids=str)
def test_consistency_proofs_are_those_of_certificate_transparency(sizes: tuple[int, int]) -> None:
    old, new = sizes
    path = consistency(INPUTS[:new], old)
    assert [node.hex() for node in path] == CONSISTENCIES[sizes]
    assert verify_consistency(old, new, bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[new]), path)


def test_every_leaf_of_every_small_tree_is_proven_at_its_own_place_and_no_other() -> None:
    for size in range(1, MOST):
        leaves = data(size)
        root = naive_root(leaves)
        for index in range(size):
            path = inclusion(leaves, index)
            proven = [at for at in range(size + 2) if verify_inclusion(leaf_hash(leaves[index]), at, size, path, root)]
            assert proven == [index]


def test_every_small_tree_is_proven_to_extend_every_smaller_one_and_no_other_size() -> None:
    for new in range(1, MOST):
        leaves = data(new)
        root = naive_root(leaves)
        for old in range(1, new + 1):
            path = consistency(leaves, old)
            before = naive_root(leaves[:old])
            assert verify_consistency(old, new, before, root, path)
            wrong = [at for at in range(1, new + 1) if at != old and verify_consistency(at, new, before, root, path)]
            assert not wrong


def test_a_root_of_another_log_is_never_extended() -> None:
    for new in range(2, MOST):
        for old in range(1, new):
            leaves = data(new)
            other = [*leaves]
            other[old - 1] = b"rewritten"
            path = consistency(other, old)
            assert not verify_consistency(old, new, naive_root(leaves[:old]), naive_root(other), path)


def test_a_flipped_bit_anywhere_in_an_inclusion_proof_is_refused() -> None:
    leaves = data(13)
    leaf, root, path = leaf_hash(leaves[6]), naive_root(leaves), inclusion(leaves, 6)
    assert verify_inclusion(leaf, 6, 13, path, root)
    assert not any(verify_inclusion(bad, 6, 13, path, root) for bad in flips(leaf))
    assert not any(verify_inclusion(leaf, 6, 13, path, bad) for bad in flips(root))
    for at, node in enumerate(path):
        assert not any(verify_inclusion(leaf, 6, 13, (*path[:at], bad, *path[at + 1 :]), root) for bad in flips(node))


def test_a_flipped_bit_anywhere_in_a_consistency_proof_is_refused() -> None:
    leaves = data(13)
    old, new, path = naive_root(leaves[:6]), naive_root(leaves), consistency(leaves, 6)
    assert verify_consistency(6, 13, old, new, path)
    assert not any(verify_consistency(6, 13, bad, new, path) for bad in flips(old))
    assert not any(verify_consistency(6, 13, old, bad, path) for bad in flips(new))
    for at, node in enumerate(path):
        assert not any(verify_consistency(6, 13, old, new, (*path[:at], bad, *path[at + 1 :])) for bad in flips(node))


@pytest.mark.parametrize("wrong", ["shorter", "longer", "doubled", "reversed", "short node", "a thousand nodes"])
def test_a_path_of_another_form_is_refused(wrong: str) -> None:
    leaves = data(13)
    change = {
        "shorter": lambda path: path[:-1],
        "longer": lambda path: (*path, path[-1]),
        "doubled": lambda path: path + path,
        "reversed": lambda path: path[::-1],
        "short node": lambda path: (*path[:-1], path[-1][:31]),
        "a thousand nodes": lambda path: path * 500,
    }[wrong]
    root = naive_root(leaves)
    assert not verify_inclusion(leaf_hash(leaves[6]), 6, 13, change(inclusion(leaves, 6)), root)
    assert not verify_consistency(6, 13, naive_root(leaves[:6]), root, change(consistency(leaves, 6)))


def test_sizes_and_indexes_that_cannot_be_are_refused_and_not_asked_for() -> None:
    root = naive_root(data(3))
    assert not verify_inclusion(leaf_hash(b""), -1, 3, (), root)
    assert not verify_inclusion(leaf_hash(b""), 0, 0, (), EMPTY)
    assert not verify_inclusion(leaf_hash(b""), 2**70, 3, (), root)
    assert not verify_consistency(4, 3, root, root, ())
    assert not verify_consistency(-1, 3, root, root, ())
    assert not verify_consistency(0, 3, root, root, ())
    assert verify_consistency(0, 3, EMPTY, root, ())
    for ask in (lambda: inclusion_ranges(3, 3), lambda: consistency_ranges(4, 3), lambda: inclusion_ranges(-1, 3)):
        with pytest.raises(ValueError, match=r"not among|do not extend"):
            ask()


def test_a_node_is_never_taken_for_a_leaf() -> None:
    """Without the two prefixes a tree of two leaves would be one of a single leaf that holds both hashes."""
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != node_hash(left, right)


@given(st.lists(st.binary(max_size=8), max_size=70), st.data())
def test_a_span_grown_leaf_by_leaf_has_the_roots_of_the_definition(leaves: list[bytes], draw: st.DataObject) -> None:
    tree, roots = Span(), []
    for leaf in leaves:
        roots.append(tree.root())
        tree.add(leaf_hash(leaf))
    assert [*roots, tree.root()] == [naive_root(leaves[:size]) for size in range(len(leaves) + 1)]


@given(st.integers(1, 300), st.integers(0, 300))
def test_a_proof_comes_out_of_the_old_tree_and_what_came_since(old: int, more: int) -> None:
    """What a server keeps: the perfect subtrees before its last checkpoint, and those since."""
    leaves = data(old + more)
    before, since = Span(), Span(old)
    for number, leaf in enumerate(leaves):
        (before if number < old else since).add(leaf_hash(leaf))
    path = tuple((before if end <= old else since).root(first, end) for first, end in consistency_ranges(old, old + more))
    assert path == consistency(leaves, old)
    assert len(before._nodes) <= 2 * old.bit_length()
    assert len(since._nodes) <= 2 * (old + more).bit_length()


def test_a_log_that_ends_too_soon_gives_no_proof() -> None:
    found = Gatherer(inclusion_ranges(3, 8))
    for leaf in data(7):
        found.add(leaf_hash(leaf))
    with pytest.raises(ValueError, match="ends after 7"):
        found.hashes()


def test_a_range_that_is_only_known_as_part_of_a_whole_is_not_given() -> None:
    tree = Span()
    for leaf in data(8):
        tree.add(leaf_hash(leaf))
    with pytest.raises(ValueError, match="not known apart"):
        tree.root(0, 4)
