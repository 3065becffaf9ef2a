"""What one worker of xdist runs by itself: a file's tests, or all of the files that share a deployment."""

SHARED = {
    "cluster": (
        "tests/compose/test_dashboards_live.py",
        "tests/compose/test_top.py",
        "tests/e2e/test_admin.py",
        "tests/e2e/test_ends.py",
        "tests/e2e/test_exactness.py",
        "tests/e2e/test_metrics.py",
        "tests/e2e/test_other_apis.py",
        "tests/e2e/test_page.py",
        "tests/e2e/test_structured_outputs.py",
        "tests/e2e/test_tool_choice.py",
        "tests/e2e/test_vllm_series.py",
        "tests/faults/test_pauses.py",
        "tests/faults/test_rolling_restart.py",
        "tests/faults/test_stuck_step.py",
        "tests/faults/test_workers_die.py",
        "tests/security/test_advisories.py",
        "tests/worker/test_protocol.py",
    ),
    "stack": ("tests/compose/test_stack.py", "tests/e2e/test_chaos.py", "tests/e2e/test_verify.py"),
}
"""Fixtures that start a dozen processes, with the files that ask for them."""
FIRST = (
    "cluster",
    "tests/test_interpreted.py",
    "stack",
    "tests/e2e/test_kvstore.py",
    "tests/e2e/test_up.py",
    "tests/engine/test_compile_check.py",
)
"""The longest, in the order in which they are handed out: units, or files."""
APART = ("tests/engine/test_compile_check.py", "tests/simulation/test_simulation.py", "tests/test_interpreted.py")
"""Files whose tests share nothing and take long: each test is a unit."""


def rank_of(nodeid: str) -> int:
    """Return the place of a test's unit in the order in which they are handed out."""
    names = (unit_of(nodeid), nodeid.partition("::")[0])
    return min((FIRST.index(name) for name in names if name in FIRST), default=len(FIRST))


def unit_of(nodeid: str) -> str:
    """Return the name of the unit that a test is in."""
    file = nodeid.partition("::")[0]
    if file in APART:
        return nodeid
    return next((name for name, files in SHARED.items() if file in files), file)
