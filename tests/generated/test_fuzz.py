"""What ``make fuzz`` reports of the rules, and of the pairs of them that have met."""

from collections import Counter
from itertools import combinations

import pytest

from pytensor_mvn_rewrites.pipeline import RULES
from tests.generated.fuzz import PAIRS_SHOWN, UNSEEN, Summary, seen_rules
from tests.generated.grammar import PARTS, Model
from tests.generated.oracles import Verdict, check

EMPTY = Model(())


def test_what_does_not_count_are_rules():
    assert {*UNSEEN} <= {rule for rules in RULES.values() for rule in rules}
    assert all(UNSEEN.values())


def test_pairs_are_counted_once_in_each_model():
    summary, [a, b, c, *_] = Summary(), seen_rules()
    summary.add(EMPTY, Verdict(fired=Counter({b: 3, a: 1})))
    summary.add(EMPTY, Verdict(fired=Counter({a: 1, b: 1, c: 1, "lower/lower_to_jax": 1})))
    summary.add(EMPTY, Verdict(fired=Counter({a: 1, c: 1}), invalid="no parameters"))
    assert summary.fired == {a: 2, b: 2, c: 1}
    assert summary.met == {(a, b): 2, (a, c): 1, (b, c): 1}
    total = len(list(combinations(seen_rules(), 2)))
    assert f"3 of {total} pairs of rules have met" in str(summary)
    assert "2 of them in one only" in str(summary)


def test_pairs_that_have_not_met_are_named_within_bounds():
    summary = Summary()
    for rule in seen_rules()[:-1]:
        summary.add(EMPTY, Verdict(fired=Counter([rule])))
    fired, apart, *pairs, others = summary.coverage()[0:1] + summary.coverage()[2:]
    assert fired.endswith(f"never: {seen_rules()[-1]}")
    assert apart == "apart, of rules that fired:"
    assert len(pairs) == PAIRS_SHOWN
    assert others.endswith(" others")


@pytest.mark.slow
def test_every_rule_that_counts_fires_in_a_part():
    """One that does not would meet no other: give it a part."""
    fired = Counter()
    for part in PARTS:
        fired += check(Model((), parts=(part,))).fired
    assert not [rule for rule in seen_rules() if not fired[rule]]
