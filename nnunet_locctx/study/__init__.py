"""Studies: methods × location sources × presets × folds, trained and evaluated on an existing nnU-Net, and reported.

:mod:`~nnunet_locctx.study.model` is a study as its file asks for it, :mod:`~nnunet_locctx.study.jobs` what there is to
do, the ``Snakefile`` the rules by which Snakemake does it, :mod:`~nnunet_locctx.study.steps` what a rule runs, and
:mod:`~nnunet_locctx.study.runner` starts it all.
"""
