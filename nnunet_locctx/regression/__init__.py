"""Models fitted beforehand on the user's own unlabelled scans, which measure where in the body a scan's voxels lie.

A *regressor* is fitted once per dataset. It measures a :class:`~nnunet_locctx.location.measurement.Measurement` of a
scan in the patient's millimetres, from which the location of every configuration is made. The package does not use
nnU-Net.
"""
