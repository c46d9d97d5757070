"""Signatures as rows: of which bytes, by which key, for how long."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from sqlalchemy import select

from data.database import Engine
from data.derivedimages import DerivedImages
from data.owntables import SignatureRow, reading
from data.signatures import Signatures
from test.test_virtuals import derived, drop

OURS, OTHERS = "A" * 40, "B" * 64
ARMOURED = "-----BEGIN PGP SIGNATURE-----\n\n…\n" + "x" * 70_000


def rows(engine: Engine) -> int:
    return len(reading(engine, lambda connection: connection.execute(select(SignatureRow.key)).all()))


def test_a_signature_is_kept_as_it_was_given(engine: Engine) -> None:
    record, signatures = derived(engine), Signatures(engine)
    assert signatures.find(record, OURS) is None
    kept = signatures.add(record, OURS, ARMOURED)
    assert kept is not None
    assert kept.armoured == ARMOURED
    assert abs(kept.created_ms - DerivedImages(engine).now_ms()) < 60_000
    assert signatures.find(record, OURS) == kept


def test_each_key_has_a_signature_of_its_own(engine: Engine) -> None:
    record, signatures = derived(engine), Signatures(engine)
    signatures.add(record, OURS, "ours")
    assert signatures.find(record, OTHERS) is None
    signatures.add(record, OTHERS, "others")
    ours, others = signatures.find(record, OURS), signatures.find(record, OTHERS)
    assert ours is not None
    assert others is not None
    assert (ours.armoured, others.armoured) == ("ours", "others")


def test_the_first_signature_stays(engine: Engine) -> None:
    record, signatures = derived(engine), Signatures(engine)
    first = signatures.add(record, OURS, "first")
    assert signatures.add(record, OURS, "second") == first == signatures.find(record, OURS)


def test_of_many_at_once_all_get_the_same(engine: Engine) -> None:
    record, signatures = derived(engine), Signatures(engine)
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda number: signatures.add(record, OURS, str(number)), range(8)))
    assert None not in kept
    assert len(set(kept)) == 1
    assert rows(engine) == 1


def test_a_signature_of_other_bytes_is_none_of_these(engine: Engine) -> None:
    signatures = Signatures(engine)
    before = derived(engine)
    signatures.add(before, OURS, "of the first")
    drop(engine, before)
    record = derived(engine, sha256="2" * 64)
    assert signatures.find(record, OURS) is None
    assert signatures.add(before, OURS, "late") is None
    kept = signatures.add(record, OURS, "of the second")
    assert kept is not None
    assert kept.armoured == "of the second"
    assert rows(engine) == 1


def test_the_same_bytes_made_anew_have_their_signature_still(engine: Engine) -> None:
    signatures = Signatures(engine)
    before = derived(engine)
    kept = signatures.add(before, OURS, "x")
    drop(engine, before)
    assert signatures.find(derived(engine), OURS) == kept


def test_what_is_not_there_gets_no_signature(engine: Engine) -> None:
    record, signatures = derived(engine), Signatures(engine)
    assert signatures.add(replace(record, token="0" * 32), OURS, "x") is None
    drop(engine, record)
    assert signatures.add(record, OURS, "x") is None
    assert rows(engine) == 0


def test_signatures_of_what_was_dropped_are_swept(engine: Engine) -> None:
    signatures = Signatures(engine)
    kept, gone = derived(engine), derived(engine, "b" * 64)
    for record in (kept, gone):
        signatures.add(record, OURS, "x")
    signatures.add(gone, OTHERS, "x")
    assert signatures.sweep() == 0
    drop(engine, gone)
    assert signatures.sweep(dry_run=True) == 2
    assert rows(engine) == 3
    assert signatures.sweep() == 2
    assert signatures.find(kept, OURS) is not None
    assert rows(engine) == 1
