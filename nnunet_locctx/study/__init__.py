"""Studies: methods × location sources × presets × folds, trained and evaluated on an existing nnU-Net, and reported.

:mod:`~nnunet_locctx.study.definition` reads a study file, :mod:`~nnunet_locctx.study.graph` turns it into jobs,
:mod:`~nnunet_locctx.study.runner` has them run by Snakemake (``Snakefile``), :mod:`~nnunet_locctx.study.job` runs one.
"""
