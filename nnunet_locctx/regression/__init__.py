"""Models fitted beforehand on the user's own unlabelled scans, which measure where in the body a scan's voxels lie.

A *regressor* is fitted once per dataset; what it measures in a scan is a
:class:`~nnunet_locctx.location.measurement.Measurement`, in the patient's millimetres, from which every configuration's
location is made. Nothing here knows nnU-Net.
"""
