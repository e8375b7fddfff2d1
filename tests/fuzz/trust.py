"""What is handed on as a file or a word: checkpoints, proofs, enrolment tokens, sealed chunks, what was spent of privacy."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import cache
from random import Random

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from refold.cli.prove import _read_proof
from refold.producers.enrolment import TOKEN_PREFIX, _check, read_token, token_text
from refold.producers.spending import Spent, _written, read_spent
from refold.schemas.checkpoints import Checkpoint, sign_checkpoint
from refold.schemas.errors import ConfigurationError, UsageError
from refold.schemas.identity import EnrolmentToken
from refold.schemas.kept import Kept, read_kept, to_lines
from refold.schemas.merkle import leaf_hash
from refold.schemas.proofs import ConsistencyProof, InclusionProof, require_proof
from refold.schemas.sealing import SealingKey, seal
from tests.fuzz import samples
from tests.fuzz.decoder import TAKEN, Decoder, Defect, Input, check_same
from tests.fuzz.files import written
from tests.fuzz.mutating import texts

SEALING = SealingKey(X25519PrivateKey.from_private_bytes(bytes(range(32))))
INFO = b"where it belongs"


def decoders() -> Iterator[Decoder]:
    """Yield one for each."""
    wrong = (ConfigurationError,)
    reaches = frozenset({TAKEN, "ConfigurationError"})
    yield Decoder("checkpoints", _kept_seeds, judge_kept, errors=wrong, changes=(texts,), reaches=reaches)
    yield Decoder("proofs", _proof_seeds, judge_proof, errors=wrong, changes=(texts,), reaches=reaches)
    yield Decoder("spent", _spent_seeds, judge_spent, errors=wrong, changes=(texts,), mend=_recheck, reaches=reaches)
    tokens = frozenset({TAKEN, "UsageError"})
    yield Decoder("tokens", _token_seeds, judge_token, errors=(UsageError,), changes=(_token,), reaches=tokens)
    yield Decoder("sealed-chunks", _sealed_seeds, judge_sealed, reaches=frozenset({TAKEN, "decryption"}))
    yield Decoder("sealing-keys", _sealing_key_seeds, judge_sealing_key, errors=wrong, changes=(texts,), reaches=reaches)


@cache
def _kept() -> tuple[Kept, ...]:
    said = [Checkpoint("fuzz", n, leaf_hash(b"event"), bytes([n]) * 32, n, bytes(32), n) for n in (1, 2)]
    return tuple(Kept(sign_checkpoint(one, samples.KEY), samples.KEY.public) for one in said)


def _kept_seeds() -> tuple[Input, ...]:
    return ((to_lines(_kept()).encode(),), (to_lines(_kept()[:1]).encode(),))


def judge_kept(value: Input) -> str:
    """Read a file of checkpoints."""
    for kept in read_kept(written("kept", value[0])):
        if not kept.signed.is_signed_by([kept.log_key]):
            raise Defect("a checkpoint that its key did not sign")
    return TAKEN


def _proof_seeds() -> tuple[Input, ...]:
    first, second = _kept()
    proofs = (InclusionProof(0, b"event", (), first), ConsistencyProof(first, second, (bytes(32),)))
    return tuple((json.dumps(proof.to_json()).encode(),) for proof in proofs)


def judge_proof(value: Input) -> str:
    """Read a proof, and see whether it holds as the command line does."""
    from refold.schemas.errors import IntegrityError

    proof = _read_proof(written("proof", value[0]))
    try:
        require_proof(proof)
    except IntegrityError:
        return TAKEN if not proof.holds else "refused"
    return "holds"


def _spent_seeds() -> tuple[Input, ...]:
    return ((_written(Spent("fuzz", "ann", ((1.1, 3), (2.0, 1)), 7, 1e-5, 4.0)).encode(),),)


def judge_spent(value: Input) -> str:
    """Read what a client has spent of its privacy."""
    assert read_spent(written("spent", value[0])).count is not None
    return TAKEN


def _recheck(value: Input, _chance: Random) -> Input:
    from refold.producers.spending import _check as check_of

    try:
        found = json.loads(value[0])
        found["check"] = check_of(found["said"])
        return (json.dumps(found).encode(),)
    except (ValueError, TypeError, LookupError, RecursionError):
        return value


def _token_seeds() -> tuple[Input, ...]:
    return ((token_text(EnrolmentToken("fuzz", "ann", bytes(range(32)), 3)).encode(),),)


def judge_token(value: Input) -> str:
    """Read an enrolment token."""
    text = value[0].decode(errors="replace")
    check_same(token_text(read_token(text)).encode(), text.strip().encode().rstrip(b"="), "a token")
    return TAKEN


def _token(value: Input, chance: Random) -> Input:
    """Change what a token holds, and make its checksum right."""
    body = value[0].decode(errors="replace").removeprefix(TOKEN_PREFIX)
    try:
        data = bytearray(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))[:-4])
    except ValueError:
        return value
    if data:
        data[chance.randrange(len(data))] = chance.randrange(256)
    packed = base64.urlsafe_b64encode(bytes(data) + _check(bytes(data))).decode().rstrip("=")
    return ((TOKEN_PREFIX + packed).encode(),)


@cache
def _sealed_seeds() -> tuple[Input, ...]:
    return tuple((seal(SEALING.public, plain, INFO),) for plain in (b"", b"a chunk" * 30))


def judge_sealed(value: Input) -> str:
    """Open a sealed chunk."""
    SEALING.open(value[0], INFO)
    return TAKEN


@cache
def _sealing_key_seeds() -> tuple[Input, ...]:
    from tests.fuzz.files import private_key_seeds

    path = written("seed.sealing", b"")
    path.unlink()
    SEALING.save(path)
    return ((path.read_bytes(),), *private_key_seeds())


def judge_sealing_key(value: Input) -> str:
    """Read a sealing key."""
    assert len(SealingKey.from_pem(value[0], written("sealing", b"")).public) == 32
    return TAKEN
