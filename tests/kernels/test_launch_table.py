from baton.kernels.launch_table import HOPPER, LARGE, SMALL, launches


def test_a_measured_device_keeps_its_launches_under_other_triton_versions_and_an_unknown_one_gets_what_fits():
    assert launches((9, 0), (3, 6)) is HOPPER
    assert launches((9, 0), (3, 7)) is HOPPER
    assert launches((9, 0), (3, 5)) is HOPPER
    assert launches((10, 0), (3, 6)) is LARGE
    assert launches((8, 9), (3, 6)) is SMALL
    assert launches((13, 0), (3, 6)) is SMALL
