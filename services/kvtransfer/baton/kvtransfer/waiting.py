"""How long to wait before a device is asked again whether its copies have ended.

Nothing wakes a thread when a copy ends, so it has to ask. A fixed time is too long for a copy of 1 ms or too often for one
that stands behind a step of 100 ms: asked after an eighth more than it has waited, a copy is seen to have ended within an
eighth of its own time, for some thirty questions up to the longest nap.
"""

SHORTEST_S = 30e-6
"""A question costs about as much."""
LONGEST_S = 0.002


def nap_s(waited_s: float) -> float:
    """Seconds until a device is asked again that has been asked for so long."""
    return min(LONGEST_S, max(SHORTEST_S, waited_s / 8))
