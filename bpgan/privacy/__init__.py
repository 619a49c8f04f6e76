"""Training with differential privacy, and what can be said of the privacy of a run.

==============  =========================================================================
``accounting``  the epsilon and delta of the updates that a run has made, by dp-accounting
==============  =========================================================================
"""
