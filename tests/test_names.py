import re

import pytest

from nnunet_locctx.names import check_known, instead, named, summarise

KNOWN = ["2d", "3d_lowres", "3d_fullres", "LocBAMTrainer"]


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("3d_fulres", " (did you mean 3d_fullres?)"),
        ("locbamtrainr", " (did you mean LocBAMTrainer?)"),
        ("3d_l", " (did you mean 3d_lowres?)"),
        ("3d", f"; there are {', '.join(KNOWN)}"),  # two begin like this, and 2d is another thing
        ("", f"; there are {', '.join(KNOWN)}"),
        (None, f"; there are {', '.join(KNOWN)}"),
    ],
)
def test_the_nearest_name_or_all_of_them(name: str | None, end: str) -> None:
    assert instead(name, KNOWN) == end
    with pytest.raises(ValueError, match=re.escape(f"unknown configuration {name!r}{end}")):
        check_known(["2d", name], KNOWN, "configuration")
    assert instead(name, []) == "; there are none"


def test_long_lists_end() -> None:
    assert named(["a", "b"]) == "a, b"
    assert named(list("abc"), 2) == "a, b and 1 more"
    assert summarise(list("abc"), 2) == "a\nb\nand 1 more"
