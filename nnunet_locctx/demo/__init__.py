"""The demo: nnU-Net without and with location on a phantom whose organs differ only in their position."""

from nnunet_locctx.demo.run import DemoSettings, make_study_data, run_demo

__all__ = ["DemoSettings", "make_study_data", "run_demo"]
