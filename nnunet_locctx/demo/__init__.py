"""The demo: plain and located nnU-Net on a phantom whose organs only their position tells apart."""

from nnunet_locctx.demo.run import DemoSettings, run_demo

__all__ = ["DemoSettings", "run_demo"]
