"""One option for every head, with the most value within a budget: a multiple-choice knapsack, solved near-exactly."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise


def choose(values: Sequence[Sequence[float]], costs: Sequence[int], capacity: int) -> tuple[list[int], float]:
    """One option for every head, with the most value within `capacity`: a multiple-choice knapsack.

    Its linear relaxation is solved exactly: every head starts at its cheapest option and climbs the upper convex hull
    of (cost, value), always where a unit of cost brings the most, until one step does not fit. That step, taken in
    part, gives the bound. The rest is filled with steps that fit, then improved by changing one or two heads at a time
    for as long as that helps.

    Args:
        values: value of every option, for each head.
        costs: cost of every option, the same for all heads.
        capacity: at least the cheapest cost times the heads.

    Returns:
        The index of each head's option, and the largest value that any choice could have.
    """
    steps = []
    choices = []
    for head, value in enumerate(values):
        hull = _upper_hull(value, costs)
        choices.append(hull[0])
        for low, high in pairwise(hull):
            steps.append(((value[high] - value[low]) / (costs[high] - costs[low]), head, low, high))
    steps.sort(key=lambda step: -step[0])  # stable: steps of one head stay in order
    room = capacity - sum(costs[choice] for choice in choices)
    climbed = sum(value[choice] for value, choice in zip(values, choices, strict=True))
    upper_bound = None
    for efficiency, head, low, high in steps:
        if costs[high] - costs[low] > room and upper_bound is None:
            upper_bound = climbed + room * efficiency
        if choices[head] == low and costs[high] - costs[low] <= room:
            choices[head] = high
            room -= costs[high] - costs[low]
            climbed += values[head][high] - values[head][low]
    choices = _improve(values, costs, choices, room)
    kept = sum(value[choice] for value, choice in zip(values, choices, strict=True))
    return choices, kept if upper_bound is None else max(kept, upper_bound)


def _upper_hull(value: Sequence[float], costs: Sequence[int]) -> list[int]:
    """The options on the upper convex hull of (cost, value), from the cheapest to the most valuable."""
    hull: list[int] = []
    for option in sorted(range(len(costs)), key=lambda k: (costs[k], -value[k])):
        if hull and value[option] <= value[hull[-1]]:
            continue
        while len(hull) > 1 and _is_below(hull[-1], hull[-2], option, value, costs):
            hull.pop()
        hull.append(option)
    return hull


def _is_below(middle: int, low: int, high: int, value: Sequence[float], costs: Sequence[int]) -> bool:
    """Whether `middle` lies on or below the line from `low` to `high`."""
    rise, run = value[high] - value[low], costs[high] - costs[low]
    return (value[middle] - value[low]) * run <= rise * (costs[middle] - costs[low])


def _improve(values: Sequence[Sequence[float]], costs: Sequence[int], choices: Sequence[int], room: int) -> list[int]:
    """Change one head, or two at once, to other options for as long as the value grows and the costs fit."""
    choices = list(choices)
    while True:
        moves = [(0, 0.0, -1, 0)]  # staying as it is: pairs with it change one head
        for head, (value, now) in enumerate(zip(values, choices, strict=True)):
            moves += [(costs[k] - costs[now], value[k] - value[now], head, k) for k in range(len(costs)) if k != now]
        moves.sort()
        best_gain, best_pair = 1e-12, None
        leaders = _leaders(moves)
        sorted_costs = [move[0] for move in moves]
        for cost, gain, head, option in moves:
            count = bisect_right(sorted_costs, room - cost)
            for other in leaders[count - 1] if count else ():
                partner = moves[other]
                if partner[2] != head and gain + partner[1] > best_gain:
                    best_gain, best_pair = gain + partner[1], ((cost, head, option), (partner[0], *partner[2:]))
        if best_pair is None:
            return choices
        for cost, head, option in best_pair:
            room -= cost
            if head >= 0:
                choices[head] = option


def _leaders(moves: list[tuple[int, float, int, int]]) -> list[tuple[int, ...]]:
    """The move that gains the most, for each prefix of `moves`, and the best one of another head."""
    first, second = 0, None
    leaders: list[tuple[int, ...]] = [(0,)]
    for index in range(1, len(moves)):
        _, gain, head, _ = moves[index]
        if gain > moves[first][1]:
            second = second if head == moves[first][2] else first
            first = index
        elif head != moves[first][2] and (second is None or gain > moves[second][1]):
            second = index
        leaders.append((first,) if second is None else (first, second))
    return leaders
