import pytest
import torch

from nnunet_locctx.blocks import BLOCKS, DEFAULTS, PLACES, check_block, make_block
from nnunet_locctx.blocks import block_options as options_of


def test_every_block_has_a_default_that_passes() -> None:
    assert DEFAULTS.keys() == BLOCKS.keys()
    for name, default in DEFAULTS.items():
        check_block(name, default.place, default.options)
        assert default.reason


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_fits_every_place(name: str) -> None:
    for place in PLACES:
        check_block(name, place, {})


@pytest.mark.parametrize(
    ("name", "place", "options", "message"),
    [
        ("coordcnov", "input", {}, r"unknown block 'coordcnov' \(did you mean coordconv\?\)"),
        ("prior", "head", {}, "unknown place 'head'; there are input, encoder_first, .*logits"),
        (
            "prior",
            "logits",
            {"band": 6},
            "block 'prior' does not take band; allowed: .*bands",
        ),
        ("prior", "logits", {"channels": 6}, "block 'prior' does not take channels"),
        (
            "coordconv",
            "input",
            {"stride": 2},
            "block 'coordconv' at place 'input' does not take stride; allowed: encoding, .*zero_init$",
        ),
        ("locbam", "logits", {"bands": 99}, "bands must be an integer from 1 to 16, got 99"),
    ],
)
def test_says_what_is_allowed(name: str, place: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_block(name, place, options)


def test_making_an_unknown_block() -> None:
    with pytest.raises(ValueError, match=r"unknown block 'film'; there are .*prior"):
        make_block("film", 4, 3)


def test_checking_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    check_block("locbam", "logits", {})
    assert torch.equal(torch.get_rng_state(), state)


def test_options_are_those_of_the_class() -> None:
    assert options_of("coordconv") == (
        "encoding",
        "bands",
        "base",
        "band_limit",
        "span",
        "stride",
        "zero_init",
    )
