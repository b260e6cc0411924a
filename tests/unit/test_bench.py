"""What the benches make of what they measured; they themselves need a lab."""

import pytest

from bench import peers
from bench.measure import Sample


def samples(**seconds):
    return {step.replace("_", "-"): Sample(seconds=value) for step, value in seconds.items()}


RESULTS = {
    "pyinfra": samples(first=2.0, no_op=1.0),
    "Ansible, tuned": samples(first=50.0),
    "overlay": {peers.INSTALLED: Sample(seconds=6.0), **samples(first=3.0, no_op=1.5)},
}


def test_tables_have_seconds_and_ratios(capsys):
    peers._print(RESULTS)
    rows = [line.split(" | ")[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("| overlay")]
    assert rows == [["6.0", "3.0", "1.5 |"], ["3.00", "1.50", "1.50 |"], ["1.00", "1.00", "1.00 |"]]


@pytest.mark.parametrize(
    ("hosts", "first", "missed"),
    [
        (50, 3.0, []),
        (50, 3.1, ["first: 1.55 times pyinfra's; 1.5 at most"]),
        (50, 5.5, ["first: 2.75 times pyinfra's; 1.5 at most", "first: 0.11 times Ansible, tuned's; 0.1 at most"]),
        (200, 3.0, ["no-op: 1.50 times pyinfra's; 1.0 at most"]),
    ],
)
def test_what_missed_its_aim_is_told(hosts, first, missed):
    mine = {**RESULTS["overlay"], "first": Sample(seconds=first)}
    assert peers._missed({**RESULTS, "overlay": mine}, hosts) == missed


def test_medians_of_rounds():
    rounds = [Sample(seconds=3.0, cpu=1.0), Sample(seconds=1.0, cpu=None), Sample(seconds=2.0, cpu=3.0)]
    assert (peers._median(rounds).seconds, peers._median(rounds).cpu) == (2.0, 2.0)
