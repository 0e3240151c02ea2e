"""The demo: plain and located nnU-Net on a phantom whose organs only their position tells apart."""

from nnunet_locctx.demo.run import DemoSettings, make_study_data, run_demo

__all__ = ["DemoSettings", "make_study_data", "run_demo"]
