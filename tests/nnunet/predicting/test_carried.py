"""What training has seen travels with the weights."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_locctx.location import TrainingRange
from nnunet_locctx.nnunet.predicting.carried import Carried
from nnunet_locctx.nnunet.predicting.preprocessing import LocatedConfiguration
from nnunet_locctx.nnunet.training.trainers import TRAINERS
from tests.networks.small_networks import SMALL
from tests.nnunet.small_plans import configuration, plans

UNKNOWN_ALONG_A = TrainingRange(
    np.array([[-0.5, 0.5], [np.nan, np.nan], [-2.0, -1.0]]),
    np.array([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]]),
    False,
)


def build(name: str) -> tuple[torch.nn.Module, Any]:
    """A network as prediction builds it, and the configuration that goes to the workers."""
    whole = {"patch_size": [32] * 3, "network": SMALL["unetr"]} if name == "GPEUNETRTrainer" else {}
    manager = PlansManager(plans({"c": configuration(**whole)}))
    made = manager.get_configuration("c")
    return TRAINERS[name].build_network_architecture(manager, made, 1, 4, False), made


@pytest.mark.parametrize("name", ["LocCtxTrainer", "GPEUNETRTrainer"])
def test_the_range_of_training_goes_from_checkpoint_to_workers(name: str) -> None:
    network, made = build(name)
    before = set(network.state_dict())
    made.carried.training = UNKNOWN_ALONG_A
    weights = network.state_dict()
    assert set(weights) - before == {"location_range.ranges", "location_range.geometry"}
    other, configuration = build(name)
    other.load_state_dict(weights)
    copied = pickle.loads(pickle.dumps(configuration))
    assert isinstance(copied, LocatedConfiguration)
    training = copied.locator.training
    assert training is not None
    np.testing.assert_array_equal(training.coordinates, UNKNOWN_ALONG_A.coordinates)
    np.testing.assert_array_equal(training.extents, UNKNOWN_ALONG_A.extents)
    assert training.geometry is False
    # a second fold changes nothing: scans may have been prepared already
    weights["location_range.ranges"] = weights["location_range.ranges"] + 1
    other.load_state_dict(weights)
    assert configuration.locator.training is copied.carried.training or np.array_equal(
        configuration.locator.training.extents, training.extents
    )


def test_models_of_earlier_versions_load() -> None:
    network, configuration = build("LocCtxTrainer")
    weights = network.state_dict()
    assert not [key for key in weights if key.startswith("location_range")]
    network.load_state_dict(weights)
    assert configuration.locator.training is None


def test_damaged_ranges_are_refused() -> None:
    network, made = build("LocCtxTrainer")
    made.carried.training = UNKNOWN_ALONG_A
    weights = network.state_dict()
    for damaged in (torch.ones(3, 4) / 0, torch.ones(2, 4)):
        weights["location_range.ranges"] = damaged
        with pytest.raises(ValueError, match="of a training range must be"):
            build("LocCtxTrainer")[0].load_state_dict(weights)


def test_a_fitted_source_without_a_regressor() -> None:
    with pytest.raises(ValueError, match="no regressor was loaded; it is part of the checkpoint"):
        Carried().open()
