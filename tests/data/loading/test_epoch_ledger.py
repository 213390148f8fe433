"""The ledger of an epoch over workers and attempts, and the errors that it raises."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolor_ray.data.loading.epoch_ledger import Ledger, from_json, to_json
from yolor_ray.errors import LedgerError


def test_records_of_all_workers_are_merged_with_those_seen_before():
    ledgers = [Ledger(np.array([True, False, False, False])) for _ in range(2)]
    ledgers[0].take(np.array([1]))
    ledgers[1].take(np.array([3]))
    counts = [ledger.counts for ledger in ledgers]
    for ledger in ledgers:
        ledger.merge(counts)
        assert ledger.seen.tolist() == [True, True, False, True]
        assert not ledger.counts.any(), "merged records must not be merged again"
    ledgers[0].take(np.array([2]))
    ledgers[0].merge([ledgers[0].counts, ledgers[1].counts])
    assert ledgers[0].close() == 4


@pytest.mark.parametrize("again", [[0], [1, 1]])
def test_a_record_learned_from_twice_ends_the_run(again):
    ledger = Ledger(np.array([True, False]))
    ledger.take(np.array(again))
    with pytest.raises(LedgerError, match=rf"found 1 records learned from twice, such as {again[0]}"):
        ledger.merge([ledger.counts])


def test_two_workers_that_take_the_same_record_end_the_run():
    ledger = Ledger(np.zeros(3, bool))
    ledger.take(np.array([2]))
    with pytest.raises(LedgerError, match="learned from twice, such as 2"):
        ledger.merge([ledger.counts, ledger.counts])


def test_an_epoch_with_a_record_left_out_does_not_close():
    ledger = Ledger(np.array([True, False, True]))
    with pytest.raises(LedgerError, match="found 1 records not learned from, such as 1"):
        ledger.close()


@given(st.lists(st.booleans(), max_size=70))
def test_seen_records_survive_json_with_one_bit_each(bits):
    seen = np.array(bits, bool)
    text = json.dumps(to_json(seen))
    assert np.array_equal(from_json(json.loads(text)), seen)
    assert len(text) < 50 + len(bits) / 6 + 4
